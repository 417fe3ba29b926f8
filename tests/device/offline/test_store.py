import sqlite3
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reliability.full_disk import full_disk
from pocketrank.device.codec import from_block
from pocketrank.device.contract import Page
from pocketrank.device.offline.database import DatabaseError, DatabaseHeldError, DatabaseOpenError, ForeignDatabaseError
from pocketrank.device.offline.outbox import OutboxConfig
from pocketrank.device.offline.store import DeviceStore, DeviceStoreConfig
from pocketrank.device.session import FeedSession
from tests.device.worlds import T0, PhoneClock, make_event, make_page

DAY_MS = 86_400_000
YEAR_MS = 365 * DAY_MS

ADD_FOR_EVER = """
import sys
from itertools import count
from pathlib import Path
from pocketrank.device.offline.store import DeviceStore
from tests.device.worlds import make_event
store = DeviceStore(Path(sys.argv[1]))
for item in count():
    store.outbox.add(make_event(item))
    print(item, flush=True)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "device" / "store.db"


def waiting(store: DeviceStore) -> list[int]:
    """Item ids of what waits, which then waits no more."""
    return [event.item_id for event in store.outbox.take()]


# -------------------------------------------------------------------------------------------------------- from start to start


def test_what_waits_and_what_was_in_flight_is_there_after_a_restart(path: Path) -> None:
    with DeviceStore(path) as store:
        for item in range(5):
            store.outbox.add(make_event(item, like=True, page_id="p"))
        store.outbox.acknowledge(store.outbox.take(1))
        store.outbox.take(2)
    with DeviceStore(path) as store:
        assert len(store.outbox) == 4
        assert not store.outbox.add(make_event(0)), "the id of one that was sent"
        assert not store.outbox.add(make_event(4))
        assert store.outbox.add(make_event(5))
        assert store.outbox.take()[0] == make_event(1, like=True, page_id="p")
    with DeviceStore(path) as store:
        assert waiting(store) == [1, 2, 3, 4, 5]


def aged_and_waiting(path: Path, clock: PhoneClock) -> int:
    """Age of the one event that waits, in a process that starts now and ends at once."""
    with DeviceStore(path, clock=clock) as store:
        (event,) = store.outbox.take()
        assert isinstance(event.age_ms, int)
        return event.age_ms


@pytest.mark.parametrize("step_ms", [0, 1_000, 3 * YEAR_MS, -T0])
def test_an_event_grows_older_from_start_to_start_and_over_restarts_of_the_device(path: Path, step_ms: int) -> None:
    clock = PhoneClock()
    with DeviceStore(path, clock=clock) as store:
        store.outbox.add(make_event(1, age_ms=500))
        clock.true_ms += DAY_MS
        clock.off_ms += step_ms
        store.outbox.tidy()
    clock.true_ms += DAY_MS
    assert aged_and_waiting(path, clock) == 500 + 2 * DAY_MS
    clock.reboot(7 * DAY_MS)
    clock.true_ms += 1_000
    assert abs(aged_and_waiting(path, clock) - (1_500 + 9 * DAY_MS)) <= 1_000  # a step of a second is as good as none


@pytest.mark.parametrize("boot", ["boot-0", None])
@pytest.mark.parametrize(
    ("step_ms", "age_ms"),
    [(3 * YEAR_MS, 30 * DAY_MS), (-3 * YEAR_MS, 0), (DAY_MS, 8 * DAY_MS)],
)
def test_a_clock_that_is_set_while_the_device_is_off_is_believed_for_30_days(
    path: Path, boot: str | None, step_ms: int, age_ms: int
) -> None:
    clock = PhoneClock(boot)
    with DeviceStore(path, clock=clock) as store:
        store.outbox.add(make_event(1, age_ms=0))
    clock.reboot(6 * DAY_MS)
    clock.off_ms = step_ms
    clock.true_ms += DAY_MS  # which a device that names its starts knows
    known_ms = 0 if boot is None or step_ms == DAY_MS else DAY_MS
    assert aged_and_waiting(path, clock) == age_ms + known_ms


def test_a_damaged_clock_is_as_if_it_had_never_been_set(path: Path) -> None:
    clock = PhoneClock()
    with DeviceStore(path, clock=clock) as store:
        store.outbox.add(make_event(1, age_ms=0))
        assert store.set_state("pocketrank/clock", b"no clock")
    clock.true_ms += DAY_MS
    assert aged_and_waiting(path, clock) == DAY_MS


def test_what_add_returned_for_survives_a_kill(path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", ADD_FOR_EVER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    seen = [int(child.stdout.readline()) for _ in range(50)]
    with pytest.raises(DatabaseHeldError):
        DeviceStore(path)
    child.kill()
    seen += [int(line) for line in child.stdout.read().splitlines()]
    child.wait()
    child.stdout.close()
    with DeviceStore(path) as store:
        kept = waiting(store)
    assert kept[: len(seen)] == seen
    assert len(kept) <= len(seen) + 1, "at most the one that was being added"


def test_a_smaller_bound_holds_at_the_next_start(path: Path) -> None:
    with DeviceStore(path) as store:
        for item in range(5):
            store.outbox.add(make_event(item))
    with DeviceStore(path, DeviceStoreConfig(outbox=OutboxConfig(waiting_max=2))) as store:
        assert store.outbox.dropped == 3
    with DeviceStore(path) as store:
        assert waiting(store) == [3, 4]


def last_page(store: DeviceStore, now_ms: int, *, stale: bool = False) -> Page | None:
    """The newest that is kept."""
    return next((kept.page for kept in store.pages(7, now_ms, stale=stale)), None)


def test_pages_newest_first_as_long_as_they_live(path: Path) -> None:
    old, new = make_page([1], 1, ttl_ms=1000), make_page([2, 3], 2, ttl_ms=1000)
    with DeviceStore(path) as store:
        assert last_page(store, T0) is None
        assert store.save_page(7, old, T0)
        assert store.save_page(7, new, T0 + 500)
    with DeviceStore(path) as store:
        assert store.save_page(7, old, T0 + 600), "kept already, and gets no younger"
        assert list(store.pages(7, T0 + 999)) == [(new, 499), (old, 999)]
        assert [kept.page for kept in store.pages(7, T0 + 1000)] == [new]
        assert last_page(store, T0 + 1500) is None
        assert last_page(store, T0 + 1500, stale=True) == new
        assert last_page(store, T0 - 499) == new
        assert last_page(store, T0 - 9999) is None, "a clock that was put back"


def test_a_page_is_that_of_one_user(path: Path) -> None:
    with DeviceStore(path) as store:
        for user in (7, 77, -7):
            assert store.save_page(user, make_page([user], 1), T0)
        for user in (7, 77, -7):
            assert [from_block(kept.page.candidates.item_id, "$").tolist() for kept in store.pages(user, T0)] == [[user]]
        assert list(store.pages(8, T0)) == []
        assert not FeedSession(None, user_id=8, session_id="s", store=store, clock=lambda: T0).restore()


def test_pages_are_bounded_and_the_oldest_go(path: Path) -> None:
    with DeviceStore(path, DeviceStoreConfig(pages_max=2)) as store:
        for n in range(4):
            assert store.save_page(7, make_page([n], n), T0)
        assert [kept.page.page_id for kept in store.pages(7, T0)] == ["page-3", "page-2"]
        assert store.pages_dropped == 2
    with DeviceStore(path, DeviceStoreConfig(pages_bytes_max=1000)) as store:
        assert not store.save_page(7, make_page(list(range(100)), 8), T0)
        assert store.save_page(7, make_page([9], 9, split=None), T0)
        assert store.pages_dropped > 1
        assert next(store.pages(7, T0)).page.page_id == "page-9"


def test_the_last_items_shown_are_those_of_the_last_events_sent_or_not(path: Path) -> None:
    config = DeviceStoreConfig(shown_max=4)
    with DeviceStore(path, config) as store:
        assert store.shown_items() == []
        for n, item in enumerate((5, 6, 7, -8, 6)):
            assert store.outbox.add(make_event(n, item_id=item))
        store.outbox.acknowledge(store.outbox.take(2))
        store.outbox.take(1)  # and not a word of what became of it
        assert store.shown_items() == [5, 7, -8, 6]
    with DeviceStore(path, config) as store:
        assert store.shown_items() == [5, 7, -8, 6]
        store.outbox.add(make_event(9))
        assert store.shown_items() == [7, -8, 6, 9]


def test_named_things(path: Path) -> None:
    with DeviceStore(path, DeviceStoreConfig(state_bytes_max=5)) as store:
        assert store.state("personal") is None
        assert store.set_state("personal", b"one")
        assert not store.set_state("personal", b"longer")
    with DeviceStore(path) as store:
        assert store.state("personal") == b"one"


# ------------------------------------------------------------------------------------------------------------ bad files, disks


def test_one_at_a_time(path: Path) -> None:
    with DeviceStore(path), pytest.raises(DatabaseHeldError, match="open elsewhere"):
        DeviceStore(path)
    DeviceStore(path).close()


@pytest.mark.parametrize("newer", [False, True])
def test_a_foreign_database_is_left_as_it_is(path: Path, newer: bool) -> None:
    if newer:
        DeviceStore(path).close()
    path.parent.mkdir(exist_ok=True)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 2" if newer else "CREATE TABLE other (x)")
    db.commit()
    db.close()
    before = path.read_bytes()
    with pytest.raises(ForeignDatabaseError):
        DeviceStore(path)
    assert path.read_bytes() == before


def test_no_place_for_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in (tmp_path, tmp_path / "file" / "store.db"):
        with pytest.raises(DatabaseOpenError):
            DeviceStore(place)
    with full_disk(), pytest.raises(DatabaseOpenError):
        DeviceStore(tmp_path / "store.db")


@pytest.mark.parametrize("text", [b"not a database" * 300, b"SQLite format 3\0" + bytes(4080)])
def test_a_damaged_file_is_moved_aside(path: Path, text: bytes) -> None:
    for _ in range(2):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text)
        with DeviceStore(path) as store:
            assert store.damaged_files == 1
            assert store.outbox.add(make_event(1))
        assert path.with_name("store.db.damaged").read_bytes() == text
    with DeviceStore(path) as store:
        assert store.damaged_files == 0
        assert waiting(store) == [1]


EVENTS, PAGE = [make_event(item) for item in range(40)], make_page([1, 2])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A store's file."""
    path = tmp_path_factory.mktemp("whole") / "store.db"
    with DeviceStore(path) as store:
        for event in EVENTS:
            store.outbox.add(event)
        store.outbox.acknowledge(store.outbox.take(10))
        store.save_page(7, PAGE, T0)
        store.set_state("name", b"value" * 100)
    return path.read_bytes()


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_a_damaged_file_returns_only_data_that_was_saved(whole: bytes, data: st.DataObject) -> None:
    text = bytearray(whole)
    for at, byte in data.draw(st.lists(st.tuples(st.integers(0, len(text) - 1), st.integers(0, 255)), max_size=20)):
        text[at] = byte
    with TemporaryDirectory() as folder:
        path = Path(folder) / "store.db"
        path.write_bytes(text[: data.draw(st.integers(0, len(text)) | st.just(len(text)))])
        try:
            with DeviceStore(path) as store:
                assert set(store.outbox.take()) <= set(EVENTS)
                assert last_page(store, T0) in (PAGE, None)
                assert store.state("name") in (b"value" * 100, None)
                store.shown_items()
                store.outbox.add(make_event(99))
                store.outbox.tidy()
        except DatabaseError:
            return
        with DeviceStore(path) as store:
            assert waiting(store)[-1:] == [99]


