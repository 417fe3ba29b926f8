import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.__main__ import main
from benchmarks.quality.models import CURVES, MODELS, PEERS
from pocketrank.cloud.training.metrics import METRICS
from tests.cloud.data.folders import DAY, KUAIRAND, NOON, Row, impression, user, video, write_folder

USERS, VIDEOS, DAYS = 40, 25, 6
TASKS = ("click", "long_view", "like", "profile_enter")
DATES = ["--train-to", "2022-04-30", "--test-from", "2022-05-02"]
"""The log has 27 April to 2 May; 1 May lies between."""
GAP = 4


def impressions(*, gap_likes: bool) -> list[Row]:
    """Users who like what is even; on the day between, all or nothing."""
    rng = np.random.default_rng(0)
    rows = []
    for who in range(1, USERS + 1):
        for day in range(DAYS):
            for place in range(int(rng.integers(1, 9))):
                what = int(rng.integers(VIDEOS))
                like = bool(rng.random() < (0.8 if what % 2 else 0.2)) if day != GAP else gap_likes
                seen = {"is_like": int(like), "long_view": int(rng.random() < 0.5), "is_click": int(rng.random() < 0.5)}
                enter, at = int(rng.random() < 0.3), NOON + day * DAY + place * 60_000 + who
                rows.append(impression(who, 10 + what, at, is_profile_enter=enter, **seen))
    return rows


def folder(at: Path, *, gap_likes: bool = False) -> Path:
    users, videos = [user(i + 1) for i in range(USERS)], [video(10 + i, tag=str(i % 3 + 1)) for i in range(VIDEOS)]
    return write_folder(at, log=impressions(gap_likes=gap_likes), users=users, videos=videos)


@dataclass(frozen=True)
class Done:
    """A finished benchmark of all models on a tiny log."""

    data: Path
    options: list[str]
    work: Path
    report: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    at = tmp_path_factory.mktemp("quality")
    data, file = folder(at / "data"), at / "report.json"
    options = [
        "--data",
        str(KUAIRAND),
        "--tables",
        str(data),
        *DATES,
        "--seeds",
        "2",
        "--jobs",
        "1",
        "--work",
        str(at / "work"),
    ]
    with redirect_stdout(StringIO()) as out, pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        assert main([*options, "--json", str(file)]) == 0
    return Done(data, options, at / "work", json.loads(file.read_text()), out.getvalue())


def test_every_model_has_every_metric_of_every_task(done: Done) -> None:
    assert tuple(done.report["models"]) == MODELS
    for name, tasks in done.report["models"].items():
        assert tuple(tasks) == TASKS
        for figures in tasks.values():
            assert set(METRICS) < set(figures)
            assert 0 <= figures["auc"] <= 1
            assert (figures["logloss"] is None) == (name == "lambdamart")  # whose scores are no probabilities
            if name != "split_paper":
                assert figures["auc_std"] is not None


def test_differences_are_paired_with_the_refreshed_server_score(done: Done) -> None:
    report = done.report
    for name in MODELS:
        for task in TASKS:
            if name != "server_score_refreshed":
                auc = [report["models"][m][task]["auc"] for m in (name, "server_score_refreshed")]
                assert report["paired"][name][task]["mean"] == pytest.approx(auc[0] - auc[1])


def test_aims_say_what_is_missed(done: Done) -> None:
    for task, aim in (("long_view", 0.75), ("like", 0.87)):
        split = done.report["models"]["split"][task]["auc"]
        said = done.report["aims"][task]
        assert said["auc"] == {"aim": aim, "split": split, "met": split >= aim}
        assert tuple(said["above_peers"]) == PEERS
        for gain in said["above_peers"].values():
            assert gain["met"] == (gain["mean"] > 2 * gain["std"])


