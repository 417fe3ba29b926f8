"""Waits between attempts while the cloud does not answer."""

from __future__ import annotations

import math
import random

__all__ = ["Backoff"]

_DOUBLINGS_MAX = 64  # far beyond any longest span


class Backoff:
    """Exponential backoff with full jitter: each wait is a random share of a span that doubles with every failure.

    Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015.
    """

    def __init__(self, first: float, longest: float, rng: random.Random | None = None) -> None:
        """`first` and `longest` are spans, in the unit of the waits."""
        self._first, self._longest, self._rng = first, longest, rng or random.Random()
        self._failures = 0

    def failed(self) -> float:
        """Count a failure and return how long to wait."""
        span = min(self._longest, math.ldexp(self._first, min(self._failures, _DOUBLINGS_MAX)))
        self._failures += 1
        return self._rng.uniform(0, span)

    def succeeded(self) -> None:
        """Begin with the first span again."""
        self._failures = 0
