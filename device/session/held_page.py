"""The page that a session shows from."""

from __future__ import annotations

from collections.abc import Callable, Set

import numpy as np

from pocketrank.device.clock import SteadyClock
from pocketrank.device.contract import BlockError, Form, Page
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.runtimes.base import RuntimeRunError
from pocketrank.device.session.counters import Counters
from pocketrank.device.session.ordering import Order
from pocketrank.device.session.session_models import SessionModels
from pocketrank.device.session.shown_items import ShownItem

__all__ = ["HeldPage", "read_page"]


class HeldPage:
    """A page, what is left of it, and the order of that. Not for use from several threads at once."""

    __slots__ = ("clock_ahead_ms", "fallbacks", "form", "last", "left", "order", "page", "shown", "taken_ms")

    def __init__(self, page: Page, left: Remaining, form: Form | None, fallbacks: tuple[str, ...]) -> None:
        self.page = page
        self.left = left
        """candidates that were not shown yet"""
        self.form = form
        """form of the model that orders this page; None for cloud order"""
        self.fallbacks = fallbacks
        """names of the `Counters` that say why `form` is not the one wanted"""
        self.taken_ms = 0
        """time when the page arrived, by the session's steady clock"""
        self.clock_ahead_ms = 0
        """by how much that clock was ahead of the device's wall clock then"""
        self.shown = 0
        """number of items shown from this page"""
        self.order: Order | None = None
        """order of `left`; None when something changed since it was made"""
        self.last: Order | None = None
        """the order before `order`, where a tier lets it serve several swipes"""

    def age_ms(self, clock: SteadyClock) -> int:
        """Return the time since the page arrived, or by how far the wall clock was set since then if that is more.

        So a page is stale once its age is in doubt: only the wall clock goes on while some phones are off.
        """
        return max(clock() - self.taken_ms, abs(clock.ahead_ms() - self.clock_ahead_ms))

    def show(self, index: int, keep_order: bool, clock: SteadyClock) -> ShownItem:
        """Take the candidate at `index` out of `left`. `keep_order` keeps the order of the others for the next swipes."""
        order, left = self.order, self.left
        shipped = None if order is None else order.shipped
        if shipped is not None:  # a model takes in a limited number of candidates
            shipped = shipped[index] if index < len(shipped) else None
        self.last = order.without(index) if keep_order and order is not None else None
        self.order = None
        self.shown += 1
        return ShownItem(self.page, left.page, left.take(index), clock(), clock.ahead_ms(), shipped)


def read_page(page: Page, models: SessionModels, counters: Counters, known: Callable[[], Set[int]]) -> HeldPage | None:
    """Return `page` ready to show from, without the items of `known()`; None when it is refused.

    Each fallback is counted. `known` is called after the page was read, so that it returns the items shown until then.
    """
    try:
        arrays, form, fallbacks = models.read(page)
    except BlockError:
        counters.pages_refused += 1
        return None
    counters.duplicates += arrays.duplicates
    # The cloud may send again what was shown: a request's list is bounded, and the page may have been on its way.
    shown = known()
    new = [row for row, item in enumerate(arrays.item_id.tolist()) if item not in shown]
    if repeats := len(arrays.item_id) - len(new):
        counters.already_shown += repeats
        arrays = arrays.select(np.array(new, np.intp))
    if not new:
        counters.pages_empty += 1
        return None
    counters.pages += 1
    counters.pages_degraded += bool(page.degraded)
    for name in fallbacks:
        setattr(counters, name, getattr(counters, name) + 1)
    counters.columns_missing += 0 if models.ranker is None else arrays.missing_columns
    try:
        return HeldPage(page, models.hold(arrays, form), form, fallbacks)
    except RuntimeRunError:
        counters.model_failed += 1
        return HeldPage(page, models.hold(arrays, None), None, fallbacks)
