"""The compute price: what one more page costs the cloud now, relative to normal load.

It is sent with each page, so that devices ask less often while the cloud is short of compute.
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
    """Load up to which a page costs 1: pages of a worker that wait or are made. 1 is a worker that is always busy and for
    which nobody waits; load varies by chance, so the price rises only above it."""
    price_min: float = 1.0
    """The lowest price."""
    price_max: float = 8.0
    """The highest price. Devices that ask by uplift ask for little but what they must well below it."""
    memory_s: float = 10.0
    """Time constant with which load is forgotten: shorter than an overload, longer than a burst."""

    def __post_init__(self) -> None:
        """Raises ValueError for numbers that make no price."""
        if not (self.normal > 0 and 0 < self.price_min <= self.price_max < math.inf and self.memory_s > 0):
            raise ValueError(f"Expected normal, memory_s > 0 and 0 < price_min <= price_max, got {self}")


def price_of(load: float, config: PriceConfig = PriceConfig()) -> float:
    """Return the price at a load: the load over the normal one, within the bounds. Never falls as load rises."""
    return min(max(load / config.normal, config.price_min), config.price_max)


class ComputePrice:
    """Price that follows the load of one worker. For the one thread of an event loop. `clock` returns seconds."""

    def __init__(self, config: PriceConfig = PriceConfig(), clock: Callable[[], float] = monotonic) -> None:
        self._config, self._clock = config, clock
        self._pages, self._at = 0, clock()
        self._load, self._since, self._page_seconds = 0.0, self._at, 0.0

    def __call__(self) -> float:
        """Return the price of now."""
        now = self._settle()
        if (lasted := now - self._since) > 0:
            # An exponential average over time; all moments since the last price have the same weight.
            weight = -math.expm1(-lasted / self._config.memory_s)
            # A load beyond the highest price counts as the load of that price. Otherwise the price would stay high long after
            # the overload.
            load = min(self._page_seconds / lasted, self._config.price_max * self._config.normal)
            self._load += weight * (load - self._load)
            self._since, self._page_seconds = now, 0.0
        return price_of(self._load, self._config)

    def enter(self) -> None:
        """Count a page that waits or is made, until `leave`."""
        self._settle()
        self._pages += 1

    def leave(self) -> None:
        """Count a page no longer: it is made, or its client has disconnected."""
        self._settle()
        self._pages -= 1

    def _settle(self) -> float:
        """Add the pages since the last call to `_page_seconds`. Returns the time."""
        now = self._clock()
        self._page_seconds += self._pages * (now - self._at)
        self._at = now
        return now
