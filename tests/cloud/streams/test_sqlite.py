import os
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from itertools import count
from pathlib import Path
from time import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.streams.feedback_log import Forgotten, LogBusyError, LoggedEvent, LogOpenError, LogWriteError
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import FeedbackEvent
from tests.cloud.events import event
from tests.cloud.serving.running import until


class Reader:
    """Somebody who follows a log: from its end, or from `place`."""

    def __init__(self, log: SqliteFeedbackLog, place: int | None = None) -> None:
        self._log, self._forgotten = log, list[int]()
        self.place = log.ends()[1] if place is None else place

    def read(self) -> list[FeedbackEvent]:
        records = self._log.read(self.place)
        assert list(records.places) == sorted(set(records.places))
        assert all(self.place < place <= records.end for place in records.places)
        self.place = records.end
        self._forgotten += [user for _, user in records.forgotten]
        return list(records.events)

    def forgotten(self) -> list[int]:
        users, self._forgotten = self._forgotten, []
        return users


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteFeedbackLog]:
    opened = SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db", SqliteLogConfig(replay_rows=3))
    yield opened
    opened.close()


def test_events_are_replayed_whole_and_in_order(log: SqliteFeedbackLog) -> None:
    events = [event(item_id=i, volume=0.5, muted=True, like=True, position=7 - i) for i in range(7)]
    assert log.append(events[:5]) == (tuple(events[:5]), 0, range(1, 6))
    again = log.append([*events[4:], events[3]])
    assert (again.accepted, again.duplicates) == (tuple(events[5:]), 2)
    assert log.read(5).places == again.places, "a repeated event may use up a place"
    assert list(log.replay()) == events


def test_an_event_counts_once_in_a_batch_and_across_batches(log: SqliteFeedbackLog) -> None:
    first, second = event(), event()
    assert log.append([first, first, second])[:2] == ((first, second), 1)
    changed = event(event_id=first.event_id, like=True)
    assert log.append([changed, second]) == ((), 2, [])
    assert list(log.replay()) == [first, second]


def test_an_empty_batch_adds_nothing(log: SqliteFeedbackLog) -> None:
    assert log.append([]) == ((), 0, range(1, 1))
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


