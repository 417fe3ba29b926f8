import json
from pathlib import Path

from benchmarks.join import main


def test_every_event_is_joined_and_its_samples_are_in_the_log(tmp_path: Path) -> None:
    assert main(["--json", str(tmp_path / "join.json"), "--pages", "40", "--users", "8", "--shown", "5"]) == 0
    report = json.loads((tmp_path / "join.json").read_text())
    assert report["events"] == 40 * 5
    # Each event has a sample, and each but the last one of a user corrects the one before.
    assert report["samples_in_log"] == 2 * 200 - 8
    assert report["samples_per_event"] == (2 * 200 - 8) / 200
    for name in ("state", "process", "process_per_cpu_s"):
        assert report[name]["samples_per_s"] > report[name]["events_per_s"] > 0