@pytest.mark.parametrize("at", [18, 19])
def test_a_file_that_seems_to_be_of_a_later_format_is_replaced(whole: bytes, path: Path, at: int) -> None:
    path.parent.mkdir()
    path.write_bytes(whole[:at] + b"\x03" + whole[at + 1 :])
    with DeviceStore(path) as store:
        assert store.damaged_files == 1
        store.outbox.add(make_event(99))
    with DeviceStore(path) as store:
        assert waiting(store) == [99]


def test_a_file_that_is_damaged_while_it_is_open(path: Path) -> None:
    with DeviceStore(path) as store:
        for n in range(4):  # more than SQLite keeps in memory
            store.set_state(str(n), bytes([n]) * (1 << 20))
        store.outbox.add(make_event(1))
    with DeviceStore(path) as store:
        flight = store.outbox.take()
        with path.open("r+b") as file:
            file.seek(1 << 14)
            file.write(b"\xff" * (3 << 20))
        assert None in [store.state(str(n)) for n in range(4)]
        store.outbox.add(make_event(2))
        store.outbox.tidy()
        assert (store.damaged_files, store.outbox.unsaved) == (1, 0)
        store.outbox.put_back(flight)
    with DeviceStore(path) as store:
        assert waiting(store) == [1, 2]


