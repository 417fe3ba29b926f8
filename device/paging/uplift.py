"""Ask when a fresh page is predicted to win more than it costs.

With the discount of a session that may end at any swipe, asking now is worth W, and going on for one more item is worth what
that item is worth plus the discounted W. So the gain of asking now against going on is what an item of a fresh page wins per
impression, all pages to come being paid for, less what the best item left wins: one marginal value against one long-run rate
(Charnov 1976, https://doi.org/10.1016/0040-5809(76)90040-X). The first is predicted from the state, the second depends on the
price of compute alone and is looked up (`PagingModel`). To weigh the uplift of a request against a budget is the idea of
AdaRequest (Qian et al. 2022, arXiv 2206.12296).

Errors::

    PagingModelError           a model that this device cannot follow; says expected and got
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from pocketrank.device.contract import Network, PagePlan, PagingModel
from pocketrank.device.paging.base import PageDecision, Paging, PagingState, must_ask
from pocketrank.device.paging.fixed import FixedPaging

__all__ = ["FEATURES", "PRICE_MAX", "PagingModelError", "UpliftPaging", "features", "paging_of"]

FEATURES = ("best", "top", "arrived", "recent", "left", "shown", "age", "position", "cellular", "battery_saver")
"""What a model may look at, in the order of `features`."""
PRICE_MAX = 1000.0
"""A price above is taken for this one."""
_UNKNOWN_RATE = 0.5  # of effective views, before the first feedback
_MINUTE_MS = 60_000


class PagingModelError(ValueError):
    """A model that this device cannot follow."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(f"paging model: expected {expected}, got {got}")
        self.expected, self.got = expected, got


def features(state: PagingState) -> tuple[float, ...] | None:
    """`FEATURES` of a state: counts as ln(1 + n), age in minutes. None where the values of what is left are not known."""
    if not (math.isfinite(state.best) and math.isfinite(state.top) and math.isfinite(state.arrived)):
        return None
    return (
        state.best,
        state.top,
        state.arrived,
        state.recent if math.isfinite(state.recent) else _UNKNOWN_RATE,
        math.log1p(state.remaining),
        math.log1p(state.shown),
        state.age_ms / _MINUTE_MS,
        math.log1p(state.position),
        float(state.network is Network.CELLULAR),
        float(bool(state.battery_saver)),
    )


class UpliftPaging(Paging):
    """Asks when the predicted uplift is above 0 at the price of now, for as many as is best at that price.

    A dearer request is never asked for in a state in which a cheaper one was not, and never for a smaller page. Without the
    values of what is left (no model, cloud order) it asks as often as the plan for the price does.
    """

    uses_values = True

    def __init__(self, model: PagingModel) -> None:
        """Raises `PagingModelError` for a feature that this device does not know."""
        if unknown := {term.feature for term in model.terms} - set(FEATURES):
            raise PagingModelError(f"features among {', '.join(FEATURES)}", ", ".join(sorted(unknown)))
        self.model = model
        terms = [(FEATURES.index(term.feature), term.weight, term.knot) for term in model.terms]
        self._linear = [(i, weight) for i, weight, knot in terms if knot is None]
        self._below = [(i, weight, knot) for i, weight, knot in terms if knot is not None]
        # The upper envelope of the plans' lines over the price: plan i is the best up to `_until[i]`.
        self._plans, self._until = _envelope(model.plans)

    def __call__(self, state: PagingState) -> PageDecision:
        """See `Paging`."""
        price = min(max(state.compute_price, 0.0), PRICE_MAX) if state.compute_price == state.compute_price else 1.0
        plan = self._plans[bisect_left(self._until, price)]
        if (reason := must_ask(state)) is not None:
            return PageDecision(True, plan.size, reason)
        known = features(state)
        if known is None:
            asks, reason = state.shown >= plan.consume, "consumed"
        else:
            asks, reason = self.gain(known) > price * plan.drop - plan.level, "uplift"
        return PageDecision(asks, plan.size, reason if asks else "continue")

    def gain(self, known: tuple[float, ...]) -> float:
        """What asking now wins at the next impression, in effective views, by its `features`."""
        gain = self.model.bias
        for i, weight in self._linear:
            gain += weight * known[i]
        for i, weight, knot in self._below:
            if known[i] < knot:
                gain += weight * (knot - known[i])
        return gain


def paging_of(model: PagingModel | None) -> Paging:
    """How a device asks that installed a bundle with this `paging`: by uplift, or by fixed counts where it has no model, or
    one for a newer device.
    """
    try:
        return FixedPaging() if model is None else UpliftPaging(model)
    except PagingModelError:
        return FixedPaging()


def _envelope(plans: Sequence[PagePlan]) -> tuple[list[PagePlan], list[float]]:
    """The plans that are the best at some price from 0, and the prices at which one takes over from another, rising."""
    best: list[PagePlan] = []
    until: list[float] = []
    for plan in plans:
        while best:
            price = (best[-1].level - plan.level) / (best[-1].drop - plan.drop)
            if price > (until[-1] if until else 0.0):
                until.append(price)
                break
            best.pop()
            if until:
                until.pop()
        best.append(plan)
    return best, until
