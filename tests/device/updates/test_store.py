import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability.released import KEYS, MODEL, NOW_MS, make_bundle, release_of
from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import BundleLockedError, BundleStorageError, CorruptBundleError, ExpiredBundleError
from pocketrank.device.updates import BundleStore, StoreState
from pocketrank.device.updates.release import AHEAD_MAX_MS
from pocketrank.device.updates.trial import Figures


def _open(root: Path, now_ms: int = NOW_MS) -> BundleStore:
    return BundleStore(root, KEYS, clock=lambda: now_ms)


def _activate(store: BundleStore, folder: Path, serial: int) -> None:
    store.add(Bundle.open(make_bundle(folder / str(serial), serial), keys=KEYS))
    store.stage()
    store.activate()


@pytest.fixture
def store(tmp_path: Path) -> BundleStore:
    """A store that went from bundle 1 to 2, which is on trial."""
    store = _open(tmp_path / "store")
    _activate(store, tmp_path, 1)
    store.change(trial=None, baseline=Figures(ms=(1.0,)))
    _activate(store, tmp_path, 2)
    return store


def _folders(store: BundleStore) -> list[str]:
    return sorted(path.name for path in (store.root / "bundles").iterdir())


def _serial(store: BundleStore) -> int | None:
    active = store.active()
    return None if active is None else active.manifest.serial


def test_a_new_store_is_empty(tmp_path: Path) -> None:
    store = _open(tmp_path / "deep" / "store")
    assert store.active() is None
    assert store.state == StoreState()


def test_the_next_start_finds_what_the_last_one_left(store: BundleStore) -> None:
    assert (store.state.active, store.state.previous, store.state.trial) == (2, 1, Figures())
    again = _open(store.root)
    assert again.state == store.state
    assert _serial(again) == 2
    assert again.state.baseline == Figures(ms=(1.0,))


def test_unknown_folders_are_removed_and_a_pending_bundle_stays(store: BundleStore) -> None:
    (store.begin(3) / "part").write_bytes(b"half a file")
    (store.root / "bundles" / "9").mkdir()
    (store.root / "bundles" / "noise").mkdir()
    again = _open(store.root)
    assert _folders(again) == ["1", "2", "3"]
    assert (again.begin(3) / "part").exists()
    again.begin(4)
    assert _folders(again) == ["1", "2", "4"]


def test_a_rejected_bundle_is_replaced_by_the_previous_one_and_remembered(store: BundleStore) -> None:
    store.reject(2, "slow")
    again = _open(store.root)
    assert _serial(again) == 1
    assert (again.state.previous, again.state.trial, again.state.rejected) == (None, None, {2: "slow"})
    assert _folders(again) == ["1"]
    again.reject(1, "revoked")
    assert again.active() is None


def test_a_bundle_on_trial_does_not_displace_a_trusted_one(store: BundleStore, tmp_path: Path) -> None:
    _activate(store, tmp_path, 3)
    assert (store.state.active, store.state.previous) == (3, 1)
    assert _folders(store) == ["1", "3"]


def test_a_damaged_bundle_is_replaced_and_may_be_downloaded_again(store: BundleStore) -> None:
    (store.folder(2) / MODEL).write_bytes(b"rot")
    assert _serial(store) == 1
    assert (store.state.active, store.state.rejected) == (1, {})
    shutil.rmtree(store.folder(1))
    assert _serial(store) is None


def test_an_expired_bundle_is_reported_and_stays(tmp_path: Path) -> None:
    store = _open(tmp_path / "store")
    store.add(Bundle.open(make_bundle(tmp_path / "1", 1, expires_ms=NOW_MS + 9), keys=KEYS, now_ms=NOW_MS))
    store.stage()
    store.activate()
    assert _serial(store) == 1
    late = _open(store.root, NOW_MS + 9)
    with pytest.raises(ExpiredBundleError):
        late.active()
    assert _serial(_open(store.root)) == 1


@pytest.mark.parametrize("state", [b"", b"{", b'{"version": 2}', b'{"active": "2"}', b"[" * 9999, b'{"active": 99'])
def test_a_lost_state_is_rebuilt_from_the_newest_intact_bundle(store: BundleStore, state: bytes) -> None:
    (store.begin(3) / "part").write_bytes(b"half a file")
    (store.root / "state.json").write_bytes(state)
    again = _open(store.root)
    assert _serial(again) == 2
    assert again.state.trial is not None
    assert _folders(again) == ["2"]


def test_a_bundle_in_the_folder_of_another_serial_is_refused(store: BundleStore) -> None:
    shutil.copytree(store.folder(1), store.folder(7))
    with pytest.raises(CorruptBundleError, match="serial 7"):
        store.open(7)


def test_a_clock_that_is_set_back_stays_at_the_last_release(store: BundleStore) -> None:
    store.change(release=release_of(b"m", 2))
    assert _open(store.root, NOW_MS - AHEAD_MAX_MS).now() == NOW_MS
    # Which of the two is wrong is not known when they are further apart: a date ahead must not expire all later releases.
    assert _open(store.root, NOW_MS - AHEAD_MAX_MS - 5).now() == NOW_MS - 5
    assert _open(store.root, NOW_MS + 5).now() == NOW_MS + 5


