import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pocketrank.cloud.training.compare import compare
from pocketrank.cloud.training.evaluate import MODELS, evaluate
from pocketrank.cloud.training.metrics import SPREAD
from pocketrank.cloud.training.run import Run, RunError
from pocketrank.sdk_demo.cli import main
from tests.cloud.training.made_up_run import TASKS, made_up_run


@pytest.fixture
def better(tmp_path: Path) -> Run:
    return made_up_run(tmp_path / "better", seeds=(1, 2), noise=0.3)


@pytest.fixture
def worse(tmp_path: Path) -> Run:
    return made_up_run(tmp_path / "worse", seeds=(3, 4, 5), noise=3)


def _change(run: Run, name: str, change: str) -> None:
    path = run.seed_folder() / f"{name}.npy"
    array = np.load(path)
    if change == "flip":
        array[1] = 1 - array[1]
    elif change == "shift":
        array[-1] += 1
    np.save(path, array[:-10] if change == "fewer" else array)


def test_the_report_has_both_runs_and_their_difference(better: Run, worse: Run) -> None:
    report = compare(better.folder, worse.folder, resamples=300)
    a, b = evaluate(better.folder), evaluate(worse.folder)
    assert report["data"] == a["data"]
    assert report["runs"]["b"] == {
        "folder": worse.folder.as_posix(), "seeds": [3, 4, 5], "split_version": worse.record.split_version, "models": []
    }  # fmt: skip
    assert (report["interval"]["users"], report["interval"]["resamples"]) == (60, 300)
    assert tuple(report["models"]) == MODELS
    for model, tasks in report["models"].items():
        assert tuple(tasks) == TASKS
        for task, row in tasks.items():
            assert (row["a"], row["b"]) == (a["models"][model][task], b["models"][model][task])
            assert tuple(row["difference"]) == SPREAD
            for metric, difference in row["difference"].items():
                assert difference["mean"] == pytest.approx(row["b"][metric] - row["a"][metric])
                low, high = difference["ci95"]
                assert low < difference["mean"] < high
    # The second run is plainly worse, and users are plenty enough to see it.
    split = report["models"]["split"]["effective_view"]["difference"]
    assert split["auc"]["ci95"][1] < 0 < split["logloss"]["ci95"][0]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_difference_has_the_other_sign_the_other_way_round(better: Run, worse: Run) -> None:
    there, back = (compare(*pair, resamples=50) for pair in [(better.folder, worse.folder), (worse.folder, better.folder)])
    for metric in SPREAD:
        forth, to = (report["models"]["split"]["like"]["difference"][metric]["mean"] for report in (there, back))
        assert forth == pytest.approx(-to)


def test_the_interval_is_paired(tmp_path: Path) -> None:
    """With one training, a run differs from itself by exactly nothing, though its AUC differs between resamples."""
    run = made_up_run(tmp_path / "one", seeds=(7,), noise=1)
    report = compare(run.folder, run.folder, resamples=100)
    for tasks in report["models"].values():
        for row in tasks.values():
            assert all(difference == {"mean": 0, "ci95": [0, 0]} for difference in row["difference"].values())


def test_trainings_widen_the_interval(better: Run) -> None:
    """A run with two trainings beside itself: resamples draw each side's trainings by themselves."""
    low, high = compare(better.folder, better.folder, resamples=100)["models"]["split"]["like"]["difference"]["auc"]["ci95"]
    assert low < 0 < high


def test_copies_of_a_users_rows_do_not_narrow_the_interval(tmp_path: Path) -> None:
    """Rows of one user are no independent evidence: with each row ten times, the intervals are what they were."""
    runs = [made_up_run(tmp_path / f"{seed}", seeds=(seed,), noise=1, rows=200) for seed in (1, 2)]
    once = compare(*(run.folder for run in runs), resamples=200)
    for run in runs:
        for path in run.seed_folder().glob("*.npy"):
            np.save(path, np.repeat(np.load(path), 10, axis=0))
    copied = compare(*(run.folder for run in runs), resamples=200)
    for metric in ("auc", "gauc", "logloss"):
        first, second = (report["models"]["split"]["like"]["difference"][metric] for report in (once, copied))
        assert second["ci95"] == pytest.approx(first["ci95"])
        assert first["ci95"][0] < first["ci95"][1]


def test_the_same_seed_gives_the_same_intervals(better: Run, worse: Run) -> None:
    first, again, other = (compare(better.folder, worse.folder, resamples=50, seed=seed)["models"] for seed in (0, 0, 1))
    assert first == again
    assert first != other


