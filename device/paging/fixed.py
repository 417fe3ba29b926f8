"""Paging by fixed counts."""

from __future__ import annotations

from pocketrank.device.paging.base import PageDecision, Paging, PagingState, must_ask

__all__ = ["FixedPaging"]


class FixedPaging(Paging):
    """Request `size` candidates once `consume` of a page were shown, none is left, or the page is stale.

    This is the policy of the published system (Gong et al. 2022, arXiv 2208.09577), which shows 6 of 9.
    """

    def __init__(self, consume: int = 10, size: int = 30) -> None:
        """Raises ValueError for numbers below 1."""
        if consume < 1 or size < 1:
            raise ValueError(f"expected consume >= 1 and size >= 1, got {consume} and {size}")
        self.consume, self.size = consume, size

    def __call__(self, state: PagingState) -> PageDecision:
        """See `Paging`."""
        reason = must_ask(state) or ("consumed" if state.shown >= self.consume else None)
        return PageDecision(reason is not None, self.size, reason or "continue")
