"""The device and the server of `benchmarks.reliability.clocks`: real parts, on clocks that are set."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from pocketrank.cloud.pages.arrival import OFF_MAX_MS
from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from pocketrank.device.clock import DeviceClock
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest, TelemetryReport
from pocketrank.device.feedback.impression import Impression
from pocketrank.device.network.errors import UnreachableError
from pocketrank.device.offline.store import DeviceStore
from pocketrank.device.offline.upload import Uploader
from pocketrank.device.paging import FixedPaging
from pocketrank.device.session import FeedSession, SessionConfig
from tests.cloud.small_published import SmallRun
from tests.device.worlds import make_page

__all__ = ["DAY", "SECOND", "ChaosConfig", "Machine", "Network", "Phone", "Server", "Truth", "spread"]

SECOND, DAY = 1_000, 86_400_000
_YEAR = 365 * DAY
_BEGIN_MS = 2_208_988_800_000  # 2040: well after the clock of the machine that this runs on
_USER = 10**9  # has no published history


@dataclass(frozen=True)
class ChaosConfig:
    """What a sequence is made of."""

    actions: int = 40
    """Swipes and all that is between them."""
    way_max_ms: int = 5_000
    """Longest way of a request or an answer: the timeout of the device's client."""
    items: int = 400
    """Items of the catalogue. A sequence shows each at most once."""
    page_items: int = 12
    """Items of a page."""
    ttl_ms: int = 600_000
    """Longest life of a page."""
    recovery_ms: int = 900_000
    """Time until a session has a page and has sent its feedback: the longest life of a page and the longest back-offs of
    refill (1 min) and upload (5 min) end within it."""
    last_swipes: int = 3
    """Swipes after that."""
    recovery_step_ms: int = 15_000
    """Time between two attempts in the end."""


class Truth:
    """The true time, and the true dates."""

    def __init__(self) -> None:
        self.ms = _BEGIN_MS
        self.shown: dict[int, int] = {}
        """When each item was shown, of which a session accepted the feedback."""


class Machine(DeviceClock):
    """Clocks of a device or a server: the wall clock is off by what it was set to, the boot clock is right."""

    def __init__(self, truth: Truth, has_boot_name: bool) -> None:
        self._truth, self._has_boot_name, self._boots = truth, has_boot_name, 0
        self.off_ms = 0
        """By how much the wall clock is ahead of the truth."""
        self.booted_ms = truth.ms

    def __call__(self) -> int:
        return self._truth.ms + self.off_ms

    def since_boot_ms(self) -> int:
        return self._truth.ms - self.booted_ms

    def boot(self) -> str | None:
        return str(self._boots) if self._has_boot_name else None

    def restart(self) -> None:
        self.booted_ms, self._boots = self._truth.ms, self._boots + 1

    def step(self, rng: random.Random) -> None:
        """Set the wall clock: by up to six years, to 1970, or right."""
        match rng.randrange(5):
            case 0:
                self.off_ms = 0
            case 1:
                self.off_ms = rng.randrange(DAY) - self._truth.ms
            case _:
                self.off_ms += rng.choice((-1, 1)) * spread(rng, 3 * SECOND, 6 * _YEAR)
                self.off_ms = max(self.off_ms, -self._truth.ms)


def spread(rng: random.Random, least: float, most: float) -> int:
    """Return a number between the two, of every order of magnitude alike."""
    return int(least * (most / least) ** rng.random())


def _added(set_ms: int, idle_ms: int) -> int:
    """Return what a start adds to the bound, `idle_ms` after the last event, when the wall clock was set by `set_ms` since."""
    if abs(set_ms) < 2 * SECOND and idle_ms <= OFF_MAX_MS:
        return 0
    return idle_ms if set_ms < 0 else max(OFF_MAX_MS, idle_ms)


