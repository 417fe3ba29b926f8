"""Paging by uplift: request a page when a fresh one is predicted to gain more than it costs.

A session may end at any swipe, so future value is discounted. Let requesting now have the value W. Continuing for one more item
has that item's value plus the discounted W. So the gain of requesting now is the value per impression of a fresh page, with all
future pages paid for, less the value of the best item left: one marginal value against one long-run rate (Charnov 1976,
https://doi.org/10.1016/0040-5809(76)90040-X). The gain is predicted from the state; the rate depends on the price of compute
alone and is looked up (`PagingModel`). Weighing the uplift of a request against a budget is the idea of AdaRequest (Qian et al.
2022, arXiv 2206.12296).

Errors::

    PagingModelError           a model that this device cannot use
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from pocketrank.device.contract import MismatchError, Network, PagePlan, PagingModel
from pocketrank.device.paging.base import PageDecision, Paging, PagingState, must_ask
from pocketrank.device.paging.fixed import FixedPaging

__all__ = ["FEATURES", "PRICE_MAX", "PagingModelError", "UpliftPaging", "features", "paging_of"]

FEATURES = ("best", "top", "arrived", "recent", "left", "shown", "age", "position", "cellular", "battery_saver")
"""Names of the features that a model may use, in the order of `features`."""
PRICE_MAX = 1000.0
"""Largest price. A higher one counts as this one."""
_UNKNOWN_RATE = 0.5  # rate of effective views before the first feedback
_MINUTE_MS = 60_000


class PagingModelError(MismatchError, ValueError):
    """A paging model that this device cannot use, such as one for a newer device."""


def features(state: PagingState) -> tuple[float, ...] | None:
    """Return the `FEATURES` of a state: counts as ln(1 + n), age in minutes. None if the values of what is left are unknown."""
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
    """Request a page when its predicted uplift is above 0 at the current price, of the size that is best at that price.

    In any one state, a higher price never leads to a request that a lower price would not, and never to a smaller page. If the
    values of what is left are unknown (no model, cloud order), it requests as often as the plan for the price does.
    """

    uses_values = True

    def __init__(self, model: PagingModel) -> None:
        """Raises `PagingModelError` for a feature that this device does not know."""
        if unknown := {term.feature for term in model.terms} - set(FEATURES):
            raise PagingModelError("the paging model", f"features among {', '.join(FEATURES)}", ", ".join(sorted(unknown)))
        self.model = model
        terms = [(FEATURES.index(term.feature), term.weight, term.knot) for term in model.terms]
        self._terms = sorted(terms, key=lambda term: term[2] is not None)  # those without a knot are added first
        # The upper envelope of the lines level - price * drop: plan i is the best up to the price `_until[i]`.
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
        """Return the gain of requesting now at the next impression, in effective views, from the state's `features`."""
        gain = self.model.bias
        for i, weight, knot in self._terms:
            gain += weight * (known[i] if knot is None else max(0.0, knot - known[i]))
        return gain


def paging_of(model: PagingModel | None) -> Paging:
    """Return the policy for a bundle with this `paging` model.

    Without a model, or with one that this device cannot use, pages are requested by fixed counts.
    """
    try:
        return FixedPaging() if model is None else UpliftPaging(model)
    except PagingModelError:
        return FixedPaging()


def _envelope(plans: Sequence[PagePlan]) -> tuple[list[PagePlan], list[float]]:
    """Return the plans that are best at some price from 0 on, and the rising prices at which each gives way to the next."""
    best: list[PagePlan] = []
    until: list[float] = []
    for plan in plans:
        # Plans are in order of falling drop. One that the new plan overtakes before it was the best is never the best.
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
