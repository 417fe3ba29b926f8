"""Updates of a feed's bundle: fetched in the background, activated between two pages, rolled back when they fail."""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple
from weakref import WeakSet

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import (
    BundleError,
    BundleStorageError,
    BundleVersionError,
    CorruptBundleError,
    ExpiredBundleError,
    NoSuchModelError,
    OtherFeedError,
    ProbeError,
)
from pocketrank.device.contract import ContractError, FeedName, Format, Group, Precision, in_rollout
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import ClientError
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes.base import ModelRuntimeError
from pocketrank.device.updates.probe import ProbeConfig, probe
from pocketrank.device.updates.reasons import NOT_CHECKED, Reason, failure, sentence
from pocketrank.device.updates.release import check_feed, download, fetch_release, follow
from pocketrank.device.updates.store import BundleStore
from pocketrank.device.updates.trial import Trial, TrialConfig, unwatch, watch

__all__ = ["Current", "Outcome", "UpdateConfig", "Updates"]

Outcome = Literal["staged", "current", "waiting", "rejected", "killed"]
"""The result of a check: a new bundle is ready; there is no newer one; the roll-out has not reached this device; the released
bundle failed here or is revoked; no device is to run a model."""

_logger = logging.getLogger("pocketrank.device")
_all: WeakSet[Updates] = WeakSet()


