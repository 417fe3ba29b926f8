import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults import SITUATIONS, FaultConfig, swipe_through_faults
from benchmarks.faulty_cloud import FAULTS
from benchmarks.kills_device import MARKS
from benchmarks.kills_events import KillConfig, kill_devices, twice
from benchmarks.reliability import main
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


def test_wrong_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--device", "--kills", "1"]) == 2
    assert "--kills: expected 2 or more" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([])
