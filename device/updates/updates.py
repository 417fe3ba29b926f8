"""Updates of a feed's bundle: fetched in the background, activated between two pages, rolled back when they fail."""

from __future__ import annotations

import logging
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
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import ClientError
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes.base import ModelRuntimeError
from pocketrank.device.updates.probe import ProbeConfig, probe
from pocketrank.device.updates.reasons import NOT_CHECKED, Reason, failure, sentence
from pocketrank.device.updates.release import download, fetch_release, follow
from pocketrank.device.updates.store import BundleStore
from pocketrank.device.updates.trial import Trial, TrialConfig, unwatch, watch

__all__ = ["Current", "Outcome", "UpdateConfig", "Updates"]

Outcome = Literal["staged", "current", "waiting", "rejected", "killed"]
"""The result of a check: a new bundle is ready; there is no newer one; the roll-out has not reached this device; the released
bundle failed here or is revoked; no device is to run a model."""

_logger = logging.getLogger("pocketrank.device")


@dataclass(frozen=True)
class UpdateConfig:
    """How bundles are chosen, tried and watched."""

    format: Format = "onnx"
    """Format of the models that this device runs."""
    precision: Precision = "fp32"
    """Precision of the models that this device runs."""
    group: Group | None = None
    """Group of the user (`Bundle.group`)."""
    bytes_max: int = 64 << 20
    """Maximum size of a bundle in bytes. One with two forms in one format has a few million."""
    tries: int = 3
    """Probes of a bundle, and starts without a run of it, in which the process may end before the bundle is blamed for that."""
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    """The probe of a bundle before it is staged."""
    trial: TrialConfig = field(default_factory=TrialConfig)
    """The trial of a bundle in its first runs."""


class Current(NamedTuple):
    """What a feed ranks with until its next page. Without a ranker it keeps cloud order."""

    serial: int | None
    """The bundle in use, or the one that expired."""
    ranker: Ranker | None
    state: Literal["ok", "none", "killed", "expired"]
    why: str
    """A sentence for people: what is in use, and what keeps the device from another bundle."""