def test_a_disk_that_cannot_be_written_changes_nothing(store: BundleStore) -> None:
    before = store.state
    (store.root / "state.json.tmp").mkdir()  # nothing can be written over a folder
    for step in (lambda: store.reject(2, "slow"), lambda: store.change(probes=1), lambda: store.change(trial=None)):
        with pytest.raises(BundleStorageError, match=r"state\.json"):
            step()
    assert store.state == before
    (store.root / "state.json.tmp").rmdir()
    assert _open(store.root).state == before
    assert _serial(store) == 2


def test_no_place_for_a_store(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(BundleStorageError):
        _open(tmp_path / "file" / "store")


def test_few_rejected_bundles_are_remembered_the_newest(store: BundleStore) -> None:
    for serial in range(100, 200):
        store.reject(serial, "slow")
    assert list(store.state.rejected) == list(range(136, 200))


def test_a_rejected_previous_bundle_is_not_returned_to(store: BundleStore) -> None:
    store.reject(1, "revoked")
    assert (store.state.active, store.state.previous) == (2, None)
    assert _folders(store) == ["2"]


def test_probes_and_starts_are_counted_for_each_bundle(store: BundleStore, tmp_path: Path) -> None:
    store.change(probes=2, starts=2)
    store.begin(3)
    assert store.state.probes == 0
    store.change(starts=2)
    _activate(store, tmp_path, 3)
    assert store.state.starts == 0


def test_a_damaged_bundle_ends_its_trial(store: BundleStore) -> None:
    (store.folder(2) / MODEL).write_bytes(b"rot")
    assert _serial(store) == 1
    assert store.state.trial is None


_OPENS = """
import sys
from pathlib import Path
from benchmarks.reliability.released import KEYS
from pocketrank.device.updates import BundleStore
store = BundleStore(Path(sys.argv[1]), KEYS)
print("open", flush=True)
sys.stdin.read()
"""


def _other(root: Path) -> subprocess.Popen[str]:
    """Another process that opens the store and holds it until its input ends."""
    command = [sys.executable, "-c", _OPENS, str(root)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_another_process_opens_a_store_once_this_one_has_closed_it(store: BundleStore) -> None:
    (store.begin(3) / "part").write_bytes(b"half a file")
    _, said = _other(store.root).communicate(timeout=60)
    assert "BundleLockedError" in said
    assert _folders(store) == ["1", "2", "3"]
    store.close()
    with pytest.raises(BundleLockedError):
        store.change(probes=1)


def test_a_store_of_another_process_is_refused_until_that_one_is_killed(store: BundleStore) -> None:
    root = store.root
    store.close()
    with _other(root) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(BundleLockedError, match="a store that no other process has open"):
            _open(root)
        other.kill()
        other.wait(60)
        assert _serial(_open(root)) == 2


def test_a_store_that_is_opened_again_changes_nothing_any_more(store: BundleStore, tmp_path: Path) -> None:
    again = _open(store.root)
    again.change(release=release_of(b"m", 2, number=20))
    steps = (
        lambda: store.change(release=release_of(b"m", 1, number=5)),
        lambda: store.begin(3),
        lambda: store.add(Bundle.open(make_bundle(tmp_path / "3", 3), keys=KEYS)),
        lambda: store.reject(2, "slow"),
    )
    for step in steps:
        with pytest.raises(BundleLockedError, match="closed or opened again"):
            step()
    assert _open(store.root).state == again.state
    assert _folders(again) == ["1", "2"]


KILL = release_of(b"m", 2, number=20, kill=True)


@pytest.mark.parametrize("damage", [b"", b"\0" * 64, b"{}", None], ids=["empty", "zeros", "nothing_known", "removed"])
def test_kill_switch_and_floor_outlive_a_damaged_state(store: BundleStore, damage: bytes | None) -> None:
    store.change(release=KILL)
    path = store.root / "state.json"
    path.unlink() if damage is None else path.write_bytes(damage)
    again = _open(store.root)
    assert again.state.release == KILL
    assert _open(store.root).state == again.state


def test_a_state_with_an_older_release_is_held_to_the_second_copy(store: BundleStore) -> None:
    store.change(release=release_of(b"m", 2, number=19))
    older = (store.root / "state.json").read_bytes()
    store.change(release=KILL)
    (store.root / "state.json").write_bytes(older)
    assert _open(store.root).state.release == KILL
    assert json.loads((store.root / "state.json").read_bytes())["release"]["kill"]


@pytest.mark.parametrize("damage", [b"", b"{", b'{"release": "e30=", "crc32": 1}', None])
def test_a_damaged_second_copy_is_written_again(store: BundleStore, damage: bytes | None) -> None:
    store.change(release=KILL)
    copy = store.root / "floor.json"
    whole = copy.read_bytes()
    copy.unlink() if damage is None else copy.write_bytes(damage)
    assert _open(store.root).state.release == KILL
    assert copy.read_bytes() == whole


def test_one_changed_byte_of_the_second_copy_is_noticed(store: BundleStore) -> None:
    store.change(release=KILL)
    copy = store.root / "floor.json"
    changed = json.loads(copy.read_bytes())
    changed["crc32"] ^= 1
    copy.write_text(json.dumps(changed))
    (store.root / "state.json").write_bytes(b"{")
    assert _open(store.root).state.release is None  # both copies are lost


def test_a_second_copy_that_cannot_be_written_stops_nothing(store: BundleStore) -> None:
    (store.root / "floor.json.tmp").mkdir()  # nothing can be written over a folder
    store.change(release=KILL)
    assert _open(store.root).state.release == KILL
    (store.root / "floor.json.tmp").rmdir()
    _open(store.root)
    (store.root / "state.json").unlink()
    assert _open(store.root).state.release == KILL
