"""Asks the cloud for a page when it is time to, and gives a cloud that does not answer time before it is asked again."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pocketrank.device.paging import PageDecision

if TYPE_CHECKING:
    from pocketrank.device.contract import Page, PageRequest
    from pocketrank.device.network.client import ClientError, CloudClient
    from pocketrank.device.session.counters import Counters

__all__ = ["Asking", "Refill", "RefillConfig", "Refiller"]

_FAILURES_MAX = 30  # beyond that the span would no longer fit an integer of a phone


@dataclass(frozen=True)
class RefillConfig:
    """How often a cloud is asked that does not answer: after a random part of a span that doubles (full jitter)."""

    backoff_ms: int = 1_000
    """The first span."""
    backoff_max_ms: int = 60_000
    """The longest one."""


class Asking(Protocol):
    """What a session that asks the cloud has to offer (`FeedSession`)."""

    counters: Counters

    def wants_page(self) -> PageDecision:
        """Return whether to ask now, and for how many candidates."""

    def request(self, size: int, scene: int = 0) -> PageRequest:
        """Return the next request, with the feedback that waits."""

    def take(self, page: Page) -> bool:
        """Hold the page; False when it is refused."""

    def not_sent(self, request: PageRequest) -> None:
        """Queue the feedback of a request again that got no answer."""


class Refill(NamedTuple):
    """What became of asking for a page."""

    decision: PageDecision
    """whether to ask, and why"""
    taken: bool = False
    """a page came and is held now"""
    error: ClientError | None = None
    """why no page came; its feedback waits again"""


class Refiller:
    """One session's. For one thread at a time, which waits for the network."""

    def __init__(self, config: RefillConfig, clock: Callable[[], int], rng: random.Random) -> None:
        self._config, self._clock, self._rng = config, clock, rng
        self._failures = self._from_ms = 0

    def __call__(self, session: Asking, client: CloudClient, scene: int) -> Refill:
        """Ask if the session wants a page, and have it take the answer."""
        from pocketrank.device.network.errors import ClientError

        decision = session.wants_page()
        if not decision.request or self._clock() < self._from_ms:
            return Refill(decision)
        request = session.request(decision.size, scene)
        try:
            page = client.page(request)
        except BaseException as error:
            session.not_sent(request)
            if not isinstance(error, ClientError):
                raise
            session.counters.pages_missing += 1
            span = min(self._config.backoff_ms * 2**self._failures, self._config.backoff_max_ms)
            self._failures = min(self._failures + 1, _FAILURES_MAX)
            self._from_ms = self._clock() + int(span * self._rng.random())
            return Refill(decision, error=error)
        self._failures = self._from_ms = 0
        return Refill(decision, session.take(page))
