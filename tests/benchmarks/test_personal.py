import json
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.personal import ReplayRows, main, measure, replay
from pocketrank.cloud.training.run import Run
from pocketrank.device.contract import PersonalConfig, TaskPrior
from pocketrank.device.model.personal import PersonalLayer
from tests.cloud.data.folders import DAY, KUAIRAND, NOON, Row, impression, load, user, video, write_folder
from tests.export.small_run import small_run

TASKS = ("long_view", "like")
USERS, EACH, LISTS = 50, 50, 10


def simulated(tastes: float, seed: int = 0) -> ReplayRows:
    """Users whose long views differ from what was shipped by category, `tastes` log-odds wide; likes are as shipped."""
    rng = np.random.default_rng(seed)
    number = USERS * EACH
    who = np.repeat(np.arange(USERS), EACH)
    category = rng.integers(0, 5, number)
    shipped = rng.uniform(0.2, 0.8, (number, 2)).astype(np.float32)
    odds = shipped / (1 - shipped)
    odds[:, 0] *= np.exp(rng.normal(0, tastes, (USERS, 5))[who, category] * (category > 0))
    labels = (rng.random((number, 2)) < odds / (1 + odds)).astype(np.float32)
    labels[rng.random((number, 2)) < 0.05] = np.nan
    place = np.tile(np.arange(EACH), USERS)
    return ReplayRows(
        tasks=TASKS,
        weights=np.array([1, 0], np.float32),
        labels=labels,
        shipped=shipped,
        user=who,
        list=who * LISTS + place * LISTS // EACH,
        category=category,
        ms=place * 1000 + who,
        before=place,
    )


def test_users_who_differ_are_found_and_served_better() -> None:
    report = measure(simulated(tastes=2.0), resamples=10)
    assert report["data"] == {"fit_rows": 1000, "rows": 1500}
    for base in ("shipped", "recalibrated"):
        config, figures = report[base]["config"], report[base]["all"]
        assert list(config["tasks"]) == ["long_view"]
        assert config["tasks"]["long_view"]["category"] > 0
        for metric in ("auc", "gauc", "ndcg", "logloss"):
            gain = figures["long_view"]["gain"][metric]
            assert 0 < gain["low"] < gain["mean"] < gain["high"]
        assert figures["order"]["gain"]["ndcg"]["low"] > 0
        assert figures["like"]["before"] == figures["like"]["after"]
        assert sum(report[base][name]["rows"] for name in ("new", "casual", "heavy")) == figures["rows"] == 1500
        assert report[base]["new"] == {"rows": 0, "users": 0}  # all later rows have 20 earlier ones


def test_where_users_are_as_shipped_nothing_adapts() -> None:
    report = measure(simulated(tastes=0.0), resamples=2)
    for base in ("shipped", "recalibrated"):
        assert report[base]["config"]["tasks"] == {}
        assert report[base]["all"]["long_view"]["gain"]["logloss"] == {"mean": 0, "low": 0, "high": 0}


def test_what_all_users_share_is_no_gain_over_the_recalibrated_model() -> None:
    rows = simulated(tastes=0.0)
    odds = rows.shipped / (1 - rows.shipped) * np.exp(-1.0)
    report = measure(replace(rows, shipped=(odds / (1 + odds)).astype(np.float32)), resamples=2)
    assert set(report["shipped"]["config"]["tasks"]) == set(TASKS)
    assert report["shipped"]["all"]["long_view"]["gain"]["logloss"]["mean"] > 0
    assert report["recalibrated"]["offset"]["long_view"] == pytest.approx(1.0, abs=0.15)
    assert report["recalibrated"]["config"]["tasks"] == {}


def test_a_replay_predicts_before_it_learns_each_user_for_himself() -> None:
    rows, config = simulated(tastes=1.0), PersonalConfig(tasks={"long_view": TaskPrior()})
    fresh, frozen = replay(rows, config)
    layer = PersonalLayer(TASKS, bundle="", user_id=0, config=config)
    for i in range(EACH, 2 * EACH):  # the second user
        if rows.list[i] != rows.list[i - 1]:
            of_list = rows.list == rows.list[i]
            np.testing.assert_array_equal(frozen[of_list], layer.adjust(rows.shipped[of_list], rows.category[of_list]))
        np.testing.assert_array_equal(fresh[i], layer.adjust(rows.shipped[[i]], rows.category[[i]])[0])
        layer.learn(rows.shipped[i], rows.labels[i], int(rows.category[i]))


