"""The seam of every rule for asking: what it may look at, and what it answers."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from pocketrank.device.contract import Network

__all__ = ["PageDecision", "Paging", "PagingState", "must_ask"]


class PagingState(NamedTuple):
    """What a policy may look at. What a device cannot tell is left at its default.

    Values are the model's, weighted as for the order: the shown item's expected worth. NaN without a model or a page.
    """

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
    best: float = math.nan
    """value of what would be shown next"""
    top: float = math.nan
    """mean value of the three that would be shown next"""
    arrived: float = math.nan
    """`top` of the current page when it was ranked first"""
    position: int = 0
    """impressions of the session so far"""
    recent: float = math.nan
    """share of effective views among the last impressions, the latest weighing most"""
    network: Network | None = None
    """of the last impression"""
    battery_saver: bool | None = None
    """of the last impression"""


class PageDecision(NamedTuple):
    """Ask now or not, for how many, and why (`empty`, `stale`, `consumed`, `value`, `uplift`, `continue`)."""

    request: bool
    size: int
    reason: str


class Paging(ABC):
    """The seam: decides after each swipe. Must not keep anything of one session, since many share a policy."""

    uses_values: ClassVar[bool] = False
    """Whether it looks at the values of what is left: the model is then run before it is asked."""

    @abstractmethod
    def __call__(self, state: PagingState) -> PageDecision:
        """The decision for one session's state."""


def must_ask(state: PagingState) -> str | None:
    """Why every policy asks: nothing is left (`empty`), or what is left is `stale`; None leaves it to the policy."""
    if state.remaining == 0:
        return "empty"
    return "stale" if state.age_ms >= state.ttl_ms else None
