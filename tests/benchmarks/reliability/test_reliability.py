import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.reliability.__main__ import main
from benchmarks.reliability.cloud_devices import Effect
from benchmarks.reliability.cloud_disk import DiskConfig, fill_disk
from benchmarks.reliability.cloud_kills import CloudKillConfig, kill_servers, wrong_effect
from benchmarks.reliability.cloud_overload import OverloadConfig, overload, recovery
from benchmarks.reliability.cloud_start import StartConfig, start_servers
from benchmarks.reliability.cloud_store import StoreKillConfig, kill_store
from benchmarks.reliability.faults import SITUATIONS, FaultConfig, swipe_through_faults
from benchmarks.reliability.faulty_cloud import FAULTS
from benchmarks.reliability.kills_device import MARKS
from benchmarks.reliability.kills_events import KillConfig, kill_devices, twice
from benchmarks.reliability.open_loop import DROPPED, MALFORMED, UNSENT, OpenResult
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.training.run import Run
from tests.cloud.events import event
from tests.cloud.small_published import small_run
from tests.device.worlds import make_event


def test_killed_devices_lose_nothing(tmp_path: Path) -> None:
    told: list[float] = []
    config = KillConfig(lives=8, server_share=0.3)
    report = kill_devices(tmp_path, 20, 0, told.append, config)
    assert report["kills"] == 20
    assert report["killed"] == {"writing": 10, "writing_and_uploading": 10, "servers": report["killed"]["servers"]}
    assert report["killed"]["servers"] > 0
    assert report["events_taken"] > 100
    assert [report[name] for name in ("events_lost", "events_twice", "repeats_taken", "damaged", "not_emptied")] == [0] * 5
    assert list(report["during"]) == [*MARKS, "nothing"]
    assert sum(report["during"].values()) >= 20
    assert told[-1] == 1


def test_a_start_from_a_snapshot_counts_all_events(tmp_path: Path) -> None:
    report = start_servers(tmp_path, 0, lambda share: None, StartConfig(events=2000, after=100, items=60))
    assert [report[start]["events"] for start in ("empty", "replay", "snapshot")] == [0, 2000, 2100]
    assert report["snapshot_bytes"] > 48 * 2000, "all are in it"
    assert min(report[start][name] for start in ("empty", "replay", "snapshot") for name in ("ready_s", "memory_bytes")) > 0
    stall = report["stall"]
    assert 0 < stall["saving_p50_ms"] <= stall["saving_p99_ms"] <= stall["saving_max_ms"]


def test_an_impression_that_is_applied_under_two_ids_is_seen() -> None:
    assert twice([make_event(1, 0), make_event(2, 1)]) == 0
    assert twice([make_event(1, 0), make_event(1, 0, event_id="other"), make_event(2, 1)]) == 1


def test_swipes_go_on_through_all_faults(tmp_path: Path) -> None:
    config = FaultConfig(swipes=40, calls=2, items=500)
    report = swipe_through_faults(tmp_path, lambda share: None, config)
    assert list(report["situations"]) == list(SITUATIONS)
    for name, day in report["situations"].items():
        assert day["swipes"] >= 80
        assert [day["counts"].get(what, 0) for what in ("raised", "showed_nothing", "shown_twice")] == [0, 0, 0]
        assert (day["events_lost"], day["events_twice"]) == (0, 0)
        assert day["events_taken"] == day["swipes"]
        if name in FAULTS:
            assert day["counts"]["pages_missing"] + day["counts"]["uploads_failed"] > 0
    assert report["situations"]["full_disk"]["counts"]["writes_failed"] > 0


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert main(["--device", "--only", "events", "--kills", "4", "--json", str(file)]) == 0
    report: dict[str, Any] = json.loads(file.read_text())["device"]
    assert report["kills"] == report["events"]["kills"] == 3
    assert (report["events_lost"], report["events_twice"]) == (0, 0)
    assert "failed_swipes" not in report
    assert "events lost" in capsys.readouterr().out


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run.open(small_run(tmp_path_factory.mktemp("run"), items=3000, users=300).folder)


def test_an_overloaded_cloud_answers_and_recovers(tmp_path: Path, world: Run) -> None:
    config = OverloadConfig(
        seconds=3.0,
        capacity_s=0.5,
        capacity_rounds=2,
        calm_s=2.0,
        after_s=4.0,
        window_s=0.3,
        samples=30,
        series=3,
        requests=2000,
    )
    told: list[float] = []
    report = overload(tmp_path, 0, told.append, config, world)
    assert report["unexpected_5xx"] == sum(report["unexpected"].values()) == 0
    assert report["first_error"] is None
    assert report["answers"]["200"] == report["overload"]["pages"] > 0
    assert set(report["answers"]) <= {"200", "429", "unsent"}
    assert report["offered_rps"] == 2 * report["capacity_rps"] > 0
    assert report["price_most"] > report["before"]["price"] == 1
    assert report["before"]["whole_share"] > 0
    assert set(report["overload"]["degraded_share"]) <= {"fewer_ranked", "cached_ranking", "popular"}
    assert np.isfinite(report["memory_growth"])
    assert report["memory"]["end"] > 1e6
    assert sum(row["pages"] for row in report["series"]) == report["overload"]["pages"]
    assert max(told) <= 1


def arrived(*rows: tuple[float, int, float, int]) -> OpenResult:
    """Answers at a second, with a status, after milliseconds, 0 whole or 1 degraded."""
    at, status, ms, reason = (np.array(column) for column in zip(*rows, strict=True))
    none = np.zeros(len(rows))
    reasons: tuple[tuple[str, ...], ...] = ((), ("popular", "no_vectors"))
    return OpenResult(at, status, ms, none + 1, reason, none, none, reasons, None, busy=0.1, late_p99_ms=0.1)


