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

from pocketrank.cloud.streams.feedback_log import LogBusyError, LogOpenError, LogWriteError
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from pocketrank.device.codec import to_msgpack
from tests.cloud.events import event


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteFeedbackLog]:
    opened = SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db", SqliteLogConfig(replay_rows=3))
    yield opened
    opened.close()


def test_events_are_replayed_whole_and_in_order(log: SqliteFeedbackLog) -> None:
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


def test_an_empty_batch_adds_nothing(log: SqliteFeedbackLog) -> None:
    assert log.append([]) == ((), 0)
    assert list(log.replay()) == []


@given(batches=st.lists(st.lists(st.text(min_size=1, max_size=3), max_size=6), max_size=6))
def test_any_event_id_is_kept_once(tmp_path_factory: pytest.TempPathFactory, batches: list[list[str]]) -> None:
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


def test_a_replay_continues_over_appends(log: SqliteFeedbackLog) -> None:
    log.append([event(item_id=i) for i in range(4)])
    replay = log.replay()
    assert next(replay).item_id == 0
    log.append([event(item_id=4)])
    assert [e.item_id for e in replay] == [1, 2, 3, 4]


def test_a_full_log_rejects_the_whole_batch_and_keeps_its_events(tmp_path: Path) -> None:
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


def test_a_full_file_system_is_a_typed_error_and_loses_nothing(tmp_path: Path) -> None:
    """A real limit of the operating system on the size of a file, in a process of its own."""
    path = tmp_path / "feedback.db"
    code = f"""
import resource, signal
from pathlib import Path
from pocketrank.cloud.streams.feedback_log import LogWriteError
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
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


def test_poll_returns_what_others_wrote_once(log: SqliteFeedbackLog, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "feedback.db"
    log.append([event(item_id=1)])
    other = SqliteFeedbackLog(path)
    assert other.poll() == ()  # from before it was opened: that is what a replay is for
    log.append([event(item_id=2), event(item_id=3)])
    other.append([event(item_id=4)])
    log.append([event(item_id=5)])
    assert [e.item_id for e in other.poll()] == [2, 3, 5]
    assert [e.item_id for e in log.poll()] == [4]
    assert list(log.poll()) == list(other.poll()) == []
    other.close()


def test_poll_returns_no_event_of_a_replay(log: SqliteFeedbackLog, tmp_path: Path) -> None:
    other = SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db")
    log.append([event(item_id=i) for i in range(5)])
    replay = other.replay()
    next(replay)
    log.append([event(item_id=5)])
    assert [e.item_id for e in replay] == [1, 2, 3, 4, 5]
    assert list(other.poll()) == []
    log.append([event(item_id=6)])
    assert [e.item_id for e in other.poll()] == [6]
    other.close()


@given(moves=st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcdef"), st.booleans()), max_size=20))
def test_own_and_polled_events_together_are_the_log(
    tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, str, bool]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "feedback.db"
    logs = [SqliteFeedbackLog(path, SqliteLogConfig(full_sync=False)) for _ in range(3)]
    known: list[list[str]] = [[], [], []]
    for who, name, listens in moves:
        known[who] += [e.event_id for e in logs[who].append([event(event_id=name)]).accepted]
        if listens:
            known[who] += [e.event_id for e in logs[who].poll()]
    for heard, log in zip(known, logs, strict=True):
        heard += [e.event_id for e in log.poll()]
        assert sorted(heard) == sorted({name for _, name, _ in moves})
        log.close()


_WRITER = """
import sys
from pathlib import Path
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from tests.cloud.events import event
log = SqliteFeedbackLog(Path(sys.argv[1]), SqliteLogConfig(busy_s=60))
for start in map(int, sys.stdin):
    kept = log.append([event(event_id=str(i)) for i in range(start, start + 8)])
    print(start, *(e.event_id for e in kept.accepted), flush=True)
"""


def test_processes_that_write_the_same_events_and_are_killed_lose_none_and_keep_each_once(tmp_path: Path) -> None:
    """All open a new log at once; then each batch of 8 overlaps with its neighbours', and -9 comes at any moment."""
    path, kills = tmp_path / "feedback.db", 3
    command = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    acknowledged: set[str] = set()
    accepted: Counter[str] = Counter()

    def write(writer: subprocess.Popen[str], last: int, killed_at: int | None) -> list[tuple[int, list[str]]]:
        assert writer.stdin is not None
        assert writer.stdout is not None
        said = []
        for start in range(0, last, 4):
            print(start, file=writer.stdin, flush=True)
            if start == killed_at:
                writer.kill()  # between the order and its receipt: it may be anywhere
            line = writer.stdout.readline()
            if not line.endswith("\n"):
                break
            at, *new = line.split()
            said.append((int(at), new))
        return said

    reader = SqliteFeedbackLog(path, SqliteLogConfig(busy_s=60))
    with ThreadPoolExecutor(4) as pool:
        jobs = [pool.submit(write, writer, 400, 40 * (1 + i) if i < kills else None) for i, writer in enumerate(writers)]
        for start, new in (line for job in jobs for line in job.result(timeout=120)):
            acknowledged.update(str(i) for i in range(start, start + 8))
            accepted.update(new)
    for writer in writers:
        for pipe in (writer.stdin, writer.stdout):
            assert pipe is not None
            pipe.close()
        writer.wait(30)
    heard = Counter(e.event_id for e in reader.poll())
    assert set(heard.values()) == {1}
    assert set(accepted.values()) == {1}
    assert acknowledged <= set(heard)
    assert set(heard) == {str(i) for i in range(404)}  # the one that lived sent them all
    assert Counter(e.event_id for e in reader.replay()) == heard
    later = event()
    assert reader.append([later]).accepted == (later,)
    reader.close()


