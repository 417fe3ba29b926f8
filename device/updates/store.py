"""The bundles on a device's disk: the active one, the previous one, and the next one.

::

    bundles/<serial>/     one folder for each bundle; only the state says which of them is the active one
    state.json            `StoreState`, replaced atomically: every step below is one such replacement
    floor.json            a second copy of the last release, with a checksum: kill switch and serials outlive a damaged state
    lock                  held while a store is open

So a process that is killed at any moment leaves the state before the step or the state after it, and perhaps folders that the
state does not name, which the next start removes. A store is for one process, which the lock sees to; its methods may be called
from several threads.
"""

from __future__ import annotations

import os
import shutil
import threading
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import (
    MANIFEST,
    SIGNATURES,
    BundleError,
    BundleLockedError,
    CorruptBundleError,
    ExpiredBundleError,
    decode_json,
    on_disk,
    read_bytes,
)
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.clock import wall_clock
from pocketrank.device.codec import to_json
from pocketrank.device.contract import Release
from pocketrank.device.files import Lock, sync, write_atomically
from pocketrank.device.updates.release import at_least
from pocketrank.device.updates.trial import Figures

__all__ = ["BundleStore", "StoreState"]

_REJECTED_MAX = 64  # serials; older ones are refused because serials never decrease


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """The persistent state of a store. Bundles are named by their serials."""

    version: int = 1
    active: int | None = None
    """The bundle in use."""
    previous: int | None = None
    """The bundle to return to."""
    staged: int | None = None
    """The bundle that is downloaded, verified and probed; it becomes active between two pages."""
    pending: int | None = None
    """The bundle that is being downloaded; some of its files may be here."""
    release: Release | None = None
    """The last release that was followed. Later ones must not go back behind it."""
    rejected: dict[int, str] = {}
    """Bundles that failed on this device, and why; they are not tried again."""
    probes: int = 0
    """Probes of the pending bundle that did not end."""
    starts: int = 0
    """Starts since the active bundle last ran, while it is on trial."""
    crashes: int = 0
    """Starts in a row with the active bundle that the app did not end (`Updates.close`, `Updates.background`)."""
    ends: bool = False
    """Whether the app has ever reported an end. One that never does is stopped by its system without a word."""
    trial: Figures | None = None
    """Figures of the active bundle; None when it is not on trial."""
    baseline: Figures | None = None
    """Figures of the last bundle that passed its trial."""


class _Floor(msgspec.Struct, frozen=True, kw_only=True):
    """The second copy of the last release."""

    version: int = 1
    release: bytes
    """In JSON."""
    crc32: int
    """Of these bytes."""


_opening = threading.Lock()
_by_folder: WeakValueDictionary[tuple[int, str], BundleStore] = WeakValueDictionary()  # open stores, by process and folder


