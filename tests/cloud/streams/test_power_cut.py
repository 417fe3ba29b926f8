"""Power cuts under the feedback log: what the disk was not made to sync is lost, or half of it is."""

import random
from contextlib import closing
from pathlib import Path

import pytest

from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from tests.power.disk import Disk, disk_of

_WRITER = """
import itertools, sys
from pathlib import Path
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from tests.cloud.events import event
log = SqliteFeedbackLog(Path(sys.argv[1]) / "feedback.db", SqliteLogConfig(full_sync=sys.argv[2] == "full"))
for batch in itertools.count():
    if batch == int(sys.argv[3]):
        log.forget(7)
        print("forgotten", flush=True)
    events = [event(7 if i == 0 and batch < 9 else 1, session_id="x" * 400, event_id=f"{batch}-{i}") for i in range(20)]
    print(*(e.event_id for e in log.append(events).accepted), flush=True)
"""
_NEVER = "-1"


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return disk_of(tmp_path / "power")


def events_of(folder: Path) -> list[str]:
    """The log goes on after the cut: it opens, and takes and returns events."""
    with closing(SqliteFeedbackLog(folder / "feedback.db")) as log:
        log.check()
        found = [e.event_id for e in log.replay()]
        assert log.unreadable == 0
    return found


@pytest.mark.parametrize("batches", [1, 3, 60, 150])  # SQLite folds in the write-ahead file twice on the way
def test_acknowledged_events_survive_a_power_cut(disk: Disk, tmp_path: Path, batches: int) -> None:
    with disk.process(_WRITER, "full", _NEVER) as writer:
        acknowledged = " ".join([*writer.read(batches), *writer.kill()]).split()
    assert len(acknowledged) >= 20 * batches
    for seed in [None, *range(8)]:
        rng = None if seed is None else random.Random(seed)
        found = events_of(disk.after_cut(tmp_path / f"after-{seed}", rng))
        assert found[: len(acknowledged)] == acknowledged
        assert len(found) in (len(acknowledged), len(acknowledged) + 20), "the last batch, whole, was not acknowledged yet"


def test_a_log_that_does_not_sync_loses_the_last_batches_alone(disk: Disk, tmp_path: Path) -> None:
    with disk.process(_WRITER, "normal", _NEVER) as writer:
        acknowledged = " ".join([*writer.read(150), *writer.kill()]).split()
    lost = []
    for seed in [None, *range(8)]:
        rng = None if seed is None else random.Random(seed)
        found = events_of(disk.after_cut(tmp_path / f"after-{seed}", rng))
        assert found[: len(acknowledged)] == acknowledged[: len(found)]
        assert len(found) % 20 == 0, "whole batches"
        lost.append(len(acknowledged) - len(found))
    assert lost[0] > 0, "the disk keeps only what was synced"


def test_a_user_who_was_forgotten_stays_forgotten(disk: Disk, tmp_path: Path) -> None:
    with disk.process(_WRITER, "full", "30") as writer:
        assert writer.read(31)[-1] == "forgotten\n"
        writer.kill()
    for seed in [None, *range(4)]:
        folder = disk.after_cut(tmp_path / f"after-{seed}", None if seed is None else random.Random(seed))
        assert not any(name.endswith("-0") and int(name[:-2]) < 9 for name in events_of(folder))