def test_a_writer_that_locks_the_log_is_waited_for_and_blocks_no_reader(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    log = SqliteFeedbackLog(path, SqliteLogConfig(busy_s=0.05))
    kept, refused = [event()], event()
    log.append(kept)
    with sqlite3.connect(path, isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(4) as pool:  # those that wait together are refused together
            for job in [pool.submit(log.append, [refused]) for _ in range(4)]:
                with pytest.raises(LogBusyError, match=r"a turn to write within 0\.05 s"):
                    job.result()
        with pytest.raises(LogBusyError):
            log.check()
        assert list(log.replay()) == kept
        assert list(log.poll()) == []
        holder.execute("ROLLBACK")
    holder.close()
    assert log.append([refused]).accepted == (refused,)
    log.close()


def test_a_batch_without_room_fails_no_other_waiting_batch(tmp_path: Path) -> None:
    log = SqliteFeedbackLog(tmp_path / "feedback.db", SqliteLogConfig(bytes_max=96 * 1024))
    log.append([event()])
    large = [event(session_id="x" * 1000) for _ in range(200)]
    small = [event() for _ in range(7)]
    with ThreadPoolExecutor(8) as pool:
        too_large = pool.submit(log.append, large)
        jobs = [pool.submit(log.append, [one]) for one in small]
        assert [job.result().accepted for job in jobs] == [(one,) for one in small]
        with pytest.raises(LogWriteError, match="full"):
            too_large.result()
    assert len(list(log.replay())) == 8
    log.close()


def test_a_check_writes_and_fails_if_an_append_would(log: SqliteFeedbackLog, tmp_path: Path) -> None:
    other = SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db")
    log.check()
    assert list(other.poll()) == []
    other.close()
    log.close()
    with pytest.raises(LogWriteError, match="closed"):
        log.check()


def test_a_log_of_the_former_format_is_upgraded(tmp_path: Path) -> None:
    path, old = tmp_path / "feedback.db", [event(item_id=i) for i in range(3)]
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE event (place INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL)")
        db.executemany("INSERT INTO event (event_id, body) VALUES (?, ?)", [(e.event_id, to_msgpack(e)) for e in old])
        db.execute(f"PRAGMA application_id = {0x706B726B}")
        db.execute("PRAGMA user_version = 1")
    db.close()
    log = SqliteFeedbackLog(path)
    assert list(log.replay()) == old
    assert log.append([*old, event(item_id=3)]).duplicates == 3
    log.close()
    again = SqliteFeedbackLog(path)
    assert [e.item_id for e in again.replay()] == [0, 1, 2, 3]
    again.close()


def test_a_program_that_locks_the_file_is_an_open_error(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    SqliteFeedbackLog(path).close()
    with sqlite3.connect(path, isolation_level=None) as alone:
        alone.execute("PRAGMA locking_mode = EXCLUSIVE")
        alone.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogOpenError, match="another process has locked"):
            SqliteFeedbackLog(path, SqliteLogConfig(busy_s=0.05))
    alone.close()


def test_a_closed_log_is_an_error(log: SqliteFeedbackLog) -> None:
    log.close()
    log.close()
    with pytest.raises(LogWriteError, match="closed"):
        log.append([event()])
    with pytest.raises(LogOpenError, match="closed"):
        next(log.replay())
    with pytest.raises(LogOpenError, match="closed"):
        log.poll()


def test_a_file_that_is_no_log_is_rejected_and_unchanged(tmp_path: Path) -> None:
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


def test_a_damaged_event_is_raised_once_by_poll_and_the_others_are_returned(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    log, other = SqliteFeedbackLog(path), SqliteFeedbackLog(path)
    other.append([event(item_id=i) for i in range(5)])
    with sqlite3.connect(path) as db:
        db.execute("UPDATE event SET body = x'c1' WHERE place IN (3, 4)")
    db.close()
    assert [e.item_id for e in log.poll()] == [0, 1]
    for place in (3, 4):
        with pytest.raises(LogOpenError, match=f"place {place}"):
            log.poll()
    assert [e.item_id for e in log.poll()] == [4]
    assert list(log.poll()) == []
    log.close()
    other.close()
