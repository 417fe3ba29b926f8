import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import pytest

from benchmarks.emulation import PLAYERS, main
from pocketrank.sdk_demo.emulator.figures import FIGURES
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.world import VARIANTS
from tests.benchmarks.tiny_world import tiny_world

WORLDS = ("default", "longer_feedback_delay")


@dataclass(frozen=True)
class Done:
    """A finished benchmark of tiny worlds."""

    options: list[str]
    work: Path
    report: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("emulation")
    tiny_world(tmp_path_factory, folder)
    options = ["--world", str(folder / "world.toml"), "--worlds", ",".join(WORLDS), "--sessions", "20", "--seeds", "1"]
    options += ["--work", str(folder / "work")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "120")
        said = _said([*options, "--json", str(folder / "report.json")])
    return Done(options, folder / "work", json.loads((folder / "report.json").read_text()), said)


def _said(options: list[str]) -> str:
    with redirect_stdout(StringIO()) as out:
        assert main(options) == 0
    return out.getvalue()


def test_the_report_has_every_share_with_its_interval(done: Done) -> None:
    assert done.report["simulated"] is True
    assert tuple(done.report["worlds"]) == WORLDS
    for world in done.report["worlds"].values():
        for policy in PLAYERS:
            for name in ("uplift_share", *FIGURES):
                figure = world[policy][name]
                assert figure["ci95"][0] <= figure["mean"] <= figure["ci95"][1], (policy, name)
        assert world["cloud_order"]["uplift_share"] == {"mean": 0, "ci95": [0, 0]}
        assert world["oracle"]["uplift_share"] == {"mean": 1, "ci95": [1, 1]}
        views = {policy: world[policy]["effective_views_per_session"]["mean"] for policy in PLAYERS}
        for policy in ("refreshed", "greedy", "beam"):
            share = (views[policy] - views["cloud_order"]) / (views["oracle"] - views["cloud_order"])
            assert world[policy]["uplift_share"]["mean"] == pytest.approx(share)
        gain = world["beam_over_greedy"]["effective_views_per_session"]
        assert gain["mean"] == pytest.approx(views["beam"] - views["greedy"])
        assert world["refreshed"]["requests_per_session"]["mean"] > world["cloud_order"]["requests_per_session"]["mean"]


def test_every_training_is_told_by_itself_and_its_sessions_are_known(done: Done) -> None:
    assert done.report["trainings"] == [1]
    for world in done.report["worlds"].values():
        assert world["trainings"] == {"1": {policy: {"uplift_share": world[policy]["uplift_share"]} for policy in PLAYERS}}
    for file in done.work.glob("played-*"):
        records = msgspec.json.decode(file.read_bytes(), type=list[SessionRecord])
        assert {record.training for record in records} == {1}, "resampled as one training"
        assert len(records) == 20 * len(PLAYERS)


def test_worlds_differ_in_what_they_say(done: Done) -> None:
    worlds = done.report["worlds"]
    assert [worlds[name]["feedback_delay_s"] for name in WORLDS] == [0, VARIANTS["longer_feedback_delay"].feedback_delay_s]
    assert worlds["default"]["cloud_order"] != worlds["longer_feedback_delay"]["cloud_order"]


def test_worlds_with_the_same_log_share_their_training(done: Done) -> None:
    assert len(list(done.work.glob("trained-*"))) == 1
    assert len(list(done.work.glob("played-*"))) == len(WORLDS)


def test_what_is_finished_is_not_done_again_and_what_is_lost_is(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    lost, *kept = sorted(done.work.glob("played-*"))
    before = {path: path.stat().st_mtime_ns for path in (*kept, *done.work.glob("trained-*/run/run.json"))}
    lost.unlink()
    assert main([*done.options, "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == done.report
    assert printed.err.count("emulate, seed") == 1
    assert lost.is_file()
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_reader_sees_worlds_shares_and_that_it_is_simulated(done: Done) -> None:
    for name in WORLDS:
        assert f"{name}: {VARIANTS[name].description}" in done.said
    share = done.report["worlds"]["default"]["refreshed"]["uplift_share"]
    assert f"{share['mean']:.2f} ({share['ci95'][0]:.2f} to {share['ci95'][1]:.2f})" in done.said
    assert "Simulated users" in done.said


def test_sessions_that_cannot_be_read_are_one_line(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    file = sorted(done.work.glob("played-*"))[0]
    held = file.read_bytes()
    try:
        file.write_bytes(held[: len(held) // 2])
        assert main(done.options) == 2
    finally:
        file.write_bytes(held)
    assert f"error: {file}: expected the sessions that were kept there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--worlds", "default,mars"], "--worlds: expected a comma list of default, faster_drift"),
        (["--world", "nowhere.toml"], "nowhere.toml"),
        (["--json", "."], "--json: expected a file"),
        (["--work", "taken/work"], "taken/work: expected a folder to work in"),
    ],
)
def test_wrong_input_is_one_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert main(options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error


@pytest.mark.parametrize("option", ["--sessions", "--seeds"])
def test_counts_begin_at_one(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([option, "0"])
    assert ended.value.code == 2
    assert "expected a count from 1, got 0" in capsys.readouterr().err
