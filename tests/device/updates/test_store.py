import shutil
from pathlib import Path

import pytest

from benchmarks.reliability.released import KEYS, MODEL, NOW_MS, make_bundle, release_of
from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import BundleStorageError, CorruptBundleError, ExpiredBundleError
from pocketrank.device.updates import BundleStore, StoreState
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
    assert _open(store.root, 5).now() == NOW_MS
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