def test_a_full_disk_loses_nothing_as_long_as_the_process_lives(path: Path) -> None:
    with DeviceStore(path) as store:
        store.outbox.add(make_event(0))
        store.set_state("name", b"before")
        with full_disk(1 << 14):
            for item in range(1, 50):
                assert store.outbox.add(make_event(item))
            assert 40 < store.outbox.unsaved < 50
            assert not store.save_page(7, make_page([1]), T0)
            assert not store.set_state("name", b"after")
            store.outbox.acknowledge(store.outbox.take(3))
            store.outbox.tidy()
            assert len(store.outbox) == 47
        assert store.state("name") == b"before"
        assert last_page(store, T0) is None
        store.outbox.tidy()
        assert store.outbox.unsaved == 0
        assert store.writes_failed > 40
    with DeviceStore(path) as store:
        assert waiting(store) == list(range(3, 50))
        assert store.shown_items() == list(range(50))


def test_a_store_that_ends_on_a_full_disk_can_be_opened_again(path: Path) -> None:
    store = DeviceStore(path)
    with full_disk(), store:
        assert store.outbox.add(make_event(1))
        assert store.outbox.unsaved == 1
    with DeviceStore(path) as store:
        assert store.outbox.add(make_event(1)), "lost: the disk was full to the end"


