"""Ask when what is left is no longer worth much."""

from __future__ import annotations

from device.paging.base import PageDecision, Paging, PagingState, must_ask

__all__ = ["ThresholdPaging"]


class ThresholdPaging(Paging):
    """Ask once the best left is worth less than `share` of what the page began with, or no more than `left` are left.

    Never before `consume` of a page were shown, so that a page that is poor from its first item on is not asked for anew at
    every swipe. Without a model there are no values, and `left` alone decides.
    """

    uses_values = True

    def __init__(self, share: float = 0.7, left: int = 0, consume: int = 3, size: int = 30) -> None:
        """Raises ValueError for a negative number, or `consume` or `size` below 1."""
        if not (share >= 0 and left >= 0 and consume >= 1 and size >= 1):
            raise ValueError(f"expected share, left >= 0 and consume, size >= 1, got {share}, {left}, {consume} and {size}")
        self.share, self.left, self.consume, self.size = share, left, consume, size

    def __call__(self, state: PagingState) -> PageDecision:
        """See `Paging`."""
        reason = must_ask(state) or self._reason(state)
        return PageDecision(reason is not None, self.size, reason or "continue")

    def _reason(self, state: PagingState) -> str | None:
        if state.shown < self.consume:
            return None
        if state.remaining <= self.left:
            return "consumed"
        return "value" if state.best < self.share * state.arrived else None  # NaN is not less
