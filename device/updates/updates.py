"""Brings new bundles to a feed: checked in the background, put to use between two pages, left again when they misbehave."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import (
    BundleError,
    BundleStorageError,
    BundleVersionError,
    CorruptBundleError,
    ExpiredBundleError,
    NoSuchModelError,
    ProbeError,
)
from pocketrank.device.contract import ContractError, Format, Group, Precision, in_rollout
from pocketrank.device.network.client import ClientError, CloudClient
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes.base import ModelRuntimeError
from pocketrank.device.updates.probe import ProbeConfig, probe
from pocketrank.device.updates.release import download, fetch_release, follow
from pocketrank.device.updates.store import BundleStore
from pocketrank.device.updates.trial import Trial, TrialConfig, unwatch, watch

__all__ = ["Current", "Outcome", "UpdateConfig", "Updates"]

Outcome = Literal["staged", "current", "waiting", "rejected", "killed"]
"""What a check came to: a new bundle is here; there is none; it is not this device's turn yet; the released one failed here or
is revoked; no model is to run."""


@dataclass(frozen=True)
class UpdateConfig:
    """How bundles are chosen, tried and watched."""

    format: Format = "onnx"
    """Of the models that this device runs."""
    precision: Precision = "fp32"
    """Of the models that this device runs."""
    group: Group | None = None
    """Of the user (`Bundle.group`)."""
    bytes_max: int = 64 << 20
    """Most bytes of a bundle. One with two forms in one format has a few million."""
    tries: int = 3
    """Probes, and starts without a run, that may end with the process before the bundle is held to have ended it."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """Before it is used."""
    trial: TrialConfig = field(default_factory=TrialConfig)
    """When it is new."""


class Current(NamedTuple):
    """What a feed is to rank with until its next page. Without a ranker it keeps cloud order; `why` says what for."""

    serial: int | None
    ranker: Ranker | None
    why: Literal["ok", "none", "killed", "expired"]


class Updates:
    """A feed's bundles. `current` is for the thread that takes pages, `check` for one in the background."""

    def __init__(self, store: BundleStore, *, device_id: str, config: UpdateConfig | None = None) -> None:
        """Open what is active. `device_id` is any text that this device keeps: it decides when a roll-out reaches it.

        A bundle that no longer opens gives way to the one before it; so does a new one in whose first starts the process ended
        before a single run. Never raises.
        """
        self.store, self._device_id, self._config = store, device_id, config or UpdateConfig()
        self._lock, self._checking = threading.RLock(), threading.Lock()
        self._release = store.state.release  # in memory too: a full disk must not stop a kill
        self._ready: tuple[Bundle, Ranker] | None = None  # the staged bundle
        self._trial: Trial | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._current = Current(None, None, "none")
        self._expires_ms: int | None = None
        with suppress(BundleStorageError):  # a full disk is no reason to rank worse
            if store.state.trial is not None:
                if store.state.starts >= self._config.tries:
                    self._leave("the process ended before a run")
                else:
                    store.change(starts=store.state.starts + 1)
        with suppress(BundleStorageError):
            self._install()
            self._open_staged()

    def current(self) -> Current:
        """What to rank with from the next page on. To be asked between two pages, and only then: this is when a new bundle
        comes into use, and when one that did badly is left. Never raises.
        """
        with self._lock:
            with suppress(BundleStorageError):  # a full disk leaves everything as it is
                self._judge()
                if self._ready is not None:
                    self.store.activate()
                    ready, self._ready = self._ready, None
                    self._install(ready)
            if self._release is not None and self._release.kill:
                return Current(None, None, "killed")
            if self._expires_ms is not None and self.store.now() >= self._expires_ms:
                return Current(self._current.serial, None, "expired")
            return self._current

    def check(self, client: CloudClient) -> Outcome:
        """Ask for the release, and follow it: download, verify and probe the bundle that it names. Blocks, for as long as
        that takes; what was downloaded stays for the next check. Give it a client of its own.

        Raises `ClientError`, `BundleError`; what is active stays.
        """
        with self._checking:
            store, config = self.store, self._config
            release = fetch_release(client, store.keys)
            follow(release, store.state.release, store.now())
            self._release = release
            store.change(release=release)
            self.keep()
            ref = release.bundle
            if release.kill:
                return "killed"
            if (outcome := self._known(ref.serial)) is not None:
                return outcome
            if not in_rollout(self._device_id, release.salt, release.rollout):
                return "waiting"
            download(client, ref, store.begin(ref.serial), store.keys, config.bytes_max)
            self._prove(ref.serial)
            return "staged"

    def start(
        self,
        client: CloudClient,
        every_s: float = 3600.0,
        told: Callable[[Outcome | ClientError | BundleError], None] = lambda outcome: None,
    ) -> None:
        """Check now and then in a thread of its own, until `close`. `told` gets what each check came to, in that thread."""

        def run() -> None:
            while not self._stop.is_set():
                try:
                    outcome: Outcome | ClientError | BundleError = self.check(client)
                except (ClientError, BundleError) as err:
                    outcome = err
                told(outcome)
                self._stop.wait(every_s)

        self._thread = threading.Thread(target=run, name="pocketrank-updates", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread, and write down how far a trial came. A download that is under way goes on at the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        with suppress(BundleStorageError):
            self.keep()

    def add(self, folder: Path) -> Outcome:
        """Take in the signed bundle in `folder`, such as one that comes with the app, as if it had been downloaded. Raises
        `BundleError`.
        """
        with self._checking:
            bundle = Bundle.open(folder, keys=self.store.keys, now_ms=self.store.now())
            if (outcome := self._known(bundle.manifest.serial)) is not None:
                return outcome
            self.store.add(bundle)
            self._prove(bundle.manifest.serial)
            return "staged"

    def keep(self) -> None:
        """Write down how far a trial came, for the next start. `check` and `close` do. Raises `BundleStorageError`."""
        with self._lock:
            if self._trial is not None:
                self.store.change(trial=self._trial.figures)

    def _known(self, serial: int) -> Outcome | None:
        """What a bundle comes to that is not wanted."""
        state, release = self.store.state, self._release
        if serial in state.rejected or (release is not None and serial in release.revoked):
            return "rejected"
        return "current" if serial <= max(state.active or 0, state.staged or 0) else None

    def _prove(self, serial: int) -> None:
        """Open and probe the pending bundle; then it is staged. Raises `BundleError`; one that fails is rejected."""
        store, config = self.store, self._config
        try:
            bundle = store.open(serial)
            if store.state.probes >= config.tries:
                raise ProbeError(str(bundle.folder), "a probe that comes to an end", f"{config.tries} that ended the process")
            store.change(probes=store.state.probes + 1)
            ranker = self._open(bundle)
            probe(bundle, ranker, config.format, config.precision, config.group, config.probe)
        except (BundleStorageError, ExpiredBundleError, BundleVersionError, CorruptBundleError):
            raise  # the disk's, the time's, this SDK's or the way's fault, all of which may pass
        except (BundleError, ModelRuntimeError, ContractError) as err:
            store.reject(serial, str(err))
            raise ProbeError(str(store.folder(serial)), "models that work on this device", str(err)) from err
        with self._lock:
            store.stage()
            self._ready = bundle, ranker

    def _open(self, bundle: Bundle) -> Ranker:
        config = self._config
        return Ranker.open(bundle, config.format, config.precision, group=config.group)

    def _judge(self) -> None:
        """Leave the active bundle if it is revoked or failed its trial."""
        store = self.store
        for serial in () if self._release is None else self._release.revoked:
            state = store.state
            if serial in (state.previous, state.staged, state.active):
                if serial == state.staged:
                    self._ready = None
                store.reject(serial, "revoked")
        if store.state.active != self._current.serial:
            self._install()
        if self._trial is None:
            return
        verdict = self._trial.verdict()
        if verdict is None:
            if store.state.starts and self._trial.figures.runs:
                store.change(starts=0)
        elif not verdict.healthy:
            self._leave(verdict.why)
            self._install()
        else:
            store.settle(self._trial.figures)
            self._trial = None
            if self._current.ranker is not None:
                unwatch(self._current.ranker)

    def _leave(self, why: str) -> None:
        """Back to the previous bundle, or to cloud order without one."""
        if (serial := self.store.state.active) is not None:
            self.store.reject(serial, why)

    def _install(self, ready: tuple[Bundle, Ranker] | None = None) -> None:
        """Use the active bundle, which may be `ready`, opened."""
        store = self.store
        self._current, self._trial, self._expires_ms = Current(None, None, "none"), None, None
        while True:
            try:
                bundle = ready[0] if ready else store.active()
                if bundle is None:
                    return
                ranker = ready[1] if ready else self._open(bundle)
                golden = bundle.golden()
                break
            except ExpiredBundleError:
                self._current = Current(store.state.active, None, "expired")
                return
            except (NoSuchModelError, CorruptBundleError, ModelRuntimeError, ContractError) as err:
                self._leave(str(err))
                ready = None
        self._current, self._expires_ms = Current(bundle.manifest.serial, ranker, "ok"), bundle.manifest.expires_ms
        if (figures := store.state.trial) is not None:
            ranges = () if golden is None else golden.ranges
            self._trial = Trial(self._config.trial, ranges=ranges, baseline=store.state.baseline, figures=figures)
            watch(ranker, self._trial)

    def _open_staged(self) -> None:
        if (serial := self.store.state.staged) is not None:
            try:
                bundle = self.store.open(serial)
                self._ready = bundle, self._open(bundle)
            except (BundleError, ModelRuntimeError, ContractError):
                self.store.change(staged=None)  # the next check brings it anew