def test_rows_of_one_time_are_refused() -> None:
    rows = simulated(tastes=0.0)
    with pytest.raises(BenchmarkError, match="expected some earlier and some later ones"):
        measure(replace(rows, ms=np.zeros_like(rows.ms)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    log: list[Row] = [
        impression(person, int(rng.integers(10, 14)), NOON + day * DAY + i * 60_000, long_view=int(rng.random() < 0.5))
        for person in (1, 2, 3)
        for day in range(4)
        for i in range(6)
    ]
    videos = [video(number, tag=str(number)) for number in range(10, 14)]
    log.sort(key=lambda row: (row["time_ms"], row["user_id"]))
    return write_folder(tmp_path / "data", log=log, videos=videos, users=[user(number) for number in (1, 2, 3)])


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Run:
    """A run of the folder, tested from its third day on, that predicts one half for everything."""
    log = load(folder)
    made = small_run(tmp_path / "run")
    spec = msgspec.structs.replace(made.spec, tasks=TASKS, task_weights={"long_view": 1.0})
    changes = {"data_digest": log.digest(), "test_from": "2022-04-29", "spec": spec, "simulated": False}
    record = msgspec.structs.replace(made.record, **changes)
    (made.folder / "run.json").write_bytes(msgspec.json.encode(record))
    frame = log.impressions.sort_by([("user_id", "ascending"), ("impression_ms", "ascending")]).to_pydict()
    late = [i for i, ms in enumerate(frame["impression_ms"]) if ms >= NOON + 1.5 * DAY]
    np.save(made.seed_folder() / "labels.npy", np.array([[frame[task][i] for task in TASKS] for i in late], np.float32))
    np.save(made.seed_folder() / "self_contained.npy", np.full((len(late), 2), 0.5, np.float32))
    return Run.open(made.folder)


def test_the_rows_of_a_run_are_its_users_in_order(folder: Path, run: Run) -> None:
    rows = ReplayRows.of(run, load(folder), "self_contained")
    assert len(rows.user) == 3 * 2 * 6
    assert np.array_equal(np.lexsort((rows.ms, rows.user)), np.arange(len(rows.user)))
    assert rows.before.reshape(3, 12).tolist() == [list(range(12, 24))] * 3
    assert len(set(rows.category.tolist())) == 4
    assert rows.weights.tolist() == [1, 0]


def test_the_command_writes_the_report(folder: Path, run: Run, tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    code = main(
        [
            "--data",
            str(KUAIRAND),
            "--tables",
            str(folder),
            "--run",
            str(run.folder),
            "--form",
            "self_contained",
            "--json",
            str(target),
        ]
    )
    report = json.loads(target.read_bytes())
    assert code == 0
    assert report["data"]["rows"] + report["data"]["fit_rows"] == 36
    assert report["data"]["test_from"] == "2022-04-29"
    assert report["cost"]["learn_us"] > 0


def test_a_run_of_something_else_is_one_line(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    record = msgspec.structs.replace(run.record, data_digest="f" * 64)
    (run.folder / "run.json").write_bytes(msgspec.json.encode(record))
    assert main(["--data", str(KUAIRAND), "--tables", str(folder), "--run", str(run.folder)]) == 2
    assert "got ffffffffffff" in capsys.readouterr().err


def test_a_run_without_that_form_is_one_line(folder: Path, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(KUAIRAND), "--tables", str(folder), "--run", str(run.folder), "--form", "split"]) == 2
    assert "expected predictions of the split form" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "--data: expected `world`, a data file `FILE.toml`, or the folder of a log"),
        (["--data", "world", "--run", "no run"], "Expected a finished run"),
        (["--data", "world", "--test-from", "soon"], "--test-from: expected a day"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert "Traceback" not in error