def test_each_reads_what_all_wrote_once_and_in_the_order_of_acceptance(log: SqliteFeedbackLog, tmp_path: Path) -> None:
    log.append([event(item_id=1)])
    with closing(SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db")) as other:
        one, another = Reader(log), Reader(other)
        assert one.read() == another.read() == []
        log.append([event(item_id=2), event(item_id=3)])
        other.append([event(item_id=4)])
        log.append([event(item_id=5)])
        assert [e.item_id for e in one.read()] == [e.item_id for e in another.read()] == [2, 3, 4, 5]
        assert one.read() == another.read() == []
        assert [e.item_id for e in log.read(0, 2).events] == [1, 2]


def test_news_are_what_others_wrote(log: SqliteFeedbackLog, tmp_path: Path) -> None:
    with closing(SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db")) as other:
        log.append([event()])
        assert (log.news(0), other.news(0), other.news(1)) == (False, True, False)
        other.append([event()])
        assert (log.news(0), log.news(1), log.news(2), other.news(1)) == (True, True, False, False)
        log.append([event()])
        assert (log.news(1), log.news(2), other.news(2)) == (True, False, True)
        log.forget(7)
        assert (log.news(3), other.news(3)) == (True, True)
        assert (log.news(4), other.news(4)) == (False, False)


def test_news_that_were_deleted_are_none(log: SqliteFeedbackLog, tmp_path: Path) -> None:
    with closing(SqliteFeedbackLog(tmp_path / "new folder" / "feedback.db")) as other:
        other.append([event(7)])
        assert log.news(0)
        with by_hand(tmp_path / "new folder" / "feedback.db") as db:
            db.execute("DELETE FROM event")
        assert log.read(0).end == 0
        assert not log.news(0)


@given(moves=st.lists(st.tuples(st.integers(0, 2), st.sampled_from("abcdef"), st.booleans()), max_size=20))
def test_all_read_the_same(tmp_path_factory: pytest.TempPathFactory, moves: list[tuple[int, str, bool]]) -> None:
    path = tmp_path_factory.mktemp("log") / "feedback.db"
    logs = [SqliteFeedbackLog(path, SqliteLogConfig(full_sync=False)) for _ in range(3)]
    readers = [Reader(log) for log in logs]
    known: list[list[str]] = [[], [], []]
    accepted: list[str] = []
    for who, name, reads in moves:
        accepted += [e.event_id for e in logs[who].append([event(event_id=name)]).accepted]
        if reads:
            assert not logs[who].news(readers[who].place) or accepted != known[who]
            known[who] += [e.event_id for e in readers[who].read()]
            assert not logs[who].news(readers[who].place)
    for heard, reader, log in zip(known, readers, logs, strict=True):
        heard += [e.event_id for e in reader.read()]
        assert heard == accepted == list(dict.fromkeys(name for _, name, _ in moves))
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
    follower = Reader(reader)
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
    heard = Counter(e.event_id for e in follower.read())
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
        assert not log.news(0)
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
    assert not other.news(0)
    assert Reader(other, 0).read() == []
    other.close()
    log.close()
    with pytest.raises(LogWriteError, match="closed"):
        log.check()


def former(path: Path, events: Sequence[FeedbackEvent], version: int = 2) -> Path:
    """Write a log as former versions did, readable by everybody."""
    writer = ", writer INTEGER NOT NULL DEFAULT 0" if version == 2 else ""
    with sqlite3.connect(path) as db:
        db.execute(f"CREATE TABLE event (place INTEGER PRIMARY KEY, event_id TEXT NOT NULL UNIQUE, body BLOB NOT NULL{writer})")
        db.executemany("INSERT INTO event (event_id, body) VALUES (?, ?)", [(e.event_id, to_msgpack(e)) for e in events])
        db.execute(f"PRAGMA application_id = {0x706B726B}")
        db.execute(f"PRAGMA user_version = {version}")
    db.close()
    path.chmod(0o644)
    return path


@pytest.mark.parametrize("version", [1, 2])
def test_a_log_of_a_former_format_is_upgraded(tmp_path: Path, version: int) -> None:
    old = [event(i % 2, item_id=i) for i in range(3)]
    path = former(tmp_path / "feedback.db", old, version)
    log = SqliteFeedbackLog(path)
    assert list(log.replay()) == old
    assert log.append([*old, event(item_id=3)]).duplicates == 3
    assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o600}
    assert log.expire() == 0
    log.close()
    again = SqliteFeedbackLog(path)
    assert [e.item_id for e in again.replay()] == [0, 1, 2, 3]
    assert again.forget(0).events == 2
    again.close()


def test_an_upgrade_dates_no_event_ahead(tmp_path: Path) -> None:
    """Such an event would stay its user's latest for years, and the clock by which others arrive would begin there."""
    ahead, right = event(impression_ms=1 << 45), event()
    log = SqliteFeedbackLog(former(tmp_path / "feedback.db", [ahead, right], 2))
    first, second = log.replay()
    log.close()
    assert isinstance(first, LoggedEvent)
    assert first.impression_ms + first.correction_ms == 0
    assert (first.event_id, second) == (ahead.event_id, right)


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
        log.read(0)
    with pytest.raises(LogOpenError, match="closed"):
        log.news(0)
    with pytest.raises(LogOpenError, match="closed"):
        log.mark(0)


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


@contextmanager
def by_hand(path: Path) -> Iterator[sqlite3.Connection]:
    """Somebody with SQLite's own shell."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        yield db


_DAMAGE = {
    "no MessagePack": "UPDATE event SET body = x'c1' WHERE place IN (3, 4)",
    "cut": "UPDATE event SET body = substr(body, 1, 40) WHERE place IN (3, 4)",
    "of a newer version": "UPDATE event SET body = x'81a17603' WHERE place IN (3, 4)",
    "of another struct": "UPDATE event SET body = x'80' WHERE place IN (3, 4)",
    "text": "UPDATE event SET body = 'hello' WHERE place IN (3, 4)",
    "a number": "UPDATE event SET body = 7 WHERE place IN (3, 4)",
    "empty without a user": "UPDATE event SET body = x'', user_id = NULL WHERE place IN (3, 4)",
}


@pytest.mark.parametrize("how", _DAMAGE)
def test_records_that_cannot_be_read_are_skipped_counted_and_named_and_stop_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    path = tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(path)) as log, closing(SqliteFeedbackLog(path)) as other:
        follower = Reader(log)
        other.append([event(item_id=i) for i in range(5)])
        with by_hand(path) as db:
            db.execute(_DAMAGE[how])
        assert [e.item_id for e in follower.read()] == [0, 1, 4]
        assert follower.read() == []
        assert log.unreadable == 2
        log.check()
        assert log.append([event(item_id=5)]).duplicates == 0
    named = [record.getMessage().partition(" is skipped: ")[0] for record in caplog.records]
    assert named == [f"record {place} of the feedback log {path}" for place in (3, 4)]
    with closing(SqliteFeedbackLog(path, SqliteLogConfig(replay_rows=2))) as again:
        for _ in range(2):
            assert [e.item_id for e in again.replay()] == [0, 1, 4, 5]
            assert again.unreadable == 2, "each counts once"
        assert Reader(again, 0).forgotten() == []


def test_many_unreadable_records_do_not_fill_the_log_of_the_process(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(path)) as log:
        log.append([event(item_id=i) for i in range(100)])
        with by_hand(path) as db:
            db.execute("UPDATE event SET body = x'c1' WHERE place < 100")
        assert [e.item_id for e in log.replay()] == [99]
        assert log.unreadable == 99
    assert len(caplog.records) == 10
    assert caplog.records[-1].getMessage().endswith("further ones are only counted")


def test_around_a_damaged_page_of_the_file_everything_is_read(tmp_path: Path) -> None:
    path, marks = tmp_path / "feedback.db", [f"mark{i:03}" for i in range(200)]
    with closing(SqliteFeedbackLog(path)) as log:
        log.append([event(item_id=i, session_id=mark + "x" * 300) for i, mark in enumerate(marks)])
    with by_hand(path) as db:
        (size,) = db.execute("PRAGMA page_size").fetchone()
    data = bytearray(path.read_bytes())
    at = data.index(b"mark100") // size * size
    lost = {i for i, mark in enumerate(marks) if mark.encode() in data[at : at + size]}
    data[at : at + size] = b"\xff" * size
    path.write_bytes(data)
    with closing(SqliteFeedbackLog(path, SqliteLogConfig(replay_rows=64))) as log, closing(SqliteFeedbackLog(path)) as other:
        assert [e.item_id for e in log.replay()] == [i for i in range(200) if i not in lost]
        assert log.unreadable == len(lost) > 0
        log.check()
        follower = Reader(log)
        other.append([later := event()])
        assert follower.read() == [later]


@pytest.mark.parametrize("file", ["", "-wal", "-shm"])
@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_log_that_lost_a_file_while_it_is_open_rejects_instead_of_losing(tmp_path: Path, file: str, how: str) -> None:
    path, kept = tmp_path / "feedback.db", [event()]
    log = SqliteFeedbackLog(path)
    log.append(kept)
    lost = Path(f"{path}{file}")
    if how == "removed":
        lost.unlink()
    elif how == "moved":
        lost.rename(tmp_path / "elsewhere")
    else:
        copy = tmp_path / "copy"
        copy.write_bytes(lost.read_bytes())
        copy.replace(lost)
    for act in (lambda: log.append([event()]), log.check, lambda: log.forget(1)):
        with pytest.raises(LogWriteError, match="the log that was opened"):
            act()
    assert list(log.replay()) == kept, "what was read can still be"
    log.close()


def test_a_log_beside_its_link_and_of_a_relative_path_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "feedback.db").symlink_to("disk/real.db")
    monkeypatch.chdir(tmp_path)
    with closing(SqliteFeedbackLog(Path("feedback.db"))) as log:
        monkeypatch.chdir("/")
        log.append([event()])
        assert {file.stat().st_mode & 0o777 for file in (tmp_path / "disk").iterdir()} == {0o600}
        log.check()


@pytest.mark.parametrize(
    "how", ["DROP TABLE event", "ALTER TABLE event RENAME TO gone", "ALTER TABLE event DROP COLUMN writer"]
)
def test_a_check_fails_while_the_table_cannot_take_an_event(tmp_path: Path, how: str) -> None:
    path = tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(path)) as log:
        log.check()
        with by_hand(path) as db:
            db.execute(how)
        for act in (lambda: log.append([event()]), log.check):
            with pytest.raises(LogWriteError, match=r"no such table|no column"):
                act()


def test_a_check_fails_while_an_append_finds_no_room(tmp_path: Path) -> None:
    with closing(SqliteFeedbackLog(tmp_path / "feedback.db", SqliteLogConfig(bytes_max=64 * 1024))) as log:
        log.check()
        with pytest.raises(LogWriteError, match="full"):
            all(log.append([event()]).accepted for _ in count())
        with pytest.raises(LogWriteError, match="full"):
            log.check()


def test_a_check_keeps_nothing(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(path)) as log:
        log.append([first := event()])
        log.check()
        log.append([second := event()])
        with by_hand(path) as db:
            assert db.execute("SELECT place FROM event").fetchall() == [(1,), (2,)]
        assert list(log.replay()) == [first, second]


@pytest.mark.parametrize("mask", [0, 0o022])
def test_the_files_of_a_log_are_for_their_owner_alone(tmp_path: Path, mask: int) -> None:
    before = os.umask(mask)
    try:
        with closing(SqliteFeedbackLog(tmp_path / "feedback.db")) as log:
            log.append([event()])
            modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    finally:
        os.umask(before)
    assert modes == {"feedback.db": 0o600, "feedback.db-wal": 0o600, "feedback.db-shm": 0o600}


def test_a_mode_that_the_operator_chose_stays(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    SqliteFeedbackLog(path).close()
    path.chmod(0o640)
    with closing(SqliteFeedbackLog(path)):
        assert {file.stat().st_mode & 0o777 for file in tmp_path.iterdir()} == {0o640}


def test_an_event_id_counts_within_its_user(log: SqliteFeedbackLog) -> None:
    first, of_another = event(1, event_id="0"), event(2, event_id="0")
    assert log.append([first, of_another, first])[:2] == ((first, of_another), 1)
    assert list(log.replay()) == [first, of_another]


def test_a_forgotten_user_is_gone_from_the_log_and_its_files_and_every_process_hears_of_it(tmp_path: Path) -> None:
    path, secret = tmp_path / "feedback.db", "a-session-of-user-7"
    with closing(SqliteFeedbackLog(path)) as log, closing(SqliteFeedbackLog(path)) as other:
        log.append([event(user, item, session_id=secret if user == 7 else "s") for item in range(30) for user in (6, 7)])
        one, another = Reader(log), Reader(other)
        assert log.forget(7) == Forgotten(30, 0)
        assert [*one.read(), *another.read()] == []
        assert one.forgotten() == another.forgotten() == [7]
        assert [e.user_id for e in other.replay()] == [6] * 30
        assert all(secret.encode() not in file.read_bytes() for file in tmp_path.iterdir())
        log.append([later := event(7)])
        assert another.read() == [later]
        assert another.forgotten() == []
        log.append([event(6)])
        log.forget(8)
        log.append([event(6)])
        records = other.read(another.place)
        assert (len(records.events), records.forgotten) == (2, [(1, 8)])
        assert other.read(0).forgotten == [(30, 7), (32, 8)], "in the order of acceptance"
        assert log.forget(7) == Forgotten(1, 0)
        assert log.forget(8) == Forgotten(0, 0)
        another.read()
        assert another.forgotten() == [7, 8]


def test_what_is_written_after_the_newest_events_were_forgotten_is_heard(tmp_path: Path) -> None:
    """A place is not used again: others have read beyond it."""
    path = tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(path)) as log, closing(SqliteFeedbackLog(path)) as other:
        log.append([event(7) for _ in range(9)])
        follower = Reader(other)
        with by_hand(path) as db:
            db.execute("DELETE FROM event")
        log.append([later := event(6)])
        assert follower.read() == [later]


def test_damaged_records_of_nobody_are_counted_when_a_user_is_forgotten(tmp_path: Path) -> None:
    path = former(tmp_path / "feedback.db", [event(7), event(7), event(7)])
    with by_hand(path) as db:
        db.execute("UPDATE event SET body = x'c1' WHERE place = 2")
    with closing(SqliteFeedbackLog(path)) as log:
        assert len(list(log.replay())) == 2
        assert log.forget(7) == Forgotten(2, 1)


def test_events_are_deleted_after_their_days_in_bounded_steps(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(path, SqliteLogConfig(keep_days=30, expire_rows=4))) as log:
        log.append([event(item_id=i) for i in range(10)])
        with by_hand(path) as db:
            days = 86_400_000
            db.execute(f"UPDATE event SET added_ms = added_ms - 31 * {days} WHERE place > 3")
            db.execute(f"UPDATE event SET added_ms = added_ms - 29 * {days} WHERE place = 2")
            db.execute(f"UPDATE event SET added_ms = added_ms + 999 * {days} WHERE place = 1")  # a clock that was ahead
        assert [log.expire() for _ in range(3)] == [4, 3, 0]
        assert [e.item_id for e in log.replay()] == [0, 1, 2]
        assert log.append([event(item_id=10)]).duplicates == 0
        assert [e.item_id for e in log.replay()] == [0, 1, 2, 10]


def test_events_are_deleted_in_the_background(tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(path, SqliteLogConfig(keep_days=None))) as log:
        log.append([event() for _ in range(20)])
        assert log.expire() == 0
        with closing(SqliteFeedbackLog(path, SqliteLogConfig(keep_days=1e-9, expire_every_s=0.01, expire_rows=8))):
            until(lambda: not list(log.replay()), "the end of all events")


def test_a_clock_that_is_wrong_by_years_costs_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, years_ms = tmp_path / "feedback.db", 10 * 365 * 86_400_000

    def kept(wrong_ms: int, keep_days: float) -> int:
        monkeypatch.setattr("pocketrank.cloud.streams.sqlite.time", lambda: time() + wrong_ms / 1000)
        with closing(SqliteFeedbackLog(path, SqliteLogConfig(keep_days=keep_days))) as log:
            log.expire()
            return len(list(log.replay()))

    with closing(SqliteFeedbackLog(path)) as log:
        log.append([event() for _ in range(9)])
    assert [kept(ms, 1.5) for ms in (years_ms, 0, -years_ms)] == [9, 9, 9]
    with closing(SqliteFeedbackLog(path)) as log:
        log.append([event()])
    assert [kept(ms, 1.5) for ms in (years_ms, 2 * years_ms)] == [1, 0], "each start that was ahead counts as a day"


def test_days_that_keep_nothing_are_refused() -> None:
    for days in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="keep_days above 0"):
            SqliteLogConfig(keep_days=days)
