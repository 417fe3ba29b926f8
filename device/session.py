"""One user's session: holds a page, shows its best item next, learns from each swipe, says when to ask for more.

Bad data never raises here. Each kind has its fallback, and a counter (`Counters`) that tells how often it was taken:

- a page whose item ids cannot be read, or with nothing new in it, is refused; what was held stays;
- a page whose features cannot be read is shown in cloud order;
- vectors that are absent, malformed or of another split version leave the self-contained form, else cloud order;
- a model that fails or answers NaN leaves cloud order for this swipe;
- feedback that the contract does not allow is dropped; for an unknown item it is uploaded and not shown to the model.

With a `PersonalLayer` the order is by the user's own probabilities, and an item's first feedback teaches the layer, from what
the shipped model said of it when it was shown; what was shown without a model (in cloud order, or as the last one) does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from device.codec import from_msgpack, to_msgpack
from device.contract import BlockError, ContractError, FeatureSpec, FeedbackEvent, Form, Page, PageRequest
from device.counters import Counters
from device.features import FeatureBuilder, PageArrays
from device.feedback import EventHistory
from device.outbox import Outbox
from device.paging import FixedPaging, PageDecision, Paging, PagingMoment, PagingState
from device.personal import PersonalLayer, labels
from device.ranker import Adjust, Ranker
from device.remaining import Remaining
from device.runtimes.base import RuntimeRunError

__all__ = ["FeedSession", "SessionConfig"]

_NO_FEATURES = FeatureSpec(
    tasks=("none",), task_weights={}, candidates_max=1, events_max=1, vector_width=0, list_sizes=(),
    candidate_floats=(), candidate_categories=(), feedback_floats=(), context_floats=(),
)  # fmt: skip


@dataclass(frozen=True)
class SessionConfig:
    """How much a session remembers."""

    shown_max: int = 256
    """Items last shown: the cloud is asked to leave them out, a page's repeats of them are dropped, feedback finds their
    features. They keep the pages they came from in memory, some 20 kB each."""
    waiting_max: int = 10_000
    """Events that wait for their upload; beyond that the oldest are let go. An hour of swiping has about a thousand."""
    event_ids_max: int = 4096
    """Event ids remembered to tell repeats."""


def _wall_clock() -> int:
    return time.time_ns() // 1_000_000


class FeedSession:
    """The device's feed. Not for use from several threads at once; any number of sessions may share a `Ranker`."""

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
    ) -> None:
        """Without a `ranker` the feed keeps cloud order. `clock` tells the time in ms since the epoch, UTC. The app keeps what
        `personal` learns (`PersonalLayer.state`), and gives it to the user's sessions one after the other.

        Raises ValueError for a layer of another user or over other tasks than the ranker's.
        """
        if personal is not None and personal.user_id != user_id:
            raise ValueError(f"expected the personal layer of user {user_id}, got that of {personal.user_id}")
        if personal is not None and ranker is not None and personal.tasks != ranker.spec.tasks:
            raise ValueError(f"expected a personal layer over {ranker.spec.tasks}, got one over {personal.tasks}")
        self.user_id, self.session_id = user_id, session_id
        self.counters = Counters()
        self._config = config or SessionConfig()
        self._ranker, self._clock, self._personal = ranker, clock, personal
        self._paging = paging or FixedPaging()
        self._moment = PagingMoment()
        self._builder = FeatureBuilder(_NO_FEATURES) if ranker is None else ranker.builder
        spec = self._builder.spec
        self._history = EventHistory(spec)
        self._context = np.zeros((1, len(spec.context_floats)), np.float32)
        self._feedback = np.zeros(len(spec.feedback_floats), np.float32)
        places = {c.name: i for i, c in enumerate(spec.candidate_categories)}
        self._category = places.get("category")
        scales = {f.name: (i, f.scale) for i, f in enumerate(spec.candidate_floats) if f.scale > 0}
        self._duration = scales.get("duration_ms")
        self._outbox = Outbox(self._config.waiting_max, self._config.event_ids_max)
        # item id → its row of its page, and the shipped probabilities while they can teach; oldest first
        self._shown: dict[int, tuple[PageArrays, int, NDArray[np.float32] | None]] = {}
        self._page: Page | None = None
        self._held: Remaining | None = None
        self._form: Form | None = None
        self._order: NDArray[np.intp] | None = None  # None: not made since something changed
        self._shipped: NDArray[np.float32] | None = None  # [n, K] of the first n held, when the order is personal
        self._taken_ms = 0
        self._shown_of_page = self._position = self._requests = 0

    @property
    def position(self) -> int:
        """Impressions so far: the position in the session of what `next` will show."""
        return self._position

    @property
    def page_id(self) -> str | None:
        """Id of the page that is held."""
        return None if self._page is None else self._page.page_id

    @property
    def form(self) -> Form | None:
        """The form of the model that orders this page; None is cloud order."""
        return self._form

    @property
    def remaining(self) -> NDArray[np.int64]:
        """Item ids of what was not shown yet, in the order of now, best first."""
        return np.zeros(0, np.int64) if self._held is None else self._held.item_id[self._rank(self._held)]

    def take(self, page: Page) -> bool:
        """Hold `page` instead of what was not shown yet. False when it is refused; see the module for what then stays."""
        count = self.counters
        try:
            arrays = self._builder.page(page)
        except BlockError:
            count.pages_refused += 1
            return False
        count.duplicates += arrays.duplicates
        new = [row for row, item in enumerate(arrays.item_id.tolist()) if item not in self._shown]
        if repeats := len(arrays.item_id) - len(new):
            count.already_shown += repeats
            arrays = arrays.select(np.array(new, np.intp))
        if not new:
            count.pages_empty += 1
            return False
        count.pages += 1
        self._form = self._choose_form(page, arrays)
        if self._form != "split":
            # Their vectors must not reach a split model later, as features of shown items.
            arrays = arrays.without_vectors()
        self._held = Remaining(arrays, 0 if self._ranker is None else self._ranker.rows)
        if self._ranker is not None and self._form is not None:
            try:
                self._ranker.prepare(self._form, self._held)
            except RuntimeRunError:
                count.model_failed += 1
                self._form = None
        self._page, self._order = page, None
        self._moment.page()
        self._taken_ms, self._shown_of_page = self._clock(), 0
        return True

    def next(self) -> int | None:
        """The item to show now, which then counts as shown; None when nothing is held."""
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
        page, row, shipped = self._shown[event.item_id]
        if self._personal is not None and shipped is not None:
            self._learn(self._personal, event, page, row, shipped)
            self._shown[event.item_id] = page, row, None
        duration = self._duration_of(page, row)
        self._moment.feedback(event, float(labels(event, ("effective_view",), duration)[0]))
        self._builder.feedback(event, self._feedback)
        if not self._history.append(event.impression_ms, event.position, self._feedback, page, row):
            count.events_late += 1
        self._order = None
        return True

    def wants_page(self) -> PageDecision:
        """Whether to ask the cloud for a page now, and for how many."""
        page, held = self._page, self._held
        if page is None or held is None:
            return self._paging(PagingState(0, 0, 0, 0, 1.0))
        age = max(0, self._clock() - self._taken_ms)  # by one clock: the cloud's may differ from the device's
        self._rank(held)  # what would be shown next; `next` finds it made
        moment = self._moment.state(held.count, self._shown_of_page, age, page.ttl_ms, page.compute_price, self._position)
        return self._paging(moment)

    def request(self, size: int, scene: int = 0) -> PageRequest:
        """The request for the next page, with all feedback that waits; when it cannot be sent, give that back by `put_back`."""
        self._requests += 1
        ranker = self._ranker
        return PageRequest(
            request_id=f"{self.session_id}/{self._requests}",
            user_id=self.user_id,
            session_id=self.session_id,
            now_ms=self._clock(),
            size=size,
            scene=scene,
            split_version=ranker.split_version if ranker is not None and "split" in ranker.runtimes else None,
            feedback=self.drain_feedback(),
            exclude=tuple(self._shown),
        )

    def drain_feedback(self) -> tuple[FeedbackEvent, ...]:
        """Events not sent yet, oldest first, which the caller now sends."""
        return self._outbox.drain()

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Queue drained events again that could not be sent."""
        self._outbox.put_back(events)

    def _choose_form(self, page: Page, arrays: PageArrays) -> Form | None:
        ranker, count = self._ranker, self.counters
        if ranker is None:
            return None
        count.columns_missing += arrays.missing_columns
        if arrays.problem is not None:
            count.features_bad += 1
            return None
        if "split" in ranker.runtimes:
            if page.candidates.vector is None or page.user_vector is None:
                count.vectors_absent += 1
            elif page.split_version != ranker.split_version:
                count.split_mismatch += 1
            elif arrays.vector is None:
                count.vectors_bad += 1
            else:
                return "split"
        if "self_contained" in ranker.runtimes:
            return "self_contained"
        count.no_model += 1
        return None

    def _rank(self, held: Remaining) -> NDArray[np.intp]:
        """Indices into `held`, best first; made once after each change."""
        if self._order is None:
            order = self._shipped = None
            if self._ranker is not None and self._form is not None and held.count > 1:
                order = self._score(self._ranker, self._form, held)
            if order is None:
                order, self._shipped, held.values = np.arange(held.count), None, None
            self._order = order
            values = held.values
            self._moment.ranked([] if values is None else [float(values[i]) for i in order[:3] if i < len(values)])
        return self._order

    def _score(self, ranker: Ranker, form: Form, held: Remaining) -> NDArray[np.intp] | None:
        now_ms = self._clock()
        self._builder.context(self._position, now_ms, self._context[0])
        adjust = None if self._personal is None else self._adjust(self._personal, held)
        try:
            order = ranker.order(form, held, self._history, self._context, now_ms, self._position, adjust)
        except RuntimeRunError:
            self.counters.model_failed += 1
            return None
        if order is None:
            self.counters.scores_bad += 1
        else:
            self.counters.reranks += 1
        return order

    def _adjust(self, personal: PersonalLayer, held: Remaining) -> Adjust:
        """The layer's answers for what is held; the first probabilities it is asked for are kept."""
        codes = None if self._category is None else held.categories[0, :, self._category]

        def adjust(shipped: NDArray[np.float32]) -> NDArray[np.float32]:
            if self._shipped is None:
                self._shipped = shipped.copy()
            return personal.adjust(shipped, None if codes is None else codes[: len(shipped)])

        return adjust

    def _learn(
        self, personal: PersonalLayer, event: FeedbackEvent, page: PageArrays, row: int, shipped: NDArray[np.float32]
    ) -> None:
        duration = self._duration_of(page, row)
        category = 0 if self._category is None else int(page.categories[row, self._category])
        personal.learn(shipped, labels(event, personal.tasks, duration), category)

    def _duration_of(self, page: PageArrays, row: int) -> float | None:
        return None if self._duration is None else float(page.floats[row, self._duration[0]]) / self._duration[1]

    def _show(self, held: Remaining, index: int, item: int) -> None:
        known = None if self._order is None else self._shipped
        shipped = None if known is None or index >= len(known) else known[index]
        self._shown[item] = (held.page, held.take(index), shipped)
        if len(self._shown) > self._config.shown_max:
            del self._shown[next(iter(self._shown))]
        self._position += 1
        self._shown_of_page += 1
        self._order = None
