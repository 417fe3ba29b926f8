import json
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cloud.training.breakdown import HISTORY_FROM, breakdown
from pocketrank.cloud.training.evaluate import MODELS, evaluate
from pocketrank.cloud.training.metrics import auc, calibration_error
from pocketrank.cloud.training.run import Run, RunError
from tests.cloud.training.made_up_run import TASKS, made_up_run

SEEDS = (4, 9)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return made_up_run(tmp_path, seeds=SEEDS, noise=1)


def columns(run: Run, *names: str) -> list[list[np.ndarray]]:
    return [[np.load(run.seed_folder(seed) / f"{name}.npy") for name in names] for seed in SEEDS]


def test_the_rows_are_grouped_by_day_and_by_history(run: Run) -> None:
    figures = breakdown(run.folder)
    assert {name: figures[name] for name in ("data", "seeds", "models")} == evaluate(run.folder)
    days = figures["by_day"]["groups"]
    assert [(group["name"], group["rows"]) for group in days] == [("2022-01-08", 200), ("2022-01-09", 200), ("2022-01-10", 200)]
    assert HISTORY_FROM == (0, 1, 10, 30, 100, 300)
    history = figures["by_history"]["groups"]
    assert [(group["name"], group["rows"]) for group in history] == [
        ("0", 60),
        ("1 to 9", 60),
        ("10 to 29", 120),
        ("30 to 99", 360),
    ]
    for model in MODELS:
        parts = columns(run, "labels", model, "days", "history")
        expected = np.mean([auc(y[days == 19_001, 1], p[days == 19_001, 1]) for y, p, days, _ in parts])
        assert days[1]["auc"][model]["like"] == pytest.approx(expected)
        expected = np.mean([auc(y[h >= 30, 0], p[h >= 30, 0]) for y, p, _, h in parts])
        assert history[3]["auc"][model]["effective_view"] == pytest.approx(expected)
        assert figures["by_seed"][model]["like"] == pytest.approx([auc(y[:, 1], p[:, 1]) for y, p, *_ in parts])
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures


def test_calibration_is_that_of_the_error(run: Run) -> None:
    curve = breakdown(run.folder)["calibration"]["split"]["effective_view"]
    predicted, observed, rows = (np.array(curve[name]) for name in ("predicted", "observed", "rows"))
    parts = columns(run, "labels", "split")
    labels, scores = (np.concatenate([part[i][:, 0] for part in parts]) for i in (0, 1))
    assert rows.sum() == np.isfinite(labels).sum()
    assert len(rows) == 15
    assert (np.diff(predicted) > 0).all()
    error = np.average(np.abs(predicted - observed), weights=rows)
    assert error == pytest.approx(calibration_error(labels, scores))


def test_a_group_with_one_label_has_no_auc(run: Run) -> None:
    for seed in SEEDS:
        path = run.seed_folder(seed) / "labels.npy"
        labels = np.load(path)
        labels[:200, 1] = 0
        np.save(path, labels)
    first, second, _ = breakdown(run.folder)["by_day"]["groups"]
    assert first["auc"]["split"]["like"] is None
    assert second["auc"]["split"]["like"] > 0.5


def test_curves_are_read_by_stage_and_seed_and_thinned(run: Run) -> None:
    loss = [{"name": "split/loss", "step": step, "value": step / 10} for step in range(1000)]
    one = [{"name": "ranker/validation_auc/like", "step": 3, "value": 0.7}]
    (run.seed_folder(9) / "curves.json").write_text(json.dumps([*loss, *one]))
    curves = breakdown(run.folder)["curves"]
    assert curves["ranker"] == {"validation_auc/like": {"9": {"steps": [3], "values": [0.7]}}}
    thinned = curves["split"]["loss"]["9"]
    assert len(thinned["steps"]) == 200
    assert thinned["steps"][0] == 2
    assert thinned["values"] == pytest.approx(np.array(thinned["steps"]) / 10)


def test_a_run_that_kept_less_has_less(run: Run) -> None:
    for seed in SEEDS:
        (run.seed_folder(seed) / "days.npy").unlink()
        (run.seed_folder(seed) / "history.npy").unlink()
    figures = breakdown(run.folder)
    assert (figures["by_day"], figures["by_history"], figures["curves"]) == (None, None, {})
    assert tuple(figures["by_seed"]["split"]) == TASKS


@pytest.mark.parametrize("text", ["{", "[1]", '[{"name": "a", "step": "b", "value": 1}]'])
def test_damaged_curves_are_named(run: Run, text: str) -> None:
    (run.seed_folder(4) / "curves.json").write_text(text)
    with pytest.raises(RunError, match=r"Expected training curves, got: .* - at .*seed-4.curves\.json"):
        breakdown(run.folder)
