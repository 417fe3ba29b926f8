"""What one more page costs the cloud just now, relative to normal load.

It is sent with each page, so that devices ask less often in a crunch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic

__all__ = ["ComputePrice", "PriceConfig", "price_of"]


@dataclass(frozen=True)
class PriceConfig:
    """How load becomes a price."""

    normal: float = 1.0
    """Load up to which a page costs 1: pages under way for each worker. One is a worker that is always busy and never waited
    for; the bound leaves room for chance."""
    price_min: float = 1.0
    """The lowest price."""
    price_max: float = 8.0
    """The highest. Devices that ask by uplift ask for little but what they must well before it."""
    memory_s: float = 10.0
    """How long load is remembered: shorter than a crunch, longer than a burst."""

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that make no price."""
        if not (self.normal > 0 and 0 < self.price_min <= self.price_max < math.inf and self.memory_s > 0):
            raise ValueError(f"expected normal, memory_s > 0 and 0 < price_min <= price_max, got {self}")


def price_of(load: float, config: PriceConfig = PriceConfig()) -> float:
    """The price at a load: as many times 1 as the load is of the normal one, within its bounds. Never falls as load rises."""
    return min(max(load / config.normal, config.price_min), config.price_max)


class ComputePrice:
    """Follows the load of a server whose `workers` make pages. For the one thread of an event loop."""

    def __init__(self, workers: int, config: PriceConfig = PriceConfig(), clock: Callable[[], float] = monotonic) -> None:
        """`clock` tells seconds."""
        self._workers, self._config, self._clock = workers, config, clock
        self._under_way, self._at = 0, clock()
        self._load, self._since, self._waited = 0.0, self._at, 0.0

    def __call__(self) -> float:
        """The price of now."""
        now = self._settle()
        if (lasted := now - self._since) > 0:
            # An average over time that forgets exponentially; between two prices every moment counts alike.
            kept = -math.expm1(-lasted / self._config.memory_s)
            # A load beyond the highest price counts as that one, or the price would stay long after the crunch.
            load = min(self._waited / lasted / self._workers, self._config.price_max * self._config.normal)
            self._load += kept * (load - self._load)
            self._since, self._waited = now, 0.0
        return price_of(self._load, self._config)

    def enter(self) -> None:
        """A page waits or is made from now on, until `leave`."""
        self._settle()
        self._under_way += 1

    def leave(self) -> None:
        """A page is made, or nobody waits for it any more."""
        self._settle()
        self._under_way -= 1

    def _settle(self) -> float:
        """Take in for how long as many were under way as now; the instant."""
        now = max(self._at, self._clock())
        self._waited += self._under_way * (now - self._at)
        self._at = now
        return now