def test_a_metric_that_is_not_defined_has_no_difference(better: Run, worse: Run) -> None:
    for run in (better, worse):
        for seed in run.record.seeds:
            path = run.seed_folder(seed) / "labels.npy"
            labels = np.load(path)
            labels[:, 1] = 0
            np.save(path, labels)
    difference = compare(better.folder, worse.folder, resamples=50)["models"]["split"]["like"]["difference"]
    assert [difference[name] for name in ("auc", "gauc", "ndcg")] == [None] * 3
    assert difference["logloss"]["mean"] > 0


def test_models_of_one_run_are_named_and_not_compared(better: Run, worse: Run) -> None:
    for seed in worse.record.seeds:
        (worse.seed_folder(seed) / "no_feedback.npy").unlink()
    report = compare(better.folder, worse.folder, resamples=10)
    assert "no_feedback" not in report["models"]
    assert (report["runs"]["a"]["models"], report["runs"]["b"]["models"]) == (["no_feedback"], [])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("data_digest", "1" * 64, r"runs of the same data and test days, got data_digest 0{64} and 1{64} - at .*worse"),
        ("test_from", "2022-05-05", "got test_from 2022-05-04 and 2022-05-05 - at .*worse"),
    ],
)
def test_runs_of_other_data_are_refused(better: Run, worse: Run, field: str, value: str, message: str) -> None:
    record = msgspec.structs.replace(worse.record, **{field: value})
    (worse.folder / "run.json").write_bytes(msgspec.json.encode(record))
    with pytest.raises(RunError, match=message):
        compare(better.folder, worse.folder)


def test_runs_of_other_tasks_are_refused(better: Run, worse: Run) -> None:
    spec = msgspec.structs.replace(worse.spec, tasks=("like", "effective_view"))
    record = msgspec.structs.replace(worse.record, spec=spec)
    (worse.folder / "run.json").write_bytes(msgspec.json.encode(record))
    with pytest.raises(RunError, match=r"runs of the tasks effective_view, like, got like, effective_view - at .*worse"):
        compare(better.folder, worse.folder)


@pytest.mark.parametrize(("name", "change"), [("labels", "flip"), ("users", "shift"), ("lists", "shift")])
def test_runs_of_other_test_rows_are_refused(better: Run, worse: Run, name: str, change: str) -> None:
    _change(worse, name, change)
    with pytest.raises(RunError, match=r"Expected the test rows of .*better.*, got other rows, .* - at .*worse.*seed-3"):
        compare(better.folder, worse.folder)


def test_other_numbers_of_the_same_lists_are_the_same_rows(better: Run, worse: Run) -> None:
    for seed in worse.record.seeds:
        path = worse.seed_folder(seed) / "lists.npy"
        np.save(path, 7 - 3 * np.load(path))
    assert compare(better.folder, worse.folder, resamples=10)["models"]


def test_runs_of_fewer_test_rows_are_refused(better: Run, worse: Run) -> None:
    for seed in worse.record.seeds:
        for path in worse.seed_folder(seed).glob("*.npy"):
            np.save(path, np.load(path)[:-10])
    with pytest.raises(RunError, match=r"Expected the test rows of"):
        compare(better.folder, worse.folder)


def test_runs_without_a_model_in_common_are_refused(better: Run, worse: Run) -> None:
    for run, kept in ((better, "split"), (worse, "server_score")):
        for seed in run.record.seeds:
            for model in set(MODELS) - {kept}:
                (run.seed_folder(seed) / f"{model}.npy").unlink()
    with pytest.raises(RunError, match=r"a model that both runs have, got split and server_score - at .*worse"):
        compare(better.folder, worse.folder)


def test_the_command_prints_both_sides_and_marks_differences(
    better: Run, worse: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(better.folder), str(worse.folder), "--json", "-"])
    assert ended.value.code == 0
    captured = capsys.readouterr()
    report, table = json.loads(captured.out), captured.err
    assert "2 and 3 seeds, 60 users" in table
    assert "pigeonhole bootstrap" in table
    assert "…" not in table
    body = table.split("effective view")[1].split("like")[0]
    row = report["models"]["server_score"]["effective_view"]
    lines = [line.split() for line in body.splitlines()]
    assert ["server_score", "a", *(f"{row['a'][metric]:.4f}" for metric in SPREAD)] in lines
    difference = next(line for line in body.splitlines() if "b - a" in line)
    for metric in SPREAD:
        figure = row["difference"][metric]
        marked = figure["ci95"][0] > 0 or figure["ci95"][1] < 0
        assert (f"{figure['mean']:+.4f} *" in difference) == marked


def test_the_command_refuses_other_data_in_one_line(better: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = made_up_run(tmp_path / "other", seeds=(1,), noise=1, data_digest="2" * 64)
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(better.folder), str(other.folder)])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: Expected runs of the same data")
    assert error.count("\n") == 1
