"""What an emulated session leaves behind."""

from __future__ import annotations

from dataclasses import dataclass, field

from pocketrank.device import Counters, PagingState

__all__ = ["RandomDecision", "SessionRecord"]


@dataclass(frozen=True)
class RandomDecision:
    """What a randomised policy decided before an impression."""

    state: PagingState
    asked: bool
    size: int
    probability: float
    """of asking, in this state; 1 where every policy asks"""


@dataclass
class SessionRecord:
    """What happened in one session."""

    policy: str
    user_id: int
    training: int = 0
    """which of several trainings the phone's models and the server's came from"""
    effective: list[bool] = field(default_factory=list)
    """by position, whether the view was effective"""
    likes: int = 0
    follows: int = 0
    watch_ms: int = 0
    requests: int = 0
    """pages asked for"""
    candidates: int = 0
    """on the pages that came"""
    pages_missing: int = 0
    """pages asked for that did not come; the session went on with what it held"""
    uploads_missing: int = 0
    """batches of feedback at the end of a session that were not acknowledged"""
    starved: bool = False
    """the session ended because the server had nothing new to show, not because the user left"""
    decisions: list[RandomDecision] = field(default_factory=list)
    """what a policy that asks at random decided, by position"""
    counters: Counters = field(default_factory=Counters)
    """those of the SDK's session"""
    rerank_ms: list[float] = field(default_factory=list)
    """time in the SDK of each `next` that ran the model"""
    page_ms: list[float] = field(default_factory=list)
    """time of each page, from the request to the decoded answer"""
