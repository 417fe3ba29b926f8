"""The paging model of a bundle's manifest: when a device asks for the next page."""

from __future__ import annotations

import math

from pocketrank.device.contract.wire import Wire

__all__ = ["PagePlan", "PagingModel", "PagingTerm"]


class PagePlan(Wire, frozen=True, kw_only=True):
    """A fixed routine: request pages of `size`, each after `consume` impressions of the last.

    At a compute price p it gains `level - p * drop` effective views per impression, compared with a feed in which each item is
    the first of a fresh page that costs nothing.
    """

    size: int
    consume: int
    level: float
    drop: float


class PagingTerm(Wire, frozen=True, kw_only=True):
    """`weight` times a feature of the state (`pocketrank.device.paging.uplift`).

    With a `knot` it is `weight` times how far the feature is below the knot, and 0 above.
    """

    feature: str
    weight: float
    knot: float | None = None


class PagingModel(Wire, frozen=True, kw_only=True):
    """Predicted gain of a page request, learned from devices that asked at random (`pocketrank.cloud.training.paging`).

    The gain of the next impression, in effective views, is `bias` plus the sum of `terms`. A device compares it with what the
    best of `plans` pays per impression for fresh pages at the current price. Plans are in order of falling `drop` and must not
    fall in `size`: the dearer compute is, the less often a device asks, and for the larger pages. Raises ValueError for numbers
    that break this.
    """

    bias: float
    terms: tuple[PagingTerm, ...]
    plans: tuple[PagePlan, ...]
    simulated: bool = False
    """Whether the sessions that it was learned from were simulated."""

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
