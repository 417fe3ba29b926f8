"""Backoff and results of `FeedSession.refill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from pocketrank.device.paging import PageDecision

if TYPE_CHECKING:
    from pocketrank.device.network.errors import ClientError

__all__ = ["Refill", "RefillConfig"]


@dataclass(frozen=True)
class RefillConfig:
    """Backoff (`pocketrank.device.backoff`) after requests that failed."""

    backoff_ms: int = 1_000
    """First span."""
    backoff_max_ms: int = 60_000
    """Longest span."""


class Refill(NamedTuple):
    """Result of a call of `FeedSession.refill`."""

    decision: PageDecision
    """whether to ask, and why"""
    taken: bool = False
    """whether a page arrived and is held now"""
    error: ClientError | None = None
    """why the request failed; its feedback is queued again"""