class Server:
    """The cloud: intake, log and states, and pages of items that were not shown."""

    def __init__(
        self, path: Path, run: SmallRun, truth: Truth, clock: Machine, items: Sequence[int], config: ChaosConfig
    ) -> None:
        self._path, self._run, self._truth, self.clock, self._config = path, run, truth, clock, config
        self._items = iter(items)
        self._pages = count()
        self.began_off_ms = clock.off_ms
        self._starts_ms = self._waited_ms = 0
        self._last_ms = truth.ms
        self._open()

    def _open(self) -> None:
        # `sync` is for power cuts; `keep_days` is by the clock of this machine.
        self.log = SqliteFeedbackLog(self._path, SqliteLogConfig(full_sync=False, keep_days=None))
        self.states = UserStates(self._run.published, self._run.record)
        wall, since_boot_ms = self.clock, self.clock.since_boot_ms
        self.intake = FeedbackIntake(self.log, self.states, lambda: wall() / 1e3, lambda: since_boot_ms() / 1e3)

    def restart(self) -> None:
        """End, and begin again after the machine has restarted."""
        self._starts_ms += _added(self.clock.off_ms - self.began_off_ms, self._truth.ms - self._last_ms)
        self.close()
        self._open()

    def close(self) -> None:
        self.log.close()

    def accept(self, events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        admitted, refused = self.intake.admit(events)
        (receipt,) = self.intake.together([admitted])
        if not isinstance(receipt, FeedbackReceipt):
            raise receipt
        for shown_ms in (self._truth.shown[event.item_id] for event in events):
            self._last_ms = max(self._last_ms, shown_ms)
            self._waited_ms = max(self._waited_ms, self._truth.ms - shown_ms)
        return FeedbackReceipt(accepted=receipt.accepted, duplicates=receipt.duplicates, refused=refused)

    def page(self, request: PageRequest, ttl_ms: int) -> Page:
        items = [item for item, _ in zip(self._items, range(min(request.size, self._config.page_items)), strict=False)]
        name = f"page-{next(self._pages)}"
        return make_page(items, page_id=name, request_id=request.request_id, created_ms=self.clock(), ttl_ms=ttl_ms)

    @property
    def extra_ms(self) -> int:
        """What its starts add to the bound, and that it began with a clock that was behind."""
        return self._starts_ms + (self._waited_ms if self.began_off_ms < 0 else 0)

    def order(self) -> list[int]:
        """Return the items of the user's state, oldest first."""
        found: list[int] = self._run.published.item_id[self.states(_USER).seen].tolist()
        return found


class Network:
    """The way of one device to the server: bytes that take their time, get lost, or are answered in vain."""

    def __init__(self, truth: Truth, server: Server, rng: random.Random, config: ChaosConfig) -> None:
        self._truth, self._server, self._rng, self._config = truth, server, rng, config
        self.works = True
        self.loses = 0.1
        """Share of answers that are lost."""

    def page(self, request: PageRequest) -> Page:
        """Do as `CloudClient.page`."""
        return from_msgpack(self._exchange(to_msgpack(request), self._make), Page)

    def send_feedback(self, events: Sequence[FeedbackEvent], telemetry: TelemetryReport | None = None) -> FeedbackReceipt:
        """Do as `CloudClient.send_feedback`."""
        batch = FeedbackBatch(events=tuple(events), telemetry=telemetry)
        return from_msgpack(self._exchange(to_msgpack(batch), self._take), FeedbackReceipt)

    def _make(self, body: bytes) -> bytes:
        request = from_msgpack(body, PageRequest)
        self._server.accept(request.feedback)
        return to_msgpack(self._server.page(request, spread(self._rng, 30 * SECOND, self._config.ttl_ms)))

    def _take(self, body: bytes) -> bytes:
        return to_msgpack(self._server.accept(from_msgpack(body, FeedbackBatch).events))

    def _exchange(self, body: bytes, answer: Callable[[bytes], bytes]) -> bytes:
        if not self.works:
            raise UnreachableError("POST", "no network")
        self._truth.ms += self._rng.randrange(self._config.way_max_ms)
        answered = answer(body)
        self._truth.ms += self._rng.randrange(self._config.way_max_ms)
        if self._rng.random() < self.loses:
            raise UnreachableError("POST", "a lost answer")
        return answered


class Phone:
    """A device with its store, and the app on it."""

    def __init__(self, path: Path, name: str, truth: Truth, network: Network, clock: Machine, rng: random.Random) -> None:
        self._path, self._name, self._truth, self.network, self.clock, self._rng = path, name, truth, network, clock, rng
        self._starts = count()
        self.accepted: set[str] = set()
        self.extra_ms = 0
        """What its starts add to the bound."""
        self.starts = 0
        self._known_off_ms = clock.off_ms  # when the store last saw the clock
        self._last_ms = truth.ms
        self._open()

    def _open(self) -> None:
        self.store = DeviceStore(self._path, clock=self.clock)
        name = f"{self._name}/{next(self._starts)}"
        self.session = FeedSession(
            None,
            user_id=_USER,
            session_id=name,
            config=SessionConfig(expects_model=False),
            paging=FixedPaging(),
            store=self.store,
            clock=self.clock,
            rng=self._rng,
        )
        self.session.restore()
        self.uploader = Uploader(self.store.outbox, self.network.send_feedback, rng=self._rng)
        self.upload_at_ms = 0
        self._known_off_ms = self.clock.off_ms

    def restart(self, off: bool) -> None:
        """End the app, and begin it again; `off`: after the device has restarted, and not only the app."""
        self.starts += 1
        if off or self.clock.boot() is None:
            self.extra_ms += _added(self.clock.off_ms - self._known_off_ms, self._truth.ms - self._last_ms)
        self._open()

    def end(self) -> None:
        """End the app."""
        self.store.close()
        self._known_off_ms = self.clock.off_ms

    def swipe(self, between: Callable[[], None]) -> None:
        """Show an item, during which `between` happens, and report how it was watched."""
        item = self.session.next()
        if item is None:
            return
        shown_ms, at = self._truth.ms, self.session.position - 1
        impression = Impression(item, position=at, user_id=_USER, session_id=self.session.session_id, clock=self.clock)
        self._truth.ms += self._rng.randrange(SECOND, 30 * SECOND)
        between()
        event = impression.finish()
        if self.session.feedback(event):
            self._truth.shown[item] = shown_ms
            self.accepted.add(event.event_id)
            self._last_ms, self._known_off_ms = shown_ms, self.clock.off_ms

    def refill(self) -> bool:
        """Ask for a page if it is time to; whether one arrived."""
        return self.session.refill(self.network).taken  # type: ignore[arg-type]  # what a session uses of a client

    def upload(self) -> None:
        """Do what the uploader's thread does."""
        if self._truth.ms >= self.upload_at_ms:
            self.upload_at_ms = self._truth.ms + int(1e3 * self.uploader.step())
            self._known_off_ms = self.clock.off_ms
