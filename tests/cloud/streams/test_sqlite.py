import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.streams.feedback_log import LogOpenError, LogWriteError
from cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from tests.cloud.events import event


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteFeedbackLog]:
    opened = SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db", SqliteLogConfig(replay_rows=3))
    yield opened
    opened.close()


def test_events_come_back_whole_and_in_order(log: SqliteFeedbackLog) -> None:
    events = [event(item_id=i, volume=0.5, muted=True, like=True, position=7 - i) for i in range(7)]
    assert log.append(events[:5]).accepted == tuple(events[:5])
    assert log.append(events[5:]).duplicates == 0
    assert list(log.replay()) == events


def test_an_event_counts_once_in_a_batch_and_across_batches(log: SqliteFeedbackLog) -> None:
    first, second = event(), event()
    assert log.append([first, first, second]) == ((first, second), 1)
    changed = event(event_id=first.event_id, like=True)
    assert log.append([changed, second]) == ((), 2)
    assert list(log.replay()) == [first, second]


def test_an_empty_batch_is_nothing(log: SqliteFeedbackLog) -> None:
    assert log.append([]) == ((), 0)
    assert list(log.replay()) == []


@given(batches=st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=6), max_size=6))
def test_whatever_the_ids_each_is_kept_once(tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]]) -> None:
    path = tmp_path_factory.mktemp("log") / "feedback.db"
    log = SqliteFeedbackLog(path, SqliteLogConfig(full_sync=False))
    results = [log.append([event(event_id=i) for i in batch]) for batch in batches]
    log.close()
    again = SqliteFeedbackLog(path)
    kept = [e.event_id for e in again.replay()]
    again.close()
    assert kept == list(dict.fromkeys(i for batch in batches for i in batch))
    assert [len(r.accepted) + r.duplicates for r in results] == [len(batch) for batch in batches]
    assert [e.event_id for r in results for e in r.accepted] == kept


def test_threads_that_send_the_same_events_have_each_accepted_once(log: SqliteFeedbackLog) -> None:
    events = [event() for _ in range(40)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda start: log.append(events[start : start + 20]), [0, 10, 20, 0, 10, 20, 5, 15]))
    accepted = Counter(e.event_id for r in results for e in r.accepted)
    assert accepted == Counter(e.event_id for e in events)
    assert sorted(e.event_id for e in log.replay()) == sorted(accepted)


def test_a_replay_goes_on_over_appends(log: SqliteFeedbackLog) -> None:
    log.append([event(item_id=i) for i in range(4)])
    replay = log.replay()
    assert next(replay).item_id == 0
    log.append([event(item_id=4)])
    assert [e.item_id for e in replay] == [1, 2, 3, 4]


def test_a_full_log_refuses_the_whole_batch_and_keeps_what_it_has(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    log = SqliteFeedbackLog(path, SqliteLogConfig(bytes_max=64 * 1024))
    kept = [event()]
    log.append(kept)
    with pytest.raises(LogWriteError, match="full") as caught:
        log.append([event(session_id="x" * 1000) for _ in range(200)])
    assert caught.value.where == str(path)
    assert list(log.replay()) == kept
    another = event()
    assert log.append([another]).accepted == (another,)
    log.close()


def test_a_file_system_without_room_is_a_typed_error_and_loses_nothing(tmp_path: Path) -> None:
    """A real limit of the operating system on the size of a file, in a process of its own."""
    path = tmp_path / "feedback.db"
    code = f"""
import resource, signal
from pathlib import Path
from cloud.streams.feedback_log import LogWriteError
from cloud.streams.sqlite import SqliteFeedbackLog
from tests.cloud.events import event
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = SqliteFeedbackLog(Path({str(path)!r}))
log.append([event(event_id="kept")])
resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, 64 * 1024))
try:
    log.append([event(session_id="x" * 1000) for _ in range(200)])
except LogWriteError as error:
    print("refused", [e.event_id for e in log.replay()])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (result.stdout, result.returncode) == ("refused ['kept']\n", 0), result.stderr
    log = SqliteFeedbackLog(path)
    assert [e.event_id for e in log.replay()] == ["kept"]
    log.close()


def test_a_second_process_is_refused_while_the_first_has_the_log(log: SqliteFeedbackLog, tmp_path: Path) -> None:
    with pytest.raises(LogOpenError, match="another process holds"):
        SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db")
    log.close()
    SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db").close()


def test_a_closed_log_says_so(log: SqliteFeedbackLog) -> None:
    log.close()
    log.close()
    with pytest.raises(LogWriteError, match="closed"):
        log.append([event()])
    with pytest.raises(LogOpenError, match="closed"):
        next(log.replay())


def test_what_is_no_log_is_refused_and_left_alone(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_bytes(b"hello, not a database, but long enough to be read as one " * 20)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    db.close()
    for path in (text, other, tmp_path):
        before = None if path.is_dir() else path.read_bytes()
        with pytest.raises(LogOpenError, match=str(path)):
            SqliteFeedbackLog(path)
        assert before is None or path.read_bytes() == before


def test_a_damaged_event_is_named(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    log = SqliteFeedbackLog(path)
    log.append([event(), event()])
    log.close()
    with sqlite3.connect(path) as db:
        db.execute("UPDATE event SET body = x'c1' WHERE place = 2")
    db.close()
    log = SqliteFeedbackLog(path)
    replay = log.replay()
    next(replay)
    with pytest.raises(LogOpenError, match="place 2"):
        next(replay)
    log.close()
