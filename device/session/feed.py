"""What a session shows: the page that is held, the order of what is left of it, and what was shown and watched."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.clock import SteadyClock
from pocketrank.device.contract import FeedbackEvent
from pocketrank.device.paging import PageDecision, Paging, PagingMoment, PagingState
from pocketrank.device.paging.moment import TOP
from pocketrank.device.ranking.ranker import Moment
from pocketrank.device.ranking.watchdog import Watchdog
from pocketrank.device.reports.telemetry import Telemetry
from pocketrank.device.session.config import SessionConfig
from pocketrank.device.session.counters import Counters
from pocketrank.device.session.held_page import HeldPage
from pocketrank.device.session.ordering import Order, Ordering
from pocketrank.device.session.session_models import SessionModels
from pocketrank.device.session.shown_items import ShownItem, ShownItems

if TYPE_CHECKING:
    from pocketrank.device.reports.trace import Tracer
    from pocketrank.device.strategies import Arranger

__all__ = ["Feed"]

_CLOCK_SET_MS = 2_000  # the network corrects a wall clock by less all the time


class Feed:
    """The feed of one session. Not for use from several threads at once."""

    def __init__(
        self,
        models: SessionModels,
        config: SessionConfig,
        counters: Counters,
        telemetry: Telemetry,
        clock: SteadyClock,
        *,
        paging: Paging | None,
        strategies: Arranger | None,
        tracer: Tracer | None,
        shown_before: Iterable[int],
    ) -> None:
        self.models = models
        self.shown = ShownItems(config.shown_max, shown_before)
        self.held: HeldPage | None = None
        self.position = 0
        self._counters, self._telemetry, self._clock, self._tracer = counters, telemetry, clock, tracer
        self._own_paging, self._paging, self._moment = paging, paging or models.paging, PagingMoment()
        self._decision: PageDecision | None = None  # the last one
        self._watchdog = config.watchdog
        guard = None if config.watchdog is None else Watchdog(config.watchdog)
        self._ordering = Ordering(counters, telemetry, guard, config.tier)
        self._slate = None if strategies is None else strategies.start()
        self._events: deque[tuple[FeedbackEvent, int]] = deque(maxlen=models.events_max)  # with their times of `_when`

    def hold(self, held: HeldPage, age_ms: int) -> None:
        """Show from this page in place of the one before. `age_ms` is how long ago it arrived."""
        held.taken_ms, held.clock_ahead_ms = self._clock() - age_ms, self._clock.ahead_ms()
        for item in held.left.page.item_id.tolist():
            if item in self.shown and (at := held.left.find(item)) is not None:  # shown while the page was read
                held.left.take(at)
        self.held = held
        self._moment.page()
        if self._slate is not None:
            self._slate.take(held.page, held.left.item_id[: held.left.count].tolist())

    def use(self, models: SessionModels) -> None:
        """Change to `models`, and give them what was shown and how it was watched."""
        self.shown.read_again(lambda page: models.read(page)[0])
        for event, at_ms in self._events:
            if (shown := self.shown.get(event.item_id)) is not None:
                models.remember(event, shown, at_ms)
        self.models, self._events = models, deque(self._events, models.events_max)
        self._paging = self._own_paging or models.paging
        if (guard := self._ordering.watchdog) is not None:
            # What a watchdog has learned is about the models it watched. Its counters are the session's, and only grow.
            self._ordering.watchdog = Watchdog(self._watchdog)
            self._ordering.watchdog.counters = guard.counters

    @property
    def remaining(self) -> NDArray[np.int64]:
        """Item ids of what was not shown yet, in the current order, best first."""
        if self.held is None:
            return np.zeros(0, np.int64)
        order = self._rank(self.held)
        indices = order.indices if self._slate is None else self._slate.order(order.indices, order.values)
        remaining: NDArray[np.int64] = self.held.left.item_id[indices]
        return remaining

    def next(self) -> int | None:
        """Return the item to show now, which then counts as shown; None when nothing is held."""
        held = self.held
        if held is None or held.left.count == 0:
            return None
        begin = time.perf_counter_ns()
        order = self._rank(held)
        best = None if self._slate is None else self._slate.first(order.indices, order.values)
        best = int(order.indices[0]) if best is None else best
        item = int(held.left.item_id[best])
        spent = time.perf_counter_ns() - begin
        if self._tracer is not None:
            self._trace(self._tracer, held, order, item, spent)
        self._show(held, best, item)
        self._telemetry.time("next", spent)
        return item

    def learn(self, event: FeedbackEvent) -> None:
        """Take in how an item was watched. An item that is held and was not shown by `next` counts as shown."""
        count, held = self._counters, self.held
        shown = self.shown.get(event.item_id)
        if shown is None:
            at = None if held is None else held.left.find(event.item_id)
            if held is None or at is None:
                count.events_unknown_item += 1
                return
            count.shown_elsewhere += 1
            shown = self._show(held, at, event.item_id)
        at_ms = self._when(event, shown)
        if not self.models.remember(event, shown, at_ms):
            count.events_late += 1
        self._moment.feedback(event, self.models.effective(event, shown))
        self.shown.learned(event.item_id)
        self._events.append((event, at_ms))
        if self._tracer is not None:
            self._tracer.feedback(event.item_id, at_ms)
        if event.battery_saver is not None:
            self._ordering.saver(event.battery_saver)
        if held is not None:
            held.order = None

    def buffered(self, items: Mapping[int, int]) -> None:
        """Set what the player has on screen or loaded, in its order: item id → bytes."""
        if self._slate is not None:
            self._slate.buffered(items)

    def wants_page(self) -> PageDecision:
        """Return whether to ask the cloud for a page now, and for how many candidates."""
        held = self.held
        if held is None:
            state = PagingState(0, 0, 0, 0, 1.0)
        else:
            age = held.age_ms(self._clock)
            if self._paging.uses_values:
                self._rank(held)  # `next` reuses the order
            page = held.page
            state = self._moment.state(held.left.count, held.shown, age, page.ttl_ms, page.compute_price, self.position)
        decision = self._decision = self._paging(state)
        return decision

    def totals(self) -> dict[str, int]:
        """Return the counters of the watchdog and the strategies."""
        guard = self._ordering.watchdog
        watched = {} if guard is None else asdict(guard.counters)
        return watched if self._slate is None else watched | self._slate.counters.sums()

    def _rank(self, held: HeldPage) -> Order:
        """Return the order of what is left, which is made once after each change."""
        if held.order is None:
            order = self._ordering(self.models, held.form, held.left, self._clock(), self.position, held.last)
            held.order, values = order, order.values
            first = order.indices[:TOP].tolist()
            self._moment.ranked([] if values is None else [float(values[i]) for i in first if i < len(values)])
            if order.why == "overran":  # the late run still reads these arrays
                held.left = held.left.copy()
                self.models.fork()
        return held.order

    def _when(self, event: FeedbackEvent, shown: ShownItem) -> int:
        """Return when the item was shown, by the steady clock."""
        at_ms = event.impression_ms + shown.ahead_ms
        if abs(shown.ahead_ms - self._clock.ahead_ms()) < _CLOCK_SET_MS:
            return at_ms
        return min(max(at_ms, shown.shown_ms), self._clock())  # the wall clock was set before the event or after it

    def _show(self, held: HeldPage, index: int, item: int) -> ShownItem:
        shown = held.show(index, self._ordering.keeps, self._clock)
        self.shown.add(item, shown)
        self.position += 1
        if self._slate is not None:
            self._slate.show(index)
        return shown

    def _trace(self, tracer: Tracer, held: HeldPage, order: Order, item: int, spent_ns: int) -> None:
        models, decided = self.models, None if self._slate is None else self._slate.decision
        fallback = held.fallbacks[-1] if held.fallbacks else None
        tracer.decision(
            models.ranker,
            held.form,
            Moment(held.left, models.history, models.context, self._clock(), self.position),
            order.indices,
            shown=item,
            scores=None if order.ranking is None else order.ranking.scores,
            page_id=held.page.page_id,
            bundle=models.name,
            fallback=fallback if order.why in ("model", "cloud") else order.why,
            personal=models.personal is not None,
            strategies=() if decided is None else decided.explanation,
            paging=self._decision,
            spent_ms=spent_ns / 1e6,
        )
