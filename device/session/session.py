"""One user's session: holds a page, shows its best item next, learns from each swipe, says when to ask for more.

Bad data never raises here. Each kind has its fallback, and a counter (`Counters`) that tells how often it was taken:

- a page whose item ids cannot be read, or with nothing new in it, is refused; what was held stays;
- a page whose features cannot be read is shown in cloud order;
- vectors that are absent, malformed or of another split version leave the self-contained form, else cloud order;
- a model that fails or answers NaN leaves cloud order for this swipe;
- a model that does not answer in time leaves cloud order for this swipe (`pocketrank.device.ranking.watchdog`);
- feedback that the contract does not allow is dropped; for an unknown item it is uploaded and not shown to the model;
- a cloud that does not answer leaves what is held, and the feedback waits.

With a `PersonalLayer` the order is by the user's own probabilities, and an item's first feedback teaches the layer, from what
the shipped model said of it when it was shown; what was shown without a model (in cloud order, or as the last one) does not.

A swipe never waits for the network, and never for a page that another thread is taking: pages are read and encoded outside of
the lock that swipes take.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank import __version__
from pocketrank.device.clock import wall_clock
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import BlockError, ContractError, FeedbackEvent, Form, Page, PageRequest
from pocketrank.device.model.personal import PersonalLayer
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.offline.outbox import MemoryOutbox, OutboxConfig
from pocketrank.device.paging import PageDecision, Paging, PagingMoment, PagingState
from pocketrank.device.paging.moment import TOP
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.ranking.tiers import Tier
from pocketrank.device.ranking.watchdog import Watchdog, WatchdogConfig, WatchdogCounters
from pocketrank.device.reports.telemetry import Telemetry, TelemetryConfig
from pocketrank.device.runtimes.base import RuntimeRunError
from pocketrank.device.session.counters import Counters
from pocketrank.device.session.exchange import Exchange
from pocketrank.device.session.ordering import Order, Ordering
from pocketrank.device.session.refill import Refill, RefillConfig, Refiller
from pocketrank.device.session.session_models import SessionModels, ShownItem

if TYPE_CHECKING:
    from pocketrank.device.feedback.privacy import PrivacyPolicy
    from pocketrank.device.network.client import CloudClient
    from pocketrank.device.offline.store import DeviceStore
    from pocketrank.device.reports.trace import Tracer
    from pocketrank.device.strategies import Arranger
    from pocketrank.device.updates import Updates

__all__ = ["FeedSession", "SessionConfig", "telemetry_names"]


@dataclass(frozen=True)
class SessionConfig:
    """How much a session remembers."""

    shown_max: int = 256
    """Items last shown: the cloud is asked to leave them out, a page's repeats of them are dropped, feedback finds their
    features. They keep the pages they came from in memory, some 40 kB each."""
    outbox: OutboxConfig = field(default_factory=OutboxConfig)
    """Feedback that waits for its upload, where no store keeps it."""
    request_events_max: int = 1000
    """Most events that go along with a page request; what is left waits for the next call. A server takes some 4,000."""
    refill: RefillConfig = field(default_factory=RefillConfig)
    """How a cloud is asked that does not answer."""


class FeedSession:
    """The device's feed. Any number of sessions may share a `Ranker`.

    Thread-safe: swipes (`next`, `feedback`) may come on one thread while another asks the cloud (`refill`, or `request` and
    `take`).
    """

    def __init__(
        self,
        ranker: Ranker | None,
        *,
        user_id: int,
        session_id: str,
        paging: Paging | None = None,
        clock: Callable[[], int] = wall_clock,
        config: SessionConfig | None = None,
        personal: PersonalLayer | None = None,
        strategies: Arranger | None = None,
        privacy: PrivacyPolicy | None = None,
        store: DeviceStore | None = None,
        updates: Updates | None = None,
        tier: Tier | None = None,
        watchdog: WatchdogConfig | None = None,
        telemetry: TelemetryConfig | None = None,
        tracer: Tracer | None = None,
        experiment: str | None = None,
        rng: random.Random | None = None,
    ) -> None:
        """Without a `ranker` the feed keeps cloud order. `clock` tells the time in ms since the epoch, UTC. The app keeps what
        `personal` learns (`PersonalLayer.state`), and gives it to the user's sessions one after the other.

        `paging` says when to ask for a page, by default the bundle (`export --paging`), else fixed counts. `strategies` are
        what an order must and should keep. `privacy` says what may leave the device, by default what training needs. `store`
        keeps feedback and pages over the end of the process, and what it holds is gone on with. `updates` is asked for models
        between two pages, in place of `ranker`; a `personal` layer is let go of then, as it is over the old model. `tier` is
        what `ranker` was opened by. `watchdog` bounds how long a swipe waits for the models, None does not. `telemetry` says
        which sessions tell of themselves, None: not this one; `tracer` writes down each choice, for developers. Requests and
        feedback are of the `experiment` (`PageRequest`). `rng` is the randomness of the backoff.

        Raises ValueError for a layer of another user or over other tasks than the ranker's.
        """
        self.user_id, self.session_id = user_id, session_id
        self.counters = Counters()
        self._config = config or SessionConfig()
        self._clock, self._store, self._updates, self._watch = clock, store, updates, watchdog
        self._own(personal)
        if updates is not None:
            ranker = updates.current().ranker
        self._models = self._next_models = SessionModels(ranker, personal)
        self._events: deque[FeedbackEvent] = deque(maxlen=self._models.events_max)
        self._telemetry = Telemetry(
            session_id,
            clock(),
            telemetry or TelemetryConfig(rate=0),
            sdk=__version__,
            bundle=self._models.name,
            tier=None if tier is None else tier.name,
        )
        outbox = MemoryOutbox(self._config.outbox) if store is None else store.outbox
        policy = privacy or self._models.privacy
        self._exchange = Exchange(outbox, policy, self._telemetry, self._totals, self._config.request_events_max)
        self._paging, self._moment = paging or self._models.paging, PagingMoment()
        self._own_paging, self._own_privacy, self._experiment = paging, privacy, experiment
        guard = None if watchdog is None else Watchdog(watchdog)
        self._ordering = Ordering(self.counters, self._telemetry, guard, tier)
        self._slate = None if strategies is None else strategies.start()
        self._tracer = tracer
        self._decision: PageDecision | None = None  # the last one
        self._fallback: str | None = None  # why the page's form is not the one wanted
        self._shown: dict[int, ShownItem] = {}  # by item id, oldest first
        self._before = dict.fromkeys(() if store is None else store.shown_items())  # in earlier sessions
        self._page: Page | None = None
        self._held: Remaining | None = None
        self._form: Form | None = None
        self._order: Order | None = None  # None: not made since something changed
        self._last: Order | None = None  # the one before that, as far as it still holds
        self._taken_ms = 0
        self._shown_of_page = self._position = self._requests = 0
        self._refiller = Refiller(self._config.refill, clock, rng or random.Random())
        self._swipe, self._arrival = threading.RLock(), threading.Lock()

    def __enter__(self) -> FeedSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what the session holds. What waits for its upload stays where it waits."""
        with self._swipe:
            self._held = self._page = self._order = self._last = None

    @property
    def position(self) -> int:
        """Impressions so far: the position in the session of what `next` will show."""
        return self._position

    @property
    def page_id(self) -> str | None:
        """Id of the page that is held."""
        page = self._page
        return None if page is None else page.page_id

    @property
    def form(self) -> Form | None:
        """The form of the model that orders this page; None is cloud order."""
        return self._form

    @property
    def remaining(self) -> NDArray[np.int64]:
        """Item ids of what was not shown yet, in the order of now, best first."""
        with self._swipe:
            if self._held is None:
                return np.zeros(0, np.int64)
            order = self._rank(self._held)
            indices = order.indices if self._slate is None else self._slate.order(order.indices, order.values)
            remaining: NDArray[np.int64] = self._held.item_id[indices]
            return remaining

    # ------------------------------------------------------------------------------------------------------------- pages

    def use(self, ranker: Ranker | None, personal: PersonalLayer | None = None) -> None:
        """Order with other models from the next page on; what was shown and watched is told to them.

        Pages that were asked for before are of the old models' split version: ask for one after this. Raises ValueError as a
        new session does.
        """
        self._own(personal)
        self._next_models = SessionModels(ranker, personal)

    def take(self, page: Page) -> bool:
        """Hold `page` instead of what was not shown yet. False when it is refused; see the module for what then stays.

        The feedback that went along with its request has arrived, whatever the page is like.
        """
        with self._swipe:
            self._exchange.arrived(page.request_id)
        with self._arrival:
            if not self._take(page, self._clock()):
                return False
        if self._store is not None:
            self._store.save_page(page, self._taken_ms)
        return True

    def restore(self) -> bool:
        """Go on with the newest page in the store that is not stale and has items left; False when there is none.

        For a start without network: what was watched before is not shown again.
        """
        if self._store is None:
            return False
        with self._arrival:
            return any(self._take(kept.page, kept.taken_ms) for kept in self._store.pages(self._clock()))

    def _take(self, page: Page, taken_ms: int) -> bool:
        count, models = self.counters, self._next_models
        try:
            arrays, form, fallbacks = models.read(page)
        except BlockError:
            count.pages_refused += 1
            return False
        count.duplicates += arrays.duplicates
        with self._swipe:
            known = self._shown.keys() | self._before.keys()
            new = [row for row, item in enumerate(arrays.item_id.tolist()) if item not in known]
        if repeats := len(arrays.item_id) - len(new):
            count.already_shown += repeats
            arrays = arrays.select(np.array(new, np.intp))
        if not new:
            count.pages_empty += 1
            return False
        count.pages += 1
        count.pages_degraded += bool(page.degraded)
        for name in fallbacks:
            setattr(count, name, getattr(count, name) + 1)
        count.columns_missing += 0 if models.ranker is None else arrays.missing_columns
        try:
            held = models.hold(arrays, form)
        except RuntimeRunError:
            count.model_failed += 1
            held, form = models.hold(arrays, None), None
        with self._swipe:
            for item in arrays.item_id.tolist():
                if item in self._shown and (at := held.find(item)) is not None:  # shown while the page was worked on
                    held.take(at)
            if models is not self._models:
                self._retell(models)
            self._held, self._form, self._page, self._order, self._last = held, form, page, None, None
            self._moment.page()
            self._fallback = fallbacks[-1] if fallbacks else None
            if self._slate is not None:
                self._slate.take(page, held.item_id[: held.count].tolist())
            self._taken_ms, self._shown_of_page = taken_ms, 0
        return True

    def _retell(self, models: SessionModels) -> None:
        """Tell other models what was shown and how that was watched."""
        pages = {id(shown.page): shown.page for shown in self._shown.values()}
        read = {key: models.read(page)[0] for key, page in pages.items()}
        rows = {key: {item: row for row, item in enumerate(arrays.item_id.tolist())} for key, arrays in read.items()}
        for item, shown in self._shown.items():
            key = id(shown.page)
            # What another model said of it cannot teach a layer over this one.
            self._shown[item] = ShownItem(shown.page, read[key], rows[key][item], None)
        for event in self._events:
            if (known := self._shown.get(event.item_id)) is not None:
                models.remember(event, known)
        self._models, self._events = models, deque(self._events, models.events_max)
        self._telemetry.merge(self._totals())
        self._telemetry.tell_of(models.name, self._clock())
        self._exchange.privacy = self._own_privacy or models.privacy
        self._paging = self._own_paging or models.paging
        if self._watch is not None:  # what it knows is of the other models
            self._ordering.watchdog = Watchdog(self._watch)

    # ------------------------------------------------------------------------------------------------------------ swipes

    def next(self) -> int | None:
        """The item to show now, which then counts as shown; None when nothing is held."""
        with self._swipe:
            if self._held is None or self._held.count == 0:
                return None
            begin = time.perf_counter_ns()
            order = self._rank(self._held)
            held = self._held  # a late run may have been left with the one before
            best = None if self._slate is None else self._slate.first(order.indices, order.values)
            best = int(order.indices[0]) if best is None else best
            item = int(held.item_id[best])
            spent = time.perf_counter_ns() - begin
            if self._tracer is not None:
                self._trace(self._tracer, held, order, item, spent)
            self._show(held, best, item)
            self._telemetry.time("next", spent)
            return item

    def feedback(self, event: FeedbackEvent) -> bool:
        """Learn from a finished impression and queue it for upload; the next order will know it.

        False when the event is dropped: known by its id, or not what the contract allows.
        """
        count = self.counters
        try:
            event = from_msgpack(to_msgpack(event), FeedbackEvent)  # field types are not checked when a struct is made
        except ContractError:
            count.events_bad += 1
            return False
        if self._experiment is not None:
            event = replace(event, experiment=self._experiment)
        with self._swipe:
            if not self._exchange.add(event):
                count.events_duplicate += 1
                return False
            count.events += 1
            if event.item_id not in self._shown:
                at = None if self._held is None else self._held.find(event.item_id)
                if self._held is None or at is None:
                    count.events_unknown_item += 1
                    return True
                count.shown_elsewhere += 1
                self._show(self._held, at, event.item_id)
            shown = self._shown[event.item_id]
            if not self._models.remember(event, shown):
                count.events_late += 1
            self._moment.feedback(event, self._models.effective(event, shown))
            self._shown[event.item_id] = shown._replace(shipped=None)  # an impression teaches once
            self._events.append(event)
            if self._tracer is not None:
                self._tracer.feedback(event)
            if event.battery_saver is not None:
                self._ordering.saver(event.battery_saver)
            self._order = None
            return True

    def _rank(self, held: Remaining) -> Order:
        """Of what is held; made once after each change."""
        if self._order is None:
            self._order = self._ordering(self._models, self._form, held, self._clock(), self._position, self._last)
            values = self._order.values
            first = self._order.indices[:TOP].tolist()
            self._moment.ranked([] if values is None else [float(values[i]) for i in first if i < len(values)])
            if self._order.why == "overran":
                self._held = held.copy()
                self._models.fork()
        return self._order

    def _trace(self, tracer: Tracer, held: Remaining, order: Order, item: int, spent_ns: int) -> None:
        models, decided = self._models, None if self._slate is None else self._slate.decision
        tracer.decision(
            models.ranker,
            held,
            models.history,
            models.context,
            form=self._form,
            now_ms=self._clock(),
            position=self._position,
            order=order.indices,
            shown=item,
            scores=None if order.ranking is None else order.ranking.scores,
            page_id=self.page_id,
            bundle=models.name,
            fallback=self._fallback if order.why in ("model", "cloud") else order.why,
            personal=models.personal is not None,
            strategies=() if decided is None else decided.told,
            paging=self._decision,
            spent_ms=spent_ns / 1e6,
        )

    def _show(self, held: Remaining, index: int, item: int) -> None:
        assert self._page is not None
        known = None if self._order is None else self._order.shipped
        shipped = None if known is None or index >= len(known) else known[index]
        self._shown[item] = ShownItem(self._page, held.page, held.take(index), shipped)
        if len(self._shown) > self._config.shown_max:
            del self._shown[next(iter(self._shown))]
        self._position += 1
        self._shown_of_page += 1
        self._last = self._order.without(index) if self._ordering.keeps and self._order is not None else None
        self._order = None
        if self._slate is not None:
            self._slate.show(index)

    def buffered(self, items: Mapping[int, int]) -> None:
        """What the player has on screen or loaded, in its order: item id → bytes. For the strategy `KeepBuffered`, and to count
        what is thrown away.
        """
        with self._swipe:
            if self._slate is not None:
                self._slate.buffered(items)

    # --------------------------------------------------------------------------------------------------------- the cloud

    def wants_page(self) -> PageDecision:
        """Whether to ask the cloud for a page now, and for how many."""
        with self._swipe:
            page, held = self._page, self._held
            if page is None or held is None:
                state = PagingState(0, 0, 0, 0, 1.0)
            else:
                age = max(0, self._clock() - self._taken_ms)  # by one clock: the cloud's may differ from the device's
                if self._paging.uses_values:
                    self._rank(held)  # `next` finds it made
                left, shown = held.count, self._shown_of_page
                state = self._moment.state(left, shown, age, page.ttl_ms, page.compute_price, self._position)
            decision = self._decision = self._paging(state)
            return decision

    def request(self, size: int, scene: int = 0) -> PageRequest:
        """The request for the next page, with feedback that waits; when it cannot be sent, give that back by `put_back`."""
        if self._updates is not None and (ranker := self._updates.current().ranker) is not self._next_models.ranker:
            self.use(ranker)
        feedback = self._exchange.take()  # outside of the lock: a thousand events take milliseconds to read
        with self._swipe:
            self._requests += 1
            bare = PageRequest(
                request_id=f"{self.session_id}/{self._requests}",
                user_id=self.user_id,
                session_id=self.session_id,
                now_ms=self._clock(),
                size=size,
                scene=scene,
                split_version=self._next_models.split_version,
                experiment=self._experiment,
                exclude=(*self._before, *self._shown),
            )
            return self._exchange.ask(bare, feedback)

    def refill(self, client: CloudClient, scene: int = 0) -> Refill:
        """Ask for a page if it is time to, and take it. Waits for the network: not for the thread that swipes.

        A cloud that did not answer is given time before it is asked again. Never raises what the client raises: what was held
        stays, and the feedback waits for the next call.
        """
        return self._refiller(self, client, scene)

    def flush(self, client: CloudClient) -> int:
        """Upload all that waits; the number of events that the cloud now has. For the end of a session.

        Raises `ClientError`: what was not acknowledged waits again.
        """
        with self._swipe:
            report = self._exchange.report(self._clock())
        return self._exchange.flush(client, report)

    def not_sent(self, request: PageRequest) -> None:
        """The request got no answer: what went along with it waits again."""
        with self._swipe:
            self._exchange.failed(request.request_id, request.feedback)

    def drain_feedback(self) -> tuple[FeedbackEvent, ...]:
        """Events that wait, oldest first, which the caller now sends: then `acknowledge`, or `put_back`."""
        return self._exchange.outbox.take()

    def acknowledge(self, events: Iterable[FeedbackEvent]) -> None:
        """The cloud has these: forget them."""
        self._exchange.outbox.acknowledge(events)

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Queue events again that could not be sent."""
        with self._swipe:
            self._exchange.put_back(events)

    def _totals(self) -> dict[str, int]:
        """All counters of the session and its parts."""
        guard = self._ordering.watchdog
        watched = {} if guard is None else asdict(guard.counters)
        arranged = {} if self._slate is None else self._slate.counters.sums()
        return asdict(self.counters) | watched | arranged | {"events_dropped": self._exchange.outbox.dropped}

    def _own(self, personal: PersonalLayer | None) -> None:
        if personal is not None and personal.user_id != self.user_id:
            raise ValueError(f"expected the personal layer of user {self.user_id}, got that of {personal.user_id}")


def telemetry_names() -> frozenset[str]:
    """Names of all that a session counts and times by itself: those that a cloud tells apart whatever else devices send."""
    from pocketrank.device.strategies.slate import StrategyCounters  # not every app has strategies

    counted = {field.name for kind in (Counters, WatchdogCounters) for field in fields(kind)}
    return frozenset({*counted, *StrategyCounters().sums(), "events_dropped", "next", "rerank"})
