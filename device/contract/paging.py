"""When a device asks for a page, as a model that travels in a bundle's manifest."""

from __future__ import annotations

import math

from pocketrank.device.contract.wire import Wire

__all__ = ["PagePlan", "PagingModel", "PagingTerm"]


class PagePlan(Wire, frozen=True, kw_only=True):
    """A steady way to ask: pages of `size`, each after `consume` impressions of the last.

    At a compute price p it wins `level - p * drop` per impression, in effective views, against a feed in which each item was
    the first of a fresh page that cost nothing.
    """

    size: int
    consume: int
    level: float
    drop: float


class PagingTerm(Wire, frozen=True, kw_only=True):
    """`weight` times a feature of the state (`pocketrank.device.paging.uplift`), or times how far it is below `knot`."""

    feature: str
    weight: float
    knot: float | None = None


class PagingModel(Wire, frozen=True, kw_only=True):
    """What asking now wins, learned from devices that asked at random (`pocketrank.cloud.training.paging`).

    The gain of the next impression, in effective views, is `bias` plus the sum of `terms`. Against it stands what the best of
    `plans` pays per impression for fresh pages at the price of now. Plans are in order of falling `drop` and must not fall in
    `size`: the dearer compute is, the less often a device asks, and for the larger pages. `simulated` says whose sessions it
    was learned from.

    Raises ValueError for numbers that cannot be.
    """

    bias: float
    terms: tuple[PagingTerm, ...]
    plans: tuple[PagePlan, ...]
    simulated: bool = False

    def __post_init__(self) -> None:
        if not self.plans:
            raise ValueError("expected at least one plan, got none")
        terms = [x for term in self.terms for x in (term.weight, term.knot or 0.0)]
        numbers = (self.bias, *terms, *(x for plan in self.plans for x in (plan.level, plan.drop)))
        if not all(math.isfinite(x) for x in numbers):
            raise ValueError("expected finite numbers, got NaN or infinity")
        for plan in self.plans:
            if not (1 <= plan.consume <= plan.size and plan.drop >= 0):
                raise ValueError(f"expected 1 <= consume <= size and drop >= 0, got {plan}")
        for one, other in zip(self.plans, self.plans[1:], strict=False):
            if not (other.drop < one.drop and other.size >= one.size):
                raise ValueError(f"expected plans of falling drop and not falling size, got {other} after {one}")