@atexit.register
def _end_all() -> None:
    """An interpreter that exits in order has not crashed. A phone's system seldom lets it."""
    for updates in list(_all):
        updates._end()


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
    """Times in a row that the process may end before the bundle is blamed: in its probe, in starts without a run of it, and in
    starts that the app did not end (`Updates.close`, `Updates.background`). Twice as many of the last where the app never ends
    one, and only while the bundle is on trial: a phone's system stops apps at any time."""
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

    def __init__(
        self,
        store: BundleStore,
        *,
        device_id: str,
        app: str = "",
        channel: str = "",
        config: UpdateConfig | None = None,
    ) -> None:
        """Open the active bundle. `device_id` is any text that stays the same: it decides when a roll-out reaches the device.

        Only bundles and releases whose `app` and `channel` are exactly these are used: without names, only those without names.

        A bundle that no longer opens is replaced by the previous one. So is one with which the process ended too often
        (`UpdateConfig.tries`). Never raises.
        """
        self.store, self._device_id, self._config = store, device_id, config or UpdateConfig()
        self._feed = FeedName(app, channel)
        self._lock, self._checking = threading.RLock(), threading.Lock()
        last = store.state.release
        # In memory too: a full disk must not stop a kill. What another channel of this app released says nothing here.
        self._release = last if last is not None and last.feed == self._feed else None
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
        self._process = os.getpid()
        _all.add(self)
        self.probes_given_up = 0
        """Probes that did not end (`ProbeConfig.give_up_s`). The thread of each goes on until the process ends."""
        self._armed = False  # whether an end of the process counts as a crash
        with suppress(BundleStorageError):  # a full disk is no reason to rank worse
            tries, state = self._config.tries, store.state
            if state.trial is not None and state.starts >= tries:
                self._reject_active("the process ended before a run")
            elif state.crashes >= (tries if state.ends else 2 * tries):
                self._reject_active(f"the process ended in each of its last {state.crashes} starts")
            else:
                if state.trial is not None:
                    store.change(starts=state.starts + 1)
                self._arm()
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
                if not self._armed:  # a page is taken: the app is back from the background
                    self._arm()
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
                    try:
                        outcome: Outcome | ClientError | BundleError = self.check(client)
                    except (ClientError, BundleError) as err:
                        outcome = err
                    report(outcome)
                except Exception:  # of `report`, say, which is the app's; a later release may be a kill
                    _logger.exception("a check for updates failed")
                self._stop.wait(every_s)

        self._thread = threading.Thread(target=run, name="pocketrank-updates", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop the thread and do what `background` does. An interrupted download resumes after the next start."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=1.0)
        self.background()

    def background(self) -> None:
        """Note that the process may end now without blame for its bundle, and save the progress of a trial. Never raises.

        Call it whenever the app goes to the background. When the process ends without this or `close`, several times in a row,
        the bundle in use is replaced by the previous one (`UpdateConfig.tries`). `current` begins the next watch.
        """
        self._end(ends=True)

    def add(self, folder: Path) -> Outcome:
        """Copy the signed bundle in `folder`, such as one that is part of the app, as if it had been downloaded.

        Raises `BundleError`.
        """
        with self._checking:
            bundle = Bundle.open(folder, keys=self.store.keys, now_ms=self.store.now())
            check_feed(bundle.manifest, self._feed, str(folder))
            if (outcome := self._known(bundle.manifest.serial)) is not None:
                return outcome
            self.store.add(bundle)
            self._prove(bundle.manifest.serial)
            return "staged"

    def save(self) -> None:
        """Save the progress of a trial for the next start, as most methods do. Raises `BundleStorageError`."""
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
        release = follow(fetch_release(client, store.keys, self._feed), self._release, store.clock())
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
        download(client, bundle, store.begin(bundle.serial), store.keys, config.bytes_max, self._feed)
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
            ranker = self._probed(bundle)
        except (BundleStorageError, ExpiredBundleError, BundleVersionError, CorruptBundleError, OtherFeedError):
            raise  # caused by the disk, the time, this SDK or the network, all of which may change
        except (BundleError, ModelRuntimeError, ContractError) as err:
            store.reject(serial, str(err))
            if isinstance(err, ProbeError):
                raise
            raise ProbeError(str(store.folder(serial)), "models that work on this device", str(err)) from err
        with self._lock:
            store.stage()
            self._ready = bundle, ranker

    def _probed(self, bundle: Bundle) -> Ranker:
        """Open and probe a bundle in a thread of its own. A probe that does not end must not hold the next kill.

        Raises what the probe raises, and `ProbeError` when it is given up on.
        """
        config, result = self._config, Future[Ranker]()

        def run() -> None:
            try:
                ranker = self._open(bundle)
                probe(bundle, ranker, config.format, config.precision, config.group, config.probe)
            except BaseException as err:
                result.set_exception(err)
            else:
                result.set_result(ranker)

        threading.Thread(target=run, name="pocketrank-probe", daemon=True).start()
        try:
            return result.result(config.probe.give_up_s)
        except TimeoutError as err:
            if result.done():  # the probe's own error
                raise
            self.probes_given_up += 1
            within = f"a probe that ends within {config.probe.give_up_s:g} s"
            raise ProbeError(str(bundle.folder), within, "one that goes on") from err

    def _open(self, bundle: Bundle) -> Ranker:
        config = self._config
        check_feed(bundle.manifest, self._feed, str(bundle.folder))  # the app may have changed its channel
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
            if (figures := self._trial.figures).runs:  # saved, since the process may end without a word
                store.change(starts=0, trial=figures)
        elif verdict:
            self._reject_active(verdict)
            self._install()
        else:
            store.change(trial=None, baseline=self._trial.figures, crashes=0)
            self._trial = None
            if self._ranker is not None:
                unwatch(self._ranker)

    def _arm(self) -> None:
        """Count this start as one that crashed, until the app ends it. Raises `BundleStorageError`."""
        state = self.store.state
        if state.active is not None and (state.trial is not None or state.ends):
            self.store.change(crashes=state.crashes + 1)
        self._armed = True

    def _end(self, **reported: bool) -> None:
        """Stop to count this start as one that crashed, and save the progress of a trial. Never raises."""
        if os.getpid() != self._process:  # a fork of the process that has the store
            return
        with self._lock, suppress(BundleStorageError):
            self.save()
            self.store.change(starts=0, crashes=0, **reported)
            self._armed = False

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
            except (OtherFeedError, CorruptBundleError):  # caused by the app or the disk: it may be of use again
                store.retire()
                ready = None
            except (NoSuchModelError, ModelRuntimeError, ContractError) as err:
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
