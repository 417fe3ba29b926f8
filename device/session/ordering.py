"""Orders what a session holds: by the models, within their time, with less work where a tier or a low battery asks for it.

Whatever keeps the models from answering leaves cloud order, and is counted.
"""

from __future__ import annotations

from time import perf_counter_ns
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import Form
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.ranking.ranker import Ranking
from pocketrank.device.ranking.tiers import Tier
from pocketrank.device.ranking.watchdog import Skipped, Watchdog
from pocketrank.device.reports.telemetry import Telemetry
from pocketrank.device.runtimes.base import RuntimeRunError
from pocketrank.device.session.counters import Counters
from pocketrank.device.session.session_models import SessionModels

__all__ = ["Order", "Ordering", "Why"]

Why: TypeAlias = Literal["model", "last", "cloud", "failed", "no_number"] | Skipped
"""What made an order.

The first two are the models, at this swipe or at an earlier one. The others are the cloud: because no form fits the page or
there is nothing to choose, a run failed, a score was not a finite number, or the watchdog went on without the models."""


class Order(NamedTuple):
    """Order of the candidates that are held."""

    indices: NDArray[np.intp]
    """[count] indices of the candidates, best first"""
    why: Why
    """what made it"""
    ranking: Ranking | None = None
    """the models' answer, when they made the order"""
    shipped: NDArray[np.float32] | None = None
    """[n, K] probabilities by the shipped model for the first n candidates, when a personal layer made the order"""

    @property
    def values(self) -> NDArray[np.float32] | None:
        """[n] value of showing each of the first n candidates; None when no model made the order."""
        return None if self.ranking is None else self.ranking.values

    def without(self, index: int) -> Order:
        """Return the order of the other candidates, once the one at `index` is taken out and those behind it move up."""
        left = self.indices[self.indices != index]
        return Order(left - (left > index), "last")


class Ordering:
    """Order of one session's candidates, as a function. Not for use from several threads at once."""

    def __init__(self, counters: Counters, telemetry: Telemetry, watchdog: Watchdog | None, tier: Tier | None) -> None:
        self._counters, self._telemetry, self.watchdog = counters, telemetry, watchdog
        self._tier = self._full = tier or Tier(name="full")

    @property
    def keeps(self) -> bool:
        """Whether an order may serve more than one swipe."""
        return self._tier.every > 1

    def saver(self, on: bool) -> None:
        """Do less work from now on when the battery saver is on, and all of it when it is off."""
        if on is (self._tier is self._full):
            self._tier = self._full.saving() if on else self._full

    def __call__(
        self, models: SessionModels, form: Form | None, held: Remaining, now_ms: int, position: int, last: Order | None
    ) -> Order:
        """Return the order of `held` by the models of `form`, or `last` where a tier skips this swipe.

        After `overran` a late run still reads `held` and the models' memory: the caller MUST go on with copies of them.
        """
        if form is None or held.count < 2:
            return Order(np.arange(held.count), "cloud")
        # Another length means that the page or what is left of it has changed since.
        if last is not None and not self._tier.due(position) and len(last.indices) == held.count:
            return last
        search, begin = self._tier.search, perf_counter_ns()
        answer: tuple[Ranking | None, NDArray[np.float32] | None] | None
        try:
            if self.watchdog is None:
                answer, why = models.rank(form, held, now_ms, position, search), None
            else:
                answer, why = self.watchdog(lambda: models.rank(form, held, now_ms, position, search))
        except RuntimeRunError:
            self._counters.model_failed += 1
            return Order(np.arange(held.count), "failed")
        if answer is None:
            assert why is not None
            return Order(np.arange(held.count), why)
        ranking, shipped = answer
        if ranking is None:
            self._counters.scores_bad += 1
            return Order(np.arange(held.count), "no_number")
        self._counters.reranks += 1
        self._telemetry.time("rerank", perf_counter_ns() - begin)
        return Order(ranking.order, "model", ranking, shipped)