def test_curves_cover_the_test_rows(done: Done) -> None:
    curves, rows = done.report["curves"], done.report["data"]["test_rows"]
    for name in ("events_since_request", "events_known"):
        assert sum(part["rows"] for part in curves[name].values()) == rows
        assert all(set(part) == {"rows", "over_server_score", "over_server_score_refreshed"} for part in curves[name].values())
    fresh = {name: part for name, part in curves["fresh_feedback"].items() if name != "all"}
    assert [part["rows"] for part in fresh.values()] == [part["rows"] for part in curves["events_since_request"].values()]
    for form in ("self_contained", "split"):
        assert tuple(curves["training_share"][form]) == tuple(str(share) for share in (*CURVES, 1.0))
        assert curves["training_share"][form]["1.0"]["like"]["auc"] == pytest.approx(done.report["models"][form]["like"]["auc"])


def test_a_reader_sees_each_model_and_the_aims(done: Done) -> None:
    for name in MODELS:
        assert f" {name} " in done.said
    assert "aim 0.75; " in done.said


def test_what_is_finished_is_kept_and_what_is_lost_is_made_again(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    lost = next((done.work / "seed-1").glob("simple_dnn-*.npy"))
    kept = {path: path.stat().st_mtime_ns for path in done.work.rglob("*.npy") if path != lost}
    lost.write_bytes(lost.read_bytes()[:40])
    assert main([*done.options, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert {**report, "seconds": 0} == {**done.report, "seconds": 0}
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_processes_side_by_side_find_the_same(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = [*done.options[:-4], "--jobs", "2", "--work", str(tmp_path)]
    assert main([*options, "--models", "server_score,dlcm", "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["models"]["server_score"] == done.report["models"]["server_score"]
    for task in TASKS:
        assert report["models"]["dlcm"][task]["auc"] == pytest.approx(done.report["models"]["dlcm"][task]["auc"])


def test_days_between_are_used_by_nobody(done: Done, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = folder(tmp_path / "data", gap_likes=True)
    options = [
        "--data",
        str(KUAIRAND),
        "--tables",
        str(data),
        *DATES,
        "--seeds",
        "1",
        "--jobs",
        "1",
        "--models",
        "server_score_refreshed",
    ]
    assert main([*options, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["data"] == done.report["data"]
    options[3] = str(done.data)
    assert main([*options, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["models"] == report["models"]


def test_tuning_tries_the_same_number_of_settings_on_training_days(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*done.options, "--tune", "--models", "edgerec,split,boosted_trees,split_no_client", "--json", "-"]) == 0
    tuned = json.loads(capsys.readouterr().out)["tuned"]
    assert {name: len(tried) for name, tried in tuned.items()} == {"edgerec": 4, "split": 4, "boosted_trees": 4}
    assert all(0 <= row["auc"]["like"] <= 1 for tried in tuned.values() for row in tried)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "world"], "--data: expected a data file, or the folder of a log"),
        (["--tables", "nowhere"], "nowhere/log_standard_*.csv*: expected a file"),
        (["--train-to", "May"], "--train-to: expected a day as YYYY-MM-DD"),
        (["--test-from", "2022-04-30"], "--test-from: expected a day after --train-to 2022-04-30"),
        (
            ["--test-from", "2023-01-01"],
            "expected rows up to 2022-04-30 and from 2023-01-01 on, got rows of 2022-04-27 to 2022-05-02",
        ),
        (["--train-to", "2022-04-27"], "expected more training days"),
        (["--models", "split,magic"], "--models: expected a comma list of server_score"),
        (["--work", "taken/work"], "taken/work: expected a folder to work in"),
        (["--json", "."], "--json: expected a file"),
    ],
)
def test_wrong_input_is_one_line(
    done: Done,
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert main([*done.options[:8], *options]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error


@pytest.mark.parametrize("option", ["--seeds", "--jobs"])
def test_counts_begin_at_one(done: Done, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*done.options, option, "0"])
    assert ended.value.code == 2
    assert "expected a count from 1, got 0" in capsys.readouterr().err
