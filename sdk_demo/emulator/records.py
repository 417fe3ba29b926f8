"""Records of emulated sessions."""

from __future__ import annotations

from dataclasses import dataclass, field

from pocketrank.device import Counters, PagingState

__all__ = ["RandomDecision", "SessionRecord"]


@dataclass(frozen=True)
class RandomDecision:
    """Decision of a random policy before an impression."""

    state: PagingState
    asked: bool
    size: int
    probability: float
    """Probability of a request in this state; 1 where every policy must request."""


@dataclass
class SessionRecord:
    """Record of one session."""

    policy: str
    user_id: int
    training: int = 0
    """Number of the training that the models of phone and server came from, where there are several."""
    effective: list[bool] = field(default_factory=list)
    """Whether the view was effective, by position."""
    likes: int = 0
    follows: int = 0
    watch_ms: int = 0
    requests: int = 0
    """Page requests."""
    candidates: int = 0
    """Candidates on all pages."""
    pages_missing: int = 0
    """Page requests that failed; the session continued with the items it held."""
    uploads_missing: int = 0
    """Batches of feedback at the end of a session that were not acknowledged."""
    starved: bool = False
    """Whether the session ended because the server sent no new items, not because the user left."""
    decisions: list[RandomDecision] = field(default_factory=list)
    """Decisions of a random policy, by position."""
    counters: Counters = field(default_factory=Counters)
    """Counters of the SDK's session."""
    rerank_ms: list[float] = field(default_factory=list)
    """Time in the SDK of each `next` that ran the model."""
    page_ms: list[float] = field(default_factory=list)
    """Time of each page, from the request to the decoded response."""
