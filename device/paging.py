"""When a device asks the cloud for the next page, and for how many candidates."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

__all__ = ["FixedPaging", "PageDecision", "Paging", "PagingState"]


class PagingState(NamedTuple):
    """What a policy may look at."""

    remaining: int
    """candidates that the device still holds"""
    shown: int
    """candidates of the current page that were shown"""
    age_ms: int
    """since the current page arrived; 0 without a page"""
    ttl_ms: int
    """how long the current page stays fresh"""
    compute_price: float
    """the cloud's relative price of one more page, 1.0 = normal load"""


class PageDecision(NamedTuple):
    """Ask now or not, for how many, and why (`empty`, `stale`, `consumed`, `continue`)."""

    request: bool
    size: int
    reason: str


class Paging(ABC):
    """The seam: decides after each swipe. Must not keep anything of one session, since many share a policy."""

    @abstractmethod
    def __call__(self, state: PagingState) -> PageDecision:
        """The decision for one session's state."""


class FixedPaging(Paging):
    """Ask again once `consume` candidates of a page were shown, none is left, or the page is stale; always for `size`.

    The rule of the published system (Gong et al. 2022, arXiv 2208.09577), which shows 6 of 9.
    """

    def __init__(self, consume: int = 10, size: int = 30) -> None:
        """Raises ValueError for numbers below 1."""
        if consume < 1 or size < 1:
            raise ValueError(f"expected consume >= 1 and size >= 1, got {consume} and {size}")
        self.consume, self.size = consume, size

    def __call__(self, state: PagingState) -> PageDecision:
        """See `Paging`."""
        if state.remaining == 0:
            return PageDecision(True, self.size, "empty")
        if state.age_ms >= state.ttl_ms:
            return PageDecision(True, self.size, "stale")
        if state.shown >= self.consume:
            return PageDecision(True, self.size, "consumed")
        return PageDecision(False, self.size, "continue")