class Updates:
    """A feed's bundles. `current` is for the thread that takes pages, `check` for one in the background.

    Logs one record to `pocketrank.device` whenever the reason in `Current.why` changes: a warning when there is no model or
    something failed.
    """

    def __init__(self, store: BundleStore, *, device_id: str, config: UpdateConfig | None = None) -> None:
        """Open the active bundle. `device_id` is any text that stays the same: it decides when a roll-out reaches the device.

        A bundle that no longer opens is replaced by the previous one. So is a new bundle when the process ended in each of its
        first starts before a single run. Never raises.
        """
        self.store, self._device_id, self._config = store, device_id, config or UpdateConfig()
        self._lock, self._checking = threading.RLock(), threading.Lock()
        self._release = store.state.release  # in memory too: a full disk must not stop a kill
        self._ready: tuple[Bundle, Ranker] | None = None  # the staged bundle
        self._trial: Trial | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._serial: int | None = None
        self._ranker: Ranker | None = None
        self._expires_ms: int | None = None
        self._last_check: Reason | None = NOT_CHECKED
        self._disk: Reason | None = None
        self._logged: list[str] = []
        with suppress(BundleStorageError):  # a full disk is no reason to rank worse
            if store.state.trial is not None:
                if store.state.starts >= self._config.tries:
                    self._reject_active("the process ended before a run")
                else:
                    store.change(starts=store.state.starts + 1)
        with suppress(BundleStorageError):
            self._install()
            self._open_staged()

    def current(self) -> Current:
        """Return what to rank with from the next page on. Never raises.

        Call it between two pages, and only then: this is when a staged bundle is activated and a bad one is replaced.
        """
        with self._lock:
            self._disk = None
            try:
                self._judge()
                if self._ready is not None:
                    self.store.activate()
                    ready, self._ready = self._ready, None
                    self._install(ready)
            except BundleStorageError as err:  # everything stays as it is
                self._disk = failure(err)
            return self._report()

    def check(self, client: CloudClient) -> Outcome:
        """Fetch the release and follow it: download, verify and probe the bundle that it names.

        Blocks for as long as that takes, so give it a client of its own. A download that is interrupted resumes at the next
        check. Raises `ClientError`, `BundleError`; the active bundle then stays.
        """
        with self._checking:
            try:
                outcome, self._last_check = self._follow(client)
            except (ClientError, BundleError) as err:
                # A failed probe is remembered as a rejection, which says the same until there is another bundle.
                self._last_check = None if isinstance(err, ProbeError) else failure(err)
                self._report()
                raise
            if outcome not in ("staged", "current"):  # those are reported when the bundle is in use
                self._report()
            return outcome

    def start(
        self,
        client: CloudClient,
        every_s: float = 3600.0,
        report: Callable[[Outcome | ClientError | BundleError], None] = lambda outcome: None,
    ) -> None:
        """Check every `every_s` seconds in a thread, until `close`. `report` gets the result of each check, in that thread."""

        def run() -> None:
            while not self._stop.is_set():
                try:
                    outcome: Outcome | ClientError | BundleError = self.check(client)
                except (ClientError, BundleError) as err:
                    outcome = err
                report(outcome)
                self._stop.wait(every_s)

        self._thread = threading.Thread(target=run, name="pocketrank-updates", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and save the progress of a trial. An interrupted download resumes after the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        with suppress(BundleStorageError):
            self.save()

    def add(self, folder: Path) -> Outcome:
        """Copy the signed bundle in `folder`, such as one that is part of the app, as if it had been downloaded.

        Raises `BundleError`.
        """
        with self._checking:
            bundle = Bundle.open(folder, keys=self.store.keys, now_ms=self.store.now())
            if (outcome := self._known(bundle.manifest.serial)) is not None:
                return outcome
            self.store.add(bundle)
            self._prove(bundle.manifest.serial)
            return "staged"

    def save(self) -> None:
        """Save the progress of a trial for the next start, as `check` and `close` do. Raises `BundleStorageError`."""
        with self._lock:
            if self._trial is not None:
                self.store.change(trial=self._trial.figures)

    def _report(self) -> Current:
        """Return what is in use and why, and log the reason when it has changed."""
        with self._lock:
            current, reasons = self._current()
            clauses = [reason.clause for reason in reasons]
            if clauses != self._logged:
                self._logged = clauses
                bad = current.ranker is None or any(reason.detail for reason in reasons)
                _logger.log(logging.WARNING if bad else logging.INFO, "%s", current.why)
            return current

    def _current(self) -> tuple[Current, list[Reason]]:
        serial, ranker, release = self._serial, self._ranker, self._release
        if release is not None and release.kill:
            reasons = [Reason(f"Release {release.serial} stops all models")]
            return Current(None, None, "killed", sentence(reasons)), reasons
        state: Literal["ok", "none", "expired"]
        if serial is None:
            state, reasons = "none", [Reason("No bundle is installed")]
        elif ranker is None or (self._expires_ms is not None and self.store.now() >= self._expires_ms):
            state, ranker, reasons = "expired", None, [Reason(f"Bundle {serial} is expired")]
        else:
            state, reasons = "ok", [Reason(f"Bundle {serial} is in use")]
        # The newest bundle that this device refuses. Refusals of bundles older than the one in use no longer matter.
        revoked, rejected = () if release is None else release.revoked, self.store.state.rejected
        refused = max((*revoked, *rejected), default=0)
        if refused in revoked:
            refusal = Reason(f"bundle {refused} is revoked")
        else:
            refusal = Reason(f"bundle {refused} was rejected on this device", rejected.get(refused, ""))
        if refused > (serial or 0):
            reasons.append(refusal)
        reasons += [reason for reason in (self._last_check, self._disk) if reason is not None]
        return Current(serial, ranker, state, sentence(reasons)), reasons

    def _follow(self, client: CloudClient) -> tuple[Outcome, Reason | None]:
        """Do the work of `check`."""
        store, config = self.store, self._config
        release = fetch_release(client, store.keys)
        follow(release, store.state.release, store.now())
        self._release = release
        store.change(release=release)
        self.save()
        bundle = release.bundle
        if release.kill:
            return "killed", None
        if (outcome := self._known(bundle.serial)) is not None:
            return outcome, None
        if not in_rollout(self._device_id, release.salt, release.rollout):
            return "waiting", Reason(f"the roll-out of bundle {bundle.serial} has not reached this device")
        download(client, bundle, store.begin(bundle.serial), store.keys, config.bytes_max)
        self._prove(bundle.serial)
        return "staged", None

    def _known(self, serial: int) -> Outcome | None:
        """Return the outcome for a bundle that is not to be fetched; None for one that is."""
        state, release = self.store.state, self._release
        if serial in state.rejected or (release is not None and serial in release.revoked):
            return "rejected"
        return "current" if serial <= max(state.active or 0, state.staged or 0) else None

    def _prove(self, serial: int) -> None:
        """Open and probe the pending bundle, then stage it. Raises `BundleError`; a bundle that fails is rejected."""
        store, config = self.store, self._config
        try:
            bundle = store.open(serial)
            if store.state.probes >= config.tries:
                raise ProbeError(str(bundle.folder), "a probe that ends", f"{config.tries} that ended the process")
            store.change(probes=store.state.probes + 1)
            ranker = self._open(bundle)
            probe(bundle, ranker, config.format, config.precision, config.group, config.probe)
        except (BundleStorageError, ExpiredBundleError, BundleVersionError, CorruptBundleError):
            raise  # caused by the disk, the time, this SDK or the network, all of which may change
        except (BundleError, ModelRuntimeError, ContractError) as err:
            store.reject(serial, str(err))
            if isinstance(err, ProbeError):
                raise
            raise ProbeError(str(store.folder(serial)), "models that work on this device", str(err)) from err
        with self._lock:
            store.stage()
            self._ready = bundle, ranker

    def _open(self, bundle: Bundle) -> Ranker:
        config = self._config
        return Ranker.open(bundle, config.format, config.precision, group=config.group)

    def _judge(self) -> None:
        """Replace the active bundle if it is revoked or failed its trial."""
        store = self.store
        for serial in () if self._release is None else self._release.revoked:
            state = store.state
            if serial in (state.previous, state.staged, state.active):
                if serial == state.staged:
                    self._ready = None
                store.reject(serial, "revoked")
        if store.state.active != self._serial:
            self._install()
        if self._trial is None:
            return
        verdict = self._trial.verdict()
        if verdict is None:
            if store.state.starts and self._trial.figures.runs:
                store.change(starts=0)
        elif verdict:
            self._reject_active(verdict)
            self._install()
        else:
            store.change(trial=None, baseline=self._trial.figures)
            self._trial = None
            if self._ranker is not None:
                unwatch(self._ranker)

    def _reject_active(self, why: str) -> None:
        """Return to the previous bundle, or to cloud order without one."""
        if (serial := self.store.state.active) is not None:
            self.store.reject(serial, why)

    def _install(self, ready: tuple[Bundle, Ranker] | None = None) -> None:
        """Use the active bundle. `ready` is that bundle when it is already open."""
        store = self.store
        self._serial, self._ranker, self._trial, self._expires_ms = None, None, None, None
        while True:
            try:
                bundle = ready[0] if ready else store.active()
                if bundle is None:
                    return
                ranker = ready[1] if ready else self._open(bundle)
                golden = bundle.golden()
                break
            except ExpiredBundleError:
                self._serial = store.state.active  # without a ranker
                return
            except (NoSuchModelError, CorruptBundleError, ModelRuntimeError, ContractError) as err:
                self._reject_active(str(err))
                ready = None
        self._serial, self._ranker, self._expires_ms = bundle.manifest.serial, ranker, bundle.manifest.expires_ms
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
                self.store.change(staged=None)  # the next check fetches it again
