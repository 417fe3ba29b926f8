"""One user's session: holds a page, shows its best item next, learns from each swipe, says when to ask for more.

Bad data never raises here. Each kind has its fallback, and a counter (`Counters`) that tells how often it was taken:

- a page whose item ids cannot be read, or with nothing new in it, is refused; what was held stays;
- a page whose features cannot be read is shown in cloud order;
- vectors that are absent, malformed or of another split version leave the self-contained form, else cloud order;
- a model that fails or answers NaN leaves cloud order for this swipe;
- feedback that the contract does not allow is dropped; for an unknown item it is uploaded and not shown to the model.

With a `PersonalLayer` the order is by the user's own probabilities, and an item's first feedback teaches the layer, from what
the shipped model said of it when it was shown; what was shown without a model (in cloud order, or as the last one) does not.

A swipe never waits for the network, and never for a page that another thread is taking: pages are read and encoded outside of
the lock that swipes take.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from device.codec import from_msgpack, to_msgpack
from device.contract import BlockError, ContractError, FeedbackEvent, Form, Page, PageRequest
from device.counters import Counters
from device.models import SessionModels, Shown
from device.outbox import MemoryOutbox, Outbox
from device.paging import FixedPaging, PageDecision, Paging, PagingState
from device.personal import PersonalLayer
from device.ranker import Ranker
from device.remaining import Remaining
from device.runtimes.base import RuntimeRunError

if TYPE_CHECKING:
    from device.client import ClientError, CloudClient

__all__ = ["FeedSession", "Refill", "SessionConfig"]


@dataclass(frozen=True)
class SessionConfig:
    """How much a session remembers."""

    shown_max: int = 256
    """Items last shown: the cloud is asked to leave them out, a page's repeats of them are dropped, feedback finds their
    features. They keep the pages they came from in memory, some 40 kB each."""
    waiting_max: int = 10_000
    """Events that wait for their upload; beyond that the oldest are let go. An hour of swiping has about a thousand."""
    event_ids_max: int = 4096
    """Event ids remembered to tell repeats."""
    request_events_max: int = 1000
    """Most events that go along with a page request; what is left waits for the next call. A server takes some 4,000."""


_ASKED_MAX = 8
"""Requests under way whose feedback is remembered; an app has one."""


class Refill(NamedTuple):
    """What became of asking for a page."""

    decision: PageDecision
    """whether to ask, and why"""
    taken: bool = False
    """a page came and is held now"""
    error: ClientError | None = None
    """why no page came; its feedback waits again"""


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000


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
        clock: Callable[[], int] = _wall_clock,
        config: SessionConfig | None = None,
        personal: PersonalLayer | None = None,
        outbox: Outbox | None = None,
    ) -> None:
        """Without a `ranker` the feed keeps cloud order. `clock` tells the time in ms since the epoch, UTC. The app keeps what
        `personal` learns (`PersonalLayer.state`), and gives it to the user's sessions one after the other.

        Raises ValueError for a layer of another user or over other tasks than the ranker's.
        """
        self.user_id, self.session_id = user_id, session_id
        self.counters = Counters()
        self._config = config or SessionConfig()
        self._clock = clock
        self._paging = paging or FixedPaging()
        self._own(personal)
        self._models = self._next_models = SessionModels(ranker, personal)
        self._events: deque[FeedbackEvent] = deque(maxlen=self._models.events_max)
        self._outbox = outbox or MemoryOutbox(self._config.waiting_max, self._config.event_ids_max)
        self._shown: dict[int, Shown] = {}  # by item id, oldest first
        self._asked: dict[str, tuple[FeedbackEvent, ...]] = {}  # by request id: the feedback that went along
        self._page: Page | None = None
        self._held: Remaining | None = None
        self._form: Form | None = None
        self._order: NDArray[np.intp] | None = None  # None: not made since something changed
        self._shipped: NDArray[np.float32] | None = None  # [n, K] of the first n held, when the order is personal
        self._taken_ms = 0
        self._shown_of_page = self._position = self._requests = 0
        self._swipe, self._arrival = threading.RLock(), threading.Lock()

    def __enter__(self) -> FeedSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Let go of what the session holds. What waits for its upload stays where it waits."""
        with self._swipe:
            self._held = self._page = self._order = None

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
            return np.zeros(0, np.int64) if self._held is None else self._held.item_id[self._rank(self._held)]

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
        self._outbox.acknowledge(self._asked.pop(page.request_id, ()))
        with self._arrival:
            return self._take(page)

    def _take(self, page: Page) -> bool:
        count, models = self.counters, self._next_models
        try:
            arrays, form, fallbacks = models.read(page)
        except BlockError:
            count.pages_refused += 1
            return False
        count.duplicates += arrays.duplicates
        with self._swipe:
            new = [row for row, item in enumerate(arrays.item_id.tolist()) if item not in self._shown]
        if repeats := len(arrays.item_id) - len(new):
            count.already_shown += repeats
            arrays = arrays.select(np.array(new, np.intp))
        if not new:
            count.pages_empty += 1
            return False
        count.pages += 1
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
            self._held, self._form, self._page, self._order = held, form, page, None
            self._taken_ms, self._shown_of_page = self._clock(), 0
        return True

    def _retell(self, models: SessionModels) -> None:
        """Tell other models what was shown and how that was watched."""
        pages = {id(shown.page): shown.page for shown in self._shown.values()}
        read = {key: models.read(page)[0] for key, page in pages.items()}
        rows = {key: {item: row for row, item in enumerate(arrays.item_id.tolist())} for key, arrays in read.items()}
        for item, shown in self._shown.items():
            key = id(shown.page)
            # What another model said of it cannot teach a layer over this one.
            self._shown[item] = Shown(shown.page, read[key], rows[key][item], None)
        for event in self._events:
            if (known := self._shown.get(event.item_id)) is not None:
                models.remember(event, known)
        self._models, self._events = models, deque(self._events, models.events_max)

    # ------------------------------------------------------------------------------------------------------------ swipes

    def next(self) -> int | None:
        """The item to show now, which then counts as shown; None when nothing is held."""
        with self._swipe:
            held = self._held
            if held is None or held.count == 0:
                return None
            best = int(self._rank(held)[0])
            item = int(held.item_id[best])
            self._show(held, best, item)
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
        with self._swipe:
            if not self._outbox.add(event):
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
            self._shown[event.item_id] = shown._replace(shipped=None)  # an impression teaches once
            self._events.append(event)
            self._order = None
            return True

    def _rank(self, held: Remaining) -> NDArray[np.intp]:
        """Indices into `held`, best first; made once after each change."""
        if self._order is None:
            order = self._shipped = None
            if self._form is not None and held.count > 1:
                order = self._score(self._form, held)
            if order is None:
                order, self._shipped = np.arange(held.count), None
            self._order = order
        return self._order

    def _score(self, form: Form, held: Remaining) -> NDArray[np.intp] | None:
        try:
            ranking, self._shipped = self._models.rank(form, held, self._clock(), self._position)
        except RuntimeRunError:
            self.counters.model_failed += 1
            return None
        if ranking is None:
            self.counters.scores_bad += 1
            return None
        self.counters.reranks += 1
        return ranking.order

    def _show(self, held: Remaining, index: int, item: int) -> None:
        assert self._page is not None
        known = None if self._order is None else self._shipped
        shipped = None if known is None or index >= len(known) else known[index]
        self._shown[item] = Shown(self._page, held.page, held.take(index), shipped)
        if len(self._shown) > self._config.shown_max:
            del self._shown[next(iter(self._shown))]
        self._position += 1
        self._shown_of_page += 1
        self._order = None

    # --------------------------------------------------------------------------------------------------------- the cloud

    def wants_page(self) -> PageDecision:
        """Whether to ask the cloud for a page now, and for how many."""
        with self._swipe:
            page, held = self._page, self._held
            if page is None or held is None:
                return self._paging(PagingState(0, 0, 0, 0, 1.0))
            age = max(0, self._clock() - self._taken_ms)  # by one clock: the cloud's may differ from the device's
            return self._paging(PagingState(held.count, self._shown_of_page, age, page.ttl_ms, page.compute_price))

    def request(self, size: int, scene: int = 0) -> PageRequest:
        """The request for the next page, with feedback that waits; when it cannot be sent, give that back by `put_back`."""
        with self._swipe:
            self._requests += 1
            request_id = f"{self.session_id}/{self._requests}"
            events = self._outbox.take(self._config.request_events_max)
            self._asked = dict([*self._asked.items(), (request_id, events)][-_ASKED_MAX:])
            return PageRequest(
                request_id=request_id,
                user_id=self.user_id,
                session_id=self.session_id,
                now_ms=self._clock(),
                size=size,
                scene=scene,
                split_version=self._next_models.split_version,
                feedback=events,
                exclude=tuple(self._shown),
            )

    def refill(self, client: CloudClient, scene: int = 0) -> Refill:
        """Ask for a page if it is time to, and take it. Waits for the network: not for the thread that swipes.

        Never raises what the client raises: what was held stays, and the feedback waits for the next call.
        """
        from device.client import ClientError

        decision = self.wants_page()
        if not decision.request:
            return Refill(decision)
        request = self.request(decision.size, scene)
        try:
            page = client.page(request)
        except ClientError as error:
            self.counters.pages_missing += 1
            self.put_back(request.feedback)
            return Refill(decision, error=error)
        except BaseException:
            self.put_back(request.feedback)
            raise
        return Refill(decision, self.take(page))

    def drain_feedback(self) -> tuple[FeedbackEvent, ...]:
        """Events that wait, oldest first, which the caller now sends: then `acknowledge`, or `put_back`."""
        return self._outbox.take()

    def acknowledge(self, events: Iterable[FeedbackEvent]) -> None:
        """The cloud has these: forget them."""
        self._outbox.acknowledge(events)

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Queue events again that could not be sent."""
        self._outbox.put_back(events)

    def _own(self, personal: PersonalLayer | None) -> None:
        if personal is not None and personal.user_id != self.user_id:
            raise ValueError(f"expected the personal layer of user {self.user_id}, got that of {personal.user_id}")
