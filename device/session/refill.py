"""Requests of pages when it is time for one, with a backoff while the cloud does not answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

from pocketrank.device.paging import PageDecision

if TYPE_CHECKING:
    from pocketrank.device.contract import Page, PageRequest
    from pocketrank.device.network.client import CloudClient
    from pocketrank.device.network.errors import ClientError
    from pocketrank.device.session.counters import Counters

__all__ = ["Asking", "Refill", "RefillConfig", "Refiller"]

_FAILURES_MAX = 30  # failures that are counted: the span has reached its maximum long before


@dataclass(frozen=True)
class RefillConfig:
    """Backoff with full jitter: each wait is a random share of a span that doubles with every failure."""

    backoff_ms: int = 1_000
    """First span."""
    backoff_max_ms: int = 60_000
    """Longest span."""


class Asking(Protocol):
    """The part of a `FeedSession` that a `Refiller` needs."""

    counters: Counters

    def wants_page(self) -> PageDecision:
        """Return whether to ask now, and for how many candidates."""

    def request(self, size: int, scene: int = 0) -> PageRequest:
        """Return the next request, with feedback from the queue."""

    def take(self, page: Page) -> bool:
        """Hold the page; False when it is refused."""

    def request_failed(self, request: PageRequest) -> None:
        """Queue again what went along with a request that got no answer."""


class Refill(NamedTuple):
    """Result of a call of `FeedSession.refill`."""

    decision: PageDecision
    """whether to ask, and why"""
    taken: bool = False
    """whether a page arrived and is held now"""
    error: ClientError | None = None
    """why the request failed; its feedback is queued again"""


class Refiller:
    """Requests of one session's pages. For one thread at a time, which waits for the network."""

    def __init__(self, config: RefillConfig, clock: Callable[[], int], rng: random.Random) -> None:
        self._config, self._clock, self._rng = config, clock, rng
        self._failures = self._from_ms = 0

    def __call__(self, session: Asking, client: CloudClient, scene: int) -> Refill:
        """Request a page if the session wants one, and have the session take it."""
        from pocketrank.device.network.errors import ClientError

        decision = session.wants_page()
        if not decision.request or self._clock() < self._from_ms:
            return Refill(decision)
        request = session.request(decision.size, scene)
        try:
            page = client.page(request)
        except BaseException as error:
            session.request_failed(request)
            if not isinstance(error, ClientError):
                raise
            session.counters.pages_missing += 1
            span = min(self._config.backoff_ms * 2**self._failures, self._config.backoff_max_ms)
            self._failures = min(self._failures + 1, _FAILURES_MAX)
            self._from_ms = self._clock() + int(span * self._rng.random())
            return Refill(decision, error=error)
        self._failures = self._from_ms = 0
        return Refill(decision, session.take(page))
