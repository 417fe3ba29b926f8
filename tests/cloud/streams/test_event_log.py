import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from pocketrank.cloud.streams.event_log import (
    TOPICS,
    EventLogOpenError,
    EventLogWriteError,
    NewRecord,
    Topic,
)
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import Retention, SqliteEventLog, SqliteEventsConfig
from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import FeedbackEvent
from tests.cloud.streams.test_event_logs import record, values


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "events"


@pytest.fixture
def log(path: Path) -> Iterator[SqliteEventLog]:
    opened = SqliteEventLog(path)
    yield opened
    opened.close()


def event(number: int, user: int = 1) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=f"e{number}", user_id=user, session_id="s", item_id=number, position=0, impression_ms=1, watch_ms=1
    )


def test_every_topic_has_a_name() -> None:
    assert get_args(Topic) == TOPICS


def test_feedback_is_read_from_its_log_and_written_there(path: Path, tmp_path: Path) -> None:
    feedback = SqliteFeedbackLog(tmp_path / "feedback.db")
    log = SqliteEventLog(feedback.events, feedback)
    feedback.append([event(1), event(2, user=2)])
    part = log.read("feedback", {})
    assert [from_msgpack(one.value, FeedbackEvent) for one in part.records] == [event(1), event(2, user=2)]
    assert [one.key for one in part.records] == [1, 2]
    assert all(one.appended_ms > 1_700_000_000_000 for one in part.records)
    assert part.offsets == log.ends("feedback")
    feedback.append([event(3)])
    feedback.forget(2)
    after = log.read("feedback", part.offsets)
    assert [(one.key, bool(one.value)) for one in after.records] == [(1, True), (2, False)], "a forgotten user is named"
    with pytest.raises(EventLogWriteError, match="feedback log"):
        log.append("feedback", [record(1)])
    log.close()
    feedback.close()


def test_a_forgotten_user_is_nowhere_in_the_files(log: SqliteEventLog, path: Path) -> None:
    secret = b"what nobody may find" * 20
    for topic in ("pages", "samples", "users"):
        log.append(topic, [NewRecord(7, secret), record(1, key=8)])
    assert log.forget(7) == 3
    for topic in ("pages", "samples", "users"):
        assert [(one.key, one.value) for one in log.read(topic, {}).records] == [(8, b"value 1"), (7, b"")]
    for file in path.parent.glob("events*"):
        assert secret not in file.read_bytes()


def test_what_is_old_goes_and_offsets_are_not_used_again(path: Path) -> None:
    # A record of this very millisecond is not older than 0 days.
    config = SqliteEventsConfig(retention={"pages": Retention(days=-1.0), "samples": Retention(bytes_max=100)})
    log = SqliteEventLog(path, config=config)
    log.append("pages", [record(number) for number in range(20)])
    log.append("samples", [NewRecord(1, bytes(10)) for _ in range(40)])
    log.append("items", [record(1)])
    end = log.ends("pages")
    while log.expire():
        pass
    assert not log.read("pages", {}).records
    assert 5 <= len(log.read("samples", {}).records) <= 11
    assert values(log, "items") == [b"value 1"], "the catalogue is kept"
    log.append("pages", [record(1)])
    assert log.read("pages", {}).records[0].offset == end[0]
    log.close()


def test_a_file_that_is_no_log_is_left_as_it_is(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    with pytest.raises(EventLogOpenError, match="format"):
        SqliteEventLog(path)
    assert path.read_bytes() == before


def test_a_closed_or_moved_log_takes_nothing(path: Path) -> None:
    log = SqliteEventLog(path)
    path.rename(path.with_name("moved"))
    with pytest.raises(EventLogWriteError):
        log.append("pages", [record(1)])
    log.close()
    log.close()
    with pytest.raises(EventLogWriteError, match="closed"):
        log.append("pages", [record(1)])
    with pytest.raises(EventLogOpenError, match="closed"):
        log.read("pages", {})


def test_kills_leave_whole_appends_and_places_with_their_effects(path: Path) -> None:
    for round_ in range(4):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cloud.streams.append_until_killed", str(path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        log = SqliteEventLog(path)
        before = log.ends("samples").get(0, 0)
        while log.ends("samples").get(0, 0) < before + 20 * (round_ + 1):
            pass
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        pages, samples = values(log), values(log, "samples")
        place = log.committed("reader")["pages"][0]
        assert samples == [str(number).encode() for number in range(1, place + 1)]
        assert pages[::2] == pages[1::2], "two records of one append, or none"
        log.close()
