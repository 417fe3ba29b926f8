"""The seam of paging policies: the state that they read, and the decision that they return."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

from pocketrank.device.contract import Network

__all__ = ["PageDecision", "Paging", "PagingState", "must_ask"]


class PagingState(NamedTuple):
    """State of a session that a policy may read. A signal that the device does not have is left at its default.

    Values are the expected rewards of showing an item: the model's scores, weighted as for the order. They are NaN without a
    model or a page.
    """

    remaining: int
    """Candidates that the device still holds."""
    shown: int
    """Candidates of the current page that were shown."""
    age_ms: int
    """Time since the current page arrived. 0 without a page."""
    ttl_ms: int
    """How long the current page stays fresh."""
    compute_price: float
    """The cloud's relative price of one more page. 1.0 is normal load."""
    best: float = math.nan
    """Value of the item that would be shown next."""
    top: float = math.nan
    """Mean value of the three items that would be shown next."""
    arrived: float = math.nan
    """`top` of the current page when it was first ranked."""
    position: int = 0
    """Impressions of the session so far."""
    recent: float = math.nan
    """Share of effective views among the recent impressions, an exponential mean."""
    network: Network | None = None
    """Network connection at the last impression."""
    battery_saver: bool | None = None
    """Whether battery saver was on at the last impression."""


class PageDecision(NamedTuple):
    """Whether to request a page now, for how many candidates, and why.

    The reasons are `empty`, `stale`, `consumed`, `value` and `uplift`; `continue` is no request.
    """

    request: bool
    size: int
    reason: str


class Paging(ABC):
    """A paging policy, called after each swipe. It must keep nothing of a session, since many sessions share a policy."""

    uses_values: ClassVar[bool] = False
    """Whether it reads the values of the remaining candidates. The model then runs before the policy is called."""

    @abstractmethod
    def __call__(self, state: PagingState) -> PageDecision:
        """Return the decision for one session's state."""


def must_ask(state: PagingState) -> str | None:
    """Return why every policy requests a page: nothing is left (`empty`), or the page is `stale`. None leaves the choice."""
    if state.remaining == 0:
        return "empty"
    return "stale" if state.age_ms >= state.ttl_ms else None
