import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.training.evaluate import MODELS, evaluate
from pocketrank.cloud.training.metrics import over_seeds, ranking_metrics
from pocketrank.cloud.training.run import Run, RunError, RunRecord
from pocketrank.sdk_demo.cli import main
from tests.cloud.training.made_up_run import SPEC, TASKS

ROWS = 400
SEEDS = (3, 4)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """What evaluation reads of a run, made up: two seeds, users of ten rows, lists of five; nobody likes anything."""
    record = RunRecord(
        data="random",
        data_digest="0" * 64,
        simulated=True,
        test_from="2022-05-04",
        seeds=SEEDS,
        split_version="5" * 16,
        spec=SPEC,
        upper=UpperConfig(),
        config={},
        versions={},
    )
    run = Run(tmp_path, record)
    (tmp_path / "run.json").write_bytes(msgspec.json.encode(record))
    for seed in SEEDS:
        rng = np.random.default_rng(seed)
        run.seed_folder(seed).mkdir()
        labels = (rng.random((ROWS, len(TASKS))) < 0.4).astype(np.float32)
        labels[::7, 0], labels[:, 1] = np.nan, 0
        arrays = {"labels": labels, "users": np.arange(ROWS) // 10, "lists": np.arange(ROWS) // 5}
        for model in MODELS:
            arrays[model] = rng.random((ROWS, len(TASKS))).astype(np.float32)
        for name, array in arrays.items():
            np.save(run.seed_folder(seed) / f"{name}.npy", array)
    return run


def _load(run: Run, name: str) -> list[np.ndarray]:
    return [np.load(run.seed_folder(seed) / f"{name}.npy") for seed in SEEDS]


def test_the_report_holds_all_metrics_of_each_model_and_task(run: Run) -> None:
    report = evaluate(run.folder)
    assert (report["seeds"], report["data"]["test_rows"]) == (list(SEEDS), ROWS)
    assert tuple(report["models"]) == MODELS
    for model, tasks in report["models"].items():
        assert tuple(tasks) == TASKS
        arrays = zip(_load(run, "labels"), _load(run, model), _load(run, "users"), _load(run, "lists"), strict=True)
        expected = over_seeds([ranking_metrics(y[:, 0], p[:, 0], user, page) for y, p, user, page in arrays])
        assert None not in expected.values()
        assert tasks["effective_view"] == pytest.approx(expected)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_an_unknown_label_takes_no_part(run: Run) -> None:
    pairs = [(y[~np.isnan(y[:, 0]), 0], p[~np.isnan(y[:, 0]), 0])
             for y, p in zip(_load(run, "labels"), _load(run, "split"), strict=True)]  # fmt: skip
    split = evaluate(run.folder)["models"]["split"]["effective_view"]
    areas = [roc_auc_score(y, p) for y, p in pairs]
    assert (split["auc"], split["auc_std"]) == pytest.approx((np.mean(areas), np.std(areas, ddof=1)))
    assert split["logloss"] == pytest.approx(np.mean([log_loss(y, p) for y, p in pairs]))


def test_undefined_metrics_of_one_label_are_null(run: Run) -> None:
    like = evaluate(run.folder)["models"]["split"]["like"]
    assert [like[name] for name in ("auc", "auc_std", "gauc", "ndcg", "predicted_over_observed")] == [None] * 5
    assert like["ece"] == pytest.approx(np.mean([p[:, 1].mean(dtype=np.float64) for p in _load(run, "split")]))


def test_a_model_that_was_not_trained_is_left_out(run: Run) -> None:
    for seed in SEEDS:
        (run.seed_folder(seed) / "no_feedback.npy").unlink()
    assert "no_feedback" not in evaluate(run.folder)["models"]


@pytest.mark.parametrize("name", ["users", "lists", "labels"])
def test_an_old_run_without_users_and_lists_must_be_trained_again(run: Run, name: str) -> None:
    (run.seed_folder(4) / f"{name}.npy").unlink()
    with pytest.raises(RunError, match=rf"Expected {name}\.npy of the test rows, got none.* - at .*seed-4.*Train again"):
        evaluate(run.folder)


def test_a_run_without_predictions_is_rejected(run: Run) -> None:
    for model in MODELS:
        (run.seed_folder() / f"{model}.npy").unlink()
    with pytest.raises(RunError, match=r"predictions of server_score, .* got none"):
        evaluate(run.folder)


@pytest.mark.parametrize("data", [b"", b"no array", b"PK\x03\x04", b"\x93NUMPY\x01\x00v\x00{"])
def test_damaged_predictions_are_rejected(run: Run, data: bytes) -> None:
    (run.seed_folder() / "split.npy").write_bytes(data)
    with pytest.raises(RunError, match=r"Expected the predictions of a finished run, got: .*split\.npy"):
        evaluate(run.folder)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("labels", np.zeros((ROWS, 3), np.float32), r"float \[rows, 2\], got float32 \[400, 3\]"),
        ("labels", np.zeros(ROWS, np.float32), r"float \[rows, 2\], got float32 \[400\]"),
        ("users", np.zeros(ROWS - 1, np.int64), r"int \[400\], got int64 \[399\]"),
        ("lists", np.zeros(ROWS), r"int \[400\], got float64 \[400\]"),
        ("split", np.full((ROWS, 2), np.nan, np.float32), "finite scores, got nan - at row 1 of "),
        ("labels", np.full((ROWS, 2), 0.5, np.float32), r"labels 0 and 1, .* got 0.5 - at row 0 of "),
    ],
)
def test_arrays_of_different_rows_are_rejected(run: Run, name: str, array: np.ndarray, message: str) -> None:
    np.save(run.seed_folder() / f"{name}.npy", array)
    with pytest.raises(RunError, match=message):
        evaluate(run.folder)


def test_the_command_prints_a_narrow_table_for_each_task(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run.folder), "--json", "-"])
    assert ended.value.code == 0
    captured = capsys.readouterr()
    report = json.loads(captured.out)
    assert report == evaluate(run.folder)
    table = captured.err
    assert max(map(len, table.splitlines())) <= 100
    assert "…" not in table
    effective_view, like = table.split("effective view")[1].split("like")
    for model, tasks in report["models"].items():
        (row,) = [line.split() for line in effective_view.splitlines() if line.split()[:1] == [model]]
        metrics = ("auc", "gauc", "ndcg", "logloss", "ece", "predicted_over_observed")
        assert row[1:] == [f"{tasks['effective_view'][name]:.4f}" for name in metrics]
    assert "n/a" in like
    assert "n/a" not in effective_view
