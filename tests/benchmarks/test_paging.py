import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from benchmarks.paging import BASELINE, POLICIES, judge, main
from pocketrank.device.contract import PagingModel
from pocketrank.device.paging import UpliftPaging
from pocketrank.sdk_demo.emulator.figures import FIGURES
from pocketrank.sdk_demo.emulator.records import SessionRecord
from tests.benchmarks.tiny_world import SEED, tiny_world


@dataclass(frozen=True)
class Done:
    """A finished benchmark of a tiny world."""

    options: list[str]
    folder: Path
    report: dict[str, Any]
    said: str


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Done:
    folder = tmp_path_factory.mktemp("paging")
    tiny_world(tmp_path_factory, folder)
    options = ["--world", str(folder / "world.toml"), "--worlds", "default", "--sessions", "6", "--logged", "30"]
    options += ["--work", str(folder / "work"), "--seed", str(SEED)]
    files = ["--json", str(folder / "report.json"), "--plot", str(folder / "curve.png"), "--model", str(folder / "model.json")]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as out:
        patch.setenv("COLUMNS", "120")
        assert main([*options, *files]) == 0
    return Done(options, folder, json.loads((folder / "report.json").read_text()), out.getvalue())


def test_every_policy_is_on_the_curve_with_its_figures(done: Done) -> None:
    assert len(list((done.folder / "work").glob("trained-*"))) == 1, "what was trained before was found"
    assert done.report["simulated"] is True
    curve = done.report["worlds"]["default"]["curve"]
    assert [row["policy"] for row in curve] == [policy.name for policy in POLICIES]
    for row in curve:
        for name in FIGURES:
            assert row[name]["ci95"][0] <= row[name]["mean"] <= row[name]["ci95"][1], (row["policy"], name)


def test_phones_were_told_the_price_and_learned_from_those_that_asked_at_random(done: Done) -> None:
    crunch = done.report["worlds"]["default"]["crunch"]
    sizes = [crunch[price]["candidates_per_request"]["mean"] for price in ("0.3", "1", "3")]
    assert np.diff(sizes).min() > -1e-9, "a mean of equal sizes is as exact as a float"
    assert done.report["model"]["learned_from"] >= 30
    assert done.report["model"]["simulated"] is True


def test_the_model_is_left_as_a_bundle_takes_it(done: Done) -> None:
    model = msgspec.json.decode((done.folder / "model.json").read_bytes(), type=PagingModel)
    told = json.loads(msgspec.json.encode(model))
    assert {name: done.report["model"][name] for name in told} == told
    UpliftPaging(model)


def test_the_curves_are_drawn_and_a_reader_sees_that_users_are_simulated(done: Done) -> None:
    assert (done.folder / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "Simulated users" in done.said
    assert f"uplift, against {BASELINE.name}" in done.said


def test_what_is_finished_is_not_done_again(done: Done, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*done.options, "--json", "-"]) == 0
    printed = capsys.readouterr()
    again = json.loads(printed.out)
    assert again["worlds"] == done.report["worlds"]
    assert "ask at random" not in printed.err
    assert "default: price" not in printed.err


def _sessions(views: dict[str, int], requests: dict[str, int]) -> list[SessionRecord]:
    """Twenty like sessions of every policy: those named, and the others with one view for ten requests."""
    return [
        SessionRecord(
            policy.name,
            user_id=user,
            effective=[True] * views.get(policy.name, 1),
            requests=requests.get(policy.name, 10),
            candidates=60,
        )
        for policy in POLICIES
        for user in range(20)
    ]


def test_ratios_are_to_the_published_rule_and_mixtures_lie_between_policies() -> None:
    cheap, rich = (policy.name for policy in POLICIES if policy.kind == "uplift" and policy.price != 1)
    records = _sessions({BASELINE.name: 6, cheap: 4, rich: 8}, {BASELINE.name: 4, cheap: 1, rich: 5})
    world = judge(records, 0, "a world")
    # Half of each has 6 views for 3 requests; a quarter and three quarters have 7 for 4.
    assert world["requests_at_equal_engagement"]["mean"] == pytest.approx(3 / 4)
    assert world["engagement_gain_at_equal_requests"]["mean"] == pytest.approx(1 / 6)
    assert world["requests_at_equal_engagement"]["ci95"] == pytest.approx([3 / 4, 3 / 4])


def test_who_learns_nothing_may_mix_too() -> None:
    one, other = [policy.name for policy in POLICIES if policy.kind == "fixed"][1:3]
    ours = next(policy for policy in POLICIES if policy.kind == "uplift" and policy.price == 1)
    records = _sessions({one: 2, other: 6, ours.name: 5}, {one: 1, other: 3, ours.name: 2})
    timing = judge(records, 0, "a world")["learned_timing"]["1"]
    assert timing["mixture"] == pytest.approx({one: 0.5, other: 0.5})
    assert timing["gain"]["mean"] == pytest.approx(5 / 4 - 1)


def test_what_cannot_be_reached_is_null() -> None:
    records = _sessions({BASELINE.name: 5}, {BASELINE.name: 4, "fixed 6 of 30": 9})
    world = judge(records, 0, "a world")
    assert world["requests_at_equal_engagement"] == {"mean": None, "ci95": None}
    ours = next(policy.name for policy in POLICIES if policy.kind == "uplift" and policy.price == 1)
    fewer = judge(_sessions({}, {ours: 1}), 0, "a world")["learned_timing"]["1"]
    assert fewer == {"gain": None, "mixture": None}


@pytest.mark.parametrize(
    ("options", "message"),
    [(["--worlds", "mars"], "--worlds: expected a comma list"), (["--work", "taken/work"], "expected a folder to work in")],
)
def test_wrong_input_is_one_line(
    options: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken").write_text("a file")
    assert main(options) == 2
    assert message in capsys.readouterr().err