def test_what_a_full_disk_did_not_take_is_saved_once_it_does(path: Path) -> None:
    with DeviceStore(path) as store:
        with full_disk():
            store.outbox.add(make_event(1))
        store.outbox.add(make_event(2))
        assert store.outbox.unsaved == 1
        store.outbox.tidy()
        assert store.outbox.unsaved == 0
    with DeviceStore(path) as store:
        assert waiting(store) == [1, 2]


def test_what_left_while_the_disk_was_full_is_known_at_the_next_start(path: Path) -> None:
    with DeviceStore(path) as store:
        store.outbox.add(make_event(1))
        with full_disk():
            store.outbox.add(make_event(2))
            store.outbox.acknowledge(store.outbox.take())
        store.outbox.tidy()
    with DeviceStore(path) as store:
        assert (waiting(store), store.shown_items()) == ([], [1, 2])
        assert not store.outbox.add(make_event(2))


def test_the_write_ahead_file_is_folded_in(path: Path) -> None:
    wal = path.with_name("store.db-wal")
    with DeviceStore(path, DeviceStoreConfig(wal_bytes=100_000)) as store:
        for item in range(300):
            store.outbox.add(make_event(item))
        assert wal.stat().st_size > 100_000
        store.outbox.tidy()
        assert wal.stat().st_size < 10_000
        store.outbox.add(make_event(300))
        assert len(store.outbox) == 301
    assert not wal.exists()


def test_a_closed_store_continues_in_memory(path: Path) -> None:
    store = DeviceStore(path)
    store.close()
    store.close()
    assert store.outbox.add(make_event(1))
    assert store.outbox.unsaved == 1
    assert not store.save_page(7, make_page([1]), T0)
    assert last_page(store, T0) is None
    store.outbox.tidy()
    store.outbox.acknowledge(store.outbox.take())
    assert len(store.outbox) == 0


def test_remembered_ids_take_a_bounded_number_of_rows(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    for items in (range(10), [10]):  # the places continue after a restart
        with DeviceStore(path, DeviceStoreConfig(outbox=OutboxConfig(ids_max=3))) as store:
            for item in items:
                store.outbox.add(make_event(item))
                store.outbox.acknowledge(store.outbox.take())
    db = sqlite3.connect(path)
    rows = db.execute("SELECT item_id FROM gone ORDER BY place").fetchall()
    db.close()
    assert rows == [(8,), (9,), (10,)]


def test_a_damaged_event_is_counted_once_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with DeviceStore(path) as store:
        store.outbox.add(make_event(1))
    db = sqlite3.connect(path)
    db.execute("UPDATE event SET body = x'00'")
    db.commit()
    db.close()
    for damaged in (1, 0):
        with DeviceStore(path) as store:
            assert (store.damaged_rows, len(store.outbox)) == (damaged, 0)


def test_an_unsaved_event_that_has_left_is_not_saved_later(tmp_path: Path) -> None:
    with DeviceStore(tmp_path / "store.db") as store:
        with full_disk():
            store.outbox.add(make_event(1))
            assert store.outbox.unsaved == 1
            store.outbox.acknowledge(store.outbox.take())
        assert store.outbox.unsaved == 0
    with DeviceStore(tmp_path / "store.db") as store:
        assert waiting(store) == []
