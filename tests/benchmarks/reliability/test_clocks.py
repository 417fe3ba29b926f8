from pathlib import Path
from typing import Any

from benchmarks.reliability.clocks import deviation, run_chaos
from benchmarks.reliability.clocks_world import ChaosConfig


def chaos(work: Path, sequences: int, seed: int = 0, config: ChaosConfig | None = None) -> dict[str, Any]:
    return run_chaos(work, sequences, seed, lambda share: None, config)


def test_no_clock_stops_a_session_or_loses_or_displaces_an_event(tmp_path: Path) -> None:
    """A failure names the seed that repeats it: `--device --only clocks --sequences 1 --seed SEED`."""
    report = chaos(tmp_path, 200)
    assert report["failed"] == []
    assert [report[name] for name in ("stuck_sessions", "lost_events", "states_differing")] == [0, 0, 0]
    assert report["set_while_on"]["bound_ms"] < 200_000
    assert report["set_while_on"]["sequences"] + report["set_while_off"]["sequences"] == report["sequences"] == 200
    assert all(report[part]["deviation_ms"] <= report[part]["bound_ms"] for part in ("set_while_on", "set_while_off"))
    counts = report["counts"]
    assert min(counts[name] for name in ("device_steps", "server_steps", "suspends", "reboots", "server_restarts")) > 100
    assert 0 < counts["corrected"] < counts["events"]


def test_a_seed_repeats_its_sequence(tmp_path: Path) -> None:
    first, again = (chaos(tmp_path / name, 3, seed=5) for name in ("first", "again"))
    assert first == again
    assert first["counts"] != chaos(tmp_path / "other", 3, seed=9)["counts"]


def test_a_session_without_time_to_recover_is_stuck(tmp_path: Path) -> None:
    report = chaos(tmp_path, 5, config=ChaosConfig(recovery_ms=0))
    assert report["stuck_sessions"] >= 5
    assert [failed["seed"] for failed in report["failed"]] == list(range(5))


def test_events_of_another_order_are_as_far_as_they_were_shown_from_one_another() -> None:
    assert deviation([]) == deviation([1, 4, 4, 9]) == 0
    assert deviation([1, 9, 3, 5, 9, 12, 10]) == 6
