"""The bundles on a device's disk: one active, the one before it, and the one that is to come.

::

    bundles/<serial>/     each bundle in a folder of its own; what it is, only the state says
    state.json            `StoreState`, replaced whole: every step below is one such replacement

So a process that is killed at any moment leaves the state before the step or the state after it, and folders that no state
speaks of, which the next start removes. A store is for one process; its methods may be called from several threads.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import (
    MANIFEST,
    SIGNATURES,
    BundleError,
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
from pocketrank.device.files import sync, write_atomically
from pocketrank.device.updates.trial import Figures

__all__ = ["BundleStore", "StoreState"]

_REJECTED_MAX = 64  # serials remembered; releases that name older ones are refused by their number


class StoreState(msgspec.Struct, frozen=True, kw_only=True):
    """What a store remembers. Bundles are named by their serials."""

    version: int = 1
    active: int | None = None
    """The one in use."""
    previous: int | None = None
    """The one before it, to go back to."""
    staged: int | None = None
    """Downloaded, verified and probed; becomes active between two pages."""
    pending: int | None = None
    """On its way; some of its files may be here."""
    release: Release | None = None
    """The last that was followed: the floor under everything that comes."""
    rejected: dict[int, str] = {}
    """Serials that failed on this device, and why; they are not tried again."""
    probes: int = 0
    """Probes of the pending one that did not come to an end."""
    starts: int = 0
    """Starts with the active one on trial in which it never ran."""
    trial: Figures | None = None
    """Of the active one while it is on trial."""
    baseline: Figures | None = None
    """Of the last one that came through its trial."""


class BundleStore:
    """Bundles in the folder `root`, all signed by `keys`. `clock` tells the time in ms since the epoch, UTC."""

    def __init__(self, root: Path, keys: TrustedKeys, *, clock: Callable[[], int] = wall_clock) -> None:
        """Open the store, make it if there is none, and remove what a killed process left. Raises `StoreError`."""
        self.root, self.keys, self._clock = root, keys, clock
        self._lock = threading.RLock()
        self._bundles, self._path = root / "bundles", root / "state.json"
        with on_disk(root):
            self._bundles.mkdir(parents=True, exist_ok=True)
            found = self._path.exists()
        self.state = StoreState()
        """What it remembers. It changes through the methods below only."""
        if found:
            try:
                self.state = decode_json(read_bytes(self._path), StoreState, str(self._path))
            except BundleError:
                newest = self._newest()
                self.change(active=newest, trial=None if newest is None else Figures())
        self._clean()

    def now(self) -> int:
        """The time in ms, never before that of the last release: a clock that is set back brings nothing back to life."""
        release = self.state.release
        return max(self._clock(), 0 if release is None else release.created_ms)

    def folder(self, serial: int) -> Path:
        """Where a bundle lies, or would."""
        return self._bundles / str(serial)

    def open(self, serial: int) -> Bundle:
        """A bundle of the store, checked again. Raises `BundleError`."""
        bundle = Bundle.open(self.folder(serial), keys=self.keys, now_ms=self.now())
        if bundle.manifest.serial != serial:
            raise CorruptBundleError(str(bundle.folder), f"serial {serial}", f"{bundle.manifest.serial}")
        return bundle

    def active(self) -> Bundle | None:
        """The bundle in use, checked again; None without one. One that was damaged gives way to the previous one.

        Raises `ExpiredBundleError`, and `StoreError` when that cannot be written down.
        """
        with self._lock:
            while self.state.active is not None:
                try:
                    return self.open(self.state.active)
                except ExpiredBundleError:
                    raise
                except BundleError:  # not rejected: the same bundle may be downloaded again
                    self.change(active=self.state.previous, previous=None, trial=None)
            return None

    def change(self, **changes: Any) -> None:
        """Remember `changes` of the state's fields, all or none. Raises `StoreError`; what was remembered then stays."""
        with self._lock:
            state = msgspec.structs.replace(self.state, **changes)
            if state != self.state:
                with on_disk(self._path):
                    write_atomically(self._path, to_json(state))
                self.state = state

    def begin(self, serial: int) -> Path:
        """The folder for a bundle that is about to be downloaded, with what an earlier try left. Raises `StoreError`."""
        with self._lock:
            if self.state.pending != serial:
                self.change(pending=serial, probes=0)
                self._clean()
            folder = self.folder(serial)
            with on_disk(folder):
                folder.mkdir(exist_ok=True)
            return folder

    def add(self, bundle: Bundle) -> None:
        """Copy a bundle that lies elsewhere, which is then pending. Raises `StoreError`."""
        folder = self.begin(bundle.manifest.serial)
        with on_disk(folder):
            for path in (MANIFEST, SIGNATURES, *(entry.path for entry in bundle.manifest.files)):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(bundle.folder / path, folder / path)

    def stage(self) -> None:
        """The pending bundle, found good, is now staged. Raises `StoreError`."""
        with self._lock:
            serial = self.state.pending
            assert serial is not None
            with on_disk(self.folder(serial)):
                for path in (*self.folder(serial).rglob("*"), self.folder(serial), self._bundles):
                    sync(path)
            self.change(staged=serial, pending=None)
            self._clean()

    def activate(self) -> None:
        """The staged bundle is now the active one and on trial, the active one the previous. Raises `StoreError`."""
        with self._lock:
            state = self.state
            assert state.staged is not None
            # One that has not come through its trial is less to go back to than one that has.
            previous = state.previous if state.trial is not None and state.previous is not None else state.active
            self.change(active=state.staged, previous=previous, staged=None, trial=Figures(), starts=0)
            self._clean()

    def settle(self, figures: Figures) -> None:
        """The active bundle came through its trial with `figures`. Raises `StoreError`."""
        self.change(trial=None, baseline=figures)

    def reject(self, serial: int, why: str) -> None:
        """Never try that bundle again. The active one gives way to the previous one, if there is one. Raises `StoreError`."""
        with self._lock:
            state = self.state
            rejected = dict(sorted({**state.rejected, serial: why}.items())[-_REJECTED_MAX:])
            changes: dict[str, Any] = {"rejected": rejected}
            changes |= {name: None for name in ("previous", "staged", "pending") if getattr(state, name) == serial}
            if state.active == serial:
                changes |= {"active": state.previous, "previous": None, "trial": None}
            self.change(**changes)
            self._clean()

    def _newest(self) -> int | None:
        """The newest bundle that is whole, for a state that was lost."""
        for serial in sorted((int(p.name) for p in self._bundles.iterdir() if p.name.isdecimal()), reverse=True):
            with suppress(BundleError):
                self.open(serial)
                return serial
        return None

    def _clean(self) -> None:
        state = self.state
        kept = {str(serial) for serial in (state.active, state.previous, state.staged, state.pending)}
        with suppress(OSError):  # what cannot be removed now is at the next start
            for path in self._bundles.iterdir():
                if path.name not in kept:
                    shutil.rmtree(path, ignore_errors=True)
