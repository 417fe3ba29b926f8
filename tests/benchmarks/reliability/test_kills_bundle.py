from pathlib import Path

from benchmarks.reliability.kills_bundle import kill_switches

KILLS = 5


def test_one_valid_bundle_is_active_after_each_kill(tmp_path: Path) -> None:
    shares: list[float] = []
    report = kill_switches(tmp_path, KILLS, 0, shares.append)
    assert (report["kills"], report["invalid_bundles_active"]) == (KILLS, 0)
    assert sum(report["at"].values()) == len(shares) == KILLS