def test_recovery_is_the_first_whole_and_quick_second() -> None:
    calm = [(10 + 0.1 * i, 200, 5.0, 0) for i in range(30)]
    assert recovery(arrived((9.9, 200, 900.0, 1), *calm), 10, 8, 1.0) == 0
    slow = [(at, 200, 9.0 if i == 4 else ms, lacks) for i, (at, _, ms, lacks) in enumerate(calm)]
    assert recovery(arrived(*slow), 10, 8, 1.0) == pytest.approx(0.5)
    refused = [(at, 429 if i == 11 else 200, ms, lacks) for i, (at, _, ms, lacks) in enumerate(slow)]
    assert recovery(arrived(*refused), 10, 8, 1.0) == pytest.approx(1.2)
    degraded = [(at, status, ms, int(i % 8 == 0)) for i, (at, status, ms, _) in enumerate(calm)]
    assert recovery(arrived(*degraded), 10, 8, 1.0) is None


def test_what_should_not_be_answered_is_counted() -> None:
    statuses = (200, 200, 429, 404, 500, 503, UNSENT, DROPPED, MALFORMED)
    result = arrived(*((float(i), status, 1.0, i % 2) for i, status in enumerate(statuses)))
    found = result.unexpected()
    assert found == {"unexpected_5xx": 4, "status_5xx": 2, "dropped": 1, "malformed": 1, "other": 1, "mute": 1}
    every = result.between(0, 9)
    assert result.answers(every) == {
        "unsent": 1, "dropped": 1, "malformed": 1, "200": 2, "404": 1, "429": 1, "500": 1, "503": 1,
    }  # fmt: skip
    assert result.pages(every)["degraded_share"] == {"no_vectors": 0.5, "popular": 0.5}
    assert result.pages(result.between(2, 9)) == {"pages": 0}


def test_a_killed_cloud_loses_nothing(tmp_path: Path) -> None:
    config = CloudKillConfig(lives=6, workers_every=5, worker_kills=1, starting_share=0.3)
    told: list[float] = []
    report = kill_servers(tmp_path, 8, 0, told.append, config)
    assert report["kills"] == sum(report["killed"].values()) == 8
    assert report["killed"]["workers"] == 1
    assert report["events_acknowledged"] == 4 * report["batches"] > 0
    assert report["broken"] > 0
    assert report["effects_seen"] == report["resent"]
    zero = ("events_lost", "events_twice", "unexpected_5xx")
    assert [report[name] for name in zero] == [0] * 3
    assert told[-1] == 1


def test_a_second_effect_would_be_seen(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    ids = [int(item) for item in run.published.item_id[1:5]]
    events = tuple(event(77, item, position=i) for i, item in enumerate(ids))
    states = UserStates(run.published, run.record)
    for times in (1, 2):
        states.apply(events)
        vector = run.expected_vector(0, states(77).history).astype(np.float16)
        assert wrong_effect(run, Effect(events, vector)) == (times == 2)


def test_a_cloud_without_its_store_goes_on(tmp_path: Path, world: Run) -> None:
    config = StoreKillConfig(rps=60, kills=2, before_s=0.5, away_s=0.7, back_s=2.0, requests=100)
    report = kill_store(tmp_path, 0, lambda share: None, config, world)
    assert report["kills"] == len(report["vectors_s_each"]) == 2
    assert report["unexpected_5xx"] == sum(report["unexpected"].values()) == 0
    assert report["away"]["without_vectors"] > 0
    assert report["away"]["degraded_share"]["no_user_vector"] > 0
    assert 0 <= report["vectors_s"] < 2
    assert report["after"]["without_vectors"] < report["after"]["pages"]


def test_a_cloud_on_a_full_disk_refuses_and_loses_nothing(tmp_path: Path) -> None:
    config = DiskConfig(bytes=16 << 20, before_s=0.7, full_s=1.0, after_s=0.7)
    report = fill_disk(tmp_path, 0, lambda share: None, config)
    assert report["kind"] in ("tmpfs", "limit")
    assert report["refused"] > 0
    zero = ("unexpected_5xx", "events_lost", "events_twice", "refused_without_retry_after", "refused_otherwise")
    assert [report[name] for name in zero] == [0] * 5
    assert report["effects_seen"] > 0
    assert list(report["pages"]) == ["200"]
    assert report["pages_while_full"]["pages"] > 0


def test_the_clouds_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    assert main(["--cloud", "--only", "kills", "--kills", "2", "--json", str(file)]) == 0
    report: dict[str, Any] = json.loads(file.read_text())["cloud"]
    assert report["kills"] == report["kills_under_load"]["kills"] == 2
    assert (report["unexpected_5xx"], report["events_lost"], report["events_twice"]) == (0, 0, 0)
    assert "memory_growth" not in report
    assert "kills_under_load.resent" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (["--device", "--only", "overload"], "--only: expected one of events, switches"),
        (["--cloud", "--only", "hostile"], "--only: expected one of overload, kills"),
        (["--cloud", "--minutes", "0"], "--minutes and --items: expected numbers above 0"),
        (["--cloud", "--kills", "1"], "--kills: expected 2 or more"),
    ],
)
def test_wrong_options_of_a_side(wrong: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(wrong) == 2
    assert told in capsys.readouterr().err


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "--kills", "1"]) == 2
    assert "--kills: expected 2 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