class BundleStore:
    """Bundles in the folder `root`, all signed by `keys`. `clock` returns the time in ms since the epoch, UTC.

    A folder has one open store. Another process gets a `BundleLockedError` until that one is closed, collected, or its process
    has ended. A second store in the same process replaces the first, which then raises `BundleLockedError` for each change.
    """

    def __init__(self, root: Path, keys: TrustedKeys, *, clock: Callable[[], int] = wall_clock) -> None:
        """Open the store or create it, and remove what a killed process left.

        Raises `BundleStorageError`, of which `BundleLockedError` says that another process has it open.
        """
        self.root, self.keys, self.clock = root, keys, clock
        self._lock = threading.RLock()
        self._bundles, self._path = root / "bundles", root / "state.json"
        self._floor_path = root / "floor.json"
        with on_disk(root):
            self._bundles.mkdir(parents=True, exist_ok=True)
            self._held = self._hold()
            found = self._path.exists()
        floor = self._floor()
        self.state = StoreState(release=floor)
        """The current state. Only the methods below change it."""
        try:
            if found or floor is not None:
                self.state = decode_json(read_bytes(self._path), StoreState, str(self._path))
        except BundleError:  # the state is lost: start over with the newest intact bundle, on trial again
            newest = self._newest()
            self.change(active=newest, trial=None if newest is None else Figures())
        if floor is not None and (self.state.release is None or self.state.release.serial < floor.serial):
            self.change(release=floor)
        elif self.state.release != floor:
            self._save_floor()
        self._clean()

    def close(self) -> None:
        """Let another process open the store. This one can then change nothing."""
        with _opening:
            if self._held is not None:
                self._held.close()
                self._held = None

    def now(self) -> int:
        """Return the time in ms, at least that of the last release (`at_least`): a clock set back a little revives nothing."""
        return at_least(self.clock(), self.state.release)

    def folder(self, serial: int) -> Path:
        """Return the folder of a bundle, which need not exist."""
        return self._bundles / str(serial)

    def open(self, serial: int) -> Bundle:
        """Return a bundle of the store, checked again. Raises `BundleError`."""
        bundle = Bundle.open(self.folder(serial), keys=self.keys, now_ms=self.now())
        if bundle.manifest.serial != serial:
            raise CorruptBundleError(str(bundle.folder), f"serial {serial}", f"{bundle.manifest.serial}")
        return bundle

    def active(self) -> Bundle | None:
        """Return the bundle in use, checked again; None without one. A damaged bundle is replaced by the previous one.

        Raises `ExpiredBundleError`, and `BundleStorageError` when a replacement cannot be saved.
        """
        with self._lock:
            while self.state.active is not None:
                try:
                    return self.open(self.state.active)
                except ExpiredBundleError:
                    raise
                except BundleError:  # not rejected: the same bundle may be downloaded again
                    self.retire()
            return None

    def retire(self) -> None:
        """Return from the active bundle to the previous one, without rejecting it. Raises `BundleStorageError`."""
        self.change(active=self.state.previous, previous=None, trial=None, crashes=0)

    def change(self, **changes: Any) -> None:
        """Save `changes` of the state's fields, all or none. Raises `BundleStorageError`; the state is then unchanged."""
        with self._lock:
            self._check_held()
            state = msgspec.structs.replace(self.state, **changes)
            if state != self.state:
                with on_disk(self._path):
                    write_atomically(self._path, to_json(state))
                before, self.state = self.state, state
                if state.release != before.release:
                    self._save_floor()

    def begin(self, serial: int) -> Path:
        """Return the folder for a download, with the files of an earlier attempt. Raises `BundleStorageError`."""
        with self._lock:
            self._check_held()
            if self.state.pending != serial:
                self.change(pending=serial, probes=0)
                self._clean()
            folder = self.folder(serial)
            with on_disk(folder):
                folder.mkdir(exist_ok=True)
            return folder

    def add(self, bundle: Bundle) -> None:
        """Copy a bundle from elsewhere, which is then pending. Raises `BundleStorageError`."""
        folder = self.begin(bundle.manifest.serial)
        with on_disk(folder):
            for path in (MANIFEST, SIGNATURES, *(entry.path for entry in bundle.manifest.files)):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.folder / path, folder / path)

    def stage(self) -> None:
        """Make the pending bundle, which passed its probe, the staged one. Raises `BundleStorageError`."""
        with self._lock:
            serial = self.state.pending
            assert serial is not None
            with on_disk(self.folder(serial)):
                for path in (*self.folder(serial).rglob("*"), self.folder(serial), self._bundles):
                    sync(path)
            self.change(staged=serial, pending=None)
            self._clean()

    def activate(self) -> None:
        """Make the staged bundle active and on trial, and the active one the previous. Raises `BundleStorageError`."""
        with self._lock:
            state = self.state
            assert state.staged is not None
            # A bundle that has passed its trial is the better one to return to.
            previous = state.previous if state.trial is not None and state.previous is not None else state.active
            self.change(active=state.staged, previous=previous, staged=None, trial=Figures(), starts=0, crashes=0)
            self._clean()

    def reject(self, serial: int, why: str) -> None:
        """Never try that bundle again. If it is the active one, return to the previous. Raises `BundleStorageError`."""
        with self._lock:
            state = self.state
            rejected = dict(sorted({**state.rejected, serial: why}.items())[-_REJECTED_MAX:])
            changes: dict[str, Any] = {"rejected": rejected}
            changes |= {name: None for name in ("previous", "staged", "pending") if getattr(state, name) == serial}
            if state.active == serial:
                changes |= {"active": state.previous, "previous": None, "trial": None, "crashes": 0}
            self.change(**changes)
            self._clean()

    def _hold(self) -> Lock | None:
        """Return the lock of the folder, taken over from an older store of this process. Raises `BundleLockedError`."""
        path = self.root / "lock"
        key = os.getpid(), str(self.root.resolve())
        with _opening:
            older = _by_folder.get(key)
            if older is not None and older._held is not None:
                held, older._held = older._held, None
            else:
                try:
                    held = Lock(path)
                except BlockingIOError as err:
                    raise BundleLockedError(str(path), "a store that no other process has open", "one that is open") from err
            _by_folder[key] = self
            return held

    def _check_held(self) -> None:
        if self._held is None:
            raise BundleLockedError(str(self.root), "the open store of this folder", "one that was closed or opened again")

    def _floor(self) -> Release | None:
        """Return the second copy of the last release; None without one that is intact."""
        path = str(self._floor_path)
        with suppress(BundleError):
            copy = decode_json(read_bytes(self._floor_path), _Floor, path)
            if zlib.crc32(copy.release) == copy.crc32:
                return decode_json(copy.release, Release, path)
        return None

    def _save_floor(self) -> None:
        """Save the second copy. The next start tries again where that fails; until then the first one counts."""
        if self.state.release is not None:
            data = to_json(self.state.release)
            with suppress(OSError):
                write_atomically(self._floor_path, to_json(_Floor(release=data, crc32=zlib.crc32(data))))

    def _newest(self) -> int | None:
        """Return the newest intact bundle, for a state that was lost."""
        for serial in sorted((int(p.name) for p in self._bundles.iterdir() if p.name.isdecimal()), reverse=True):
            with suppress(BundleError):
                self.open(serial)
                return serial
        return None

    def _clean(self) -> None:
        state = self.state
        kept = {str(serial) for serial in (state.active, state.previous, state.staged, state.pending)}
        with suppress(OSError):  # the next start tries again
            for path in self._bundles.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)
