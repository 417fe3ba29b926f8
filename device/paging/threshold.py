"""Paging by the value of the remaining candidates."""

from __future__ import annotations

from pocketrank.device.paging.base import PageDecision, Paging, PagingState, must_ask

__all__ = ["ThresholdPaging"]


class ThresholdPaging(Paging):
    """Request `size` candidates once the best one left has less than `value`, or no more than `left` are left.

    It requests nothing before `consume` of a page were shown. Otherwise a page that is poor from its first item on would be
    replaced at every swipe. Without a model there are no values, and `left` alone decides.
    """

    uses_values = True

    def __init__(self, value: float, left: int = 0, consume: int = 3, size: int = 30) -> None:
        """`value` is on the scale of the model's weighted scores. Raises ValueError for NaN and for counts out of range."""
        if not (value == value and left >= 0 and consume >= 1 and size >= 1):
            raise ValueError(f"expected a value, left >= 0 and consume, size >= 1, got {value}, {left}, {consume} and {size}")
        self.value, self.left, self.consume, self.size = value, left, consume, size

    def __call__(self, state: PagingState) -> PageDecision:
        """See `Paging`."""
        reason = must_ask(state)
        if reason is None and state.shown >= self.consume:
            reason = (
                "consumed" if state.remaining <= self.left else "value" if state.best < self.value else None
            )  # NaN is not less
        return PageDecision(reason is not None, self.size, reason or "continue")
