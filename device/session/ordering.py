"""How the order of what a session holds is made: by the models, within their time, with less work where a tier or an empty
battery asks for it. Whatever keeps the models from answering leaves cloud order, and is counted.
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
"""What made an order: the models; the models at an earlier swipe; or the cloud, because no form fits the page or there is
nothing to choose, a run failed, a score was no number, or the watchdog went on without the models."""


class Order(NamedTuple):
    """An order of what is held."""

    indices: NDArray[np.intp]
    """[count] best first"""
    why: Why
    """what made it"""
    ranking: Ranking | None = None
    """what the models said, when they made it"""
    shipped: NDArray[np.float32] | None = None
    """[n, K] the shipped probabilities of the first n held, when the order is personal"""

    @property
    def values(self) -> NDArray[np.float32] | None:
        """[n] what showing each of the first n held is worth; None where no model said."""
        return None if self.ranking is None else self.ranking.values

    def without(self, index: int) -> Order:
        """The same order once the candidate at `index` is taken out of what is held."""
        left = self.indices[self.indices != index]
        return Order(left - (left > index), "last")


class Ordering:
    """Makes one session's orders. Not for use from several threads at once."""

    def __init__(self, counters: Counters, telemetry: Telemetry, watchdog: Watchdog | None, tier: Tier | None) -> None:
        self._counters, self._telemetry, self.watchdog = counters, telemetry, watchdog
        self._tier = self._full = tier or Tier(name="full")

    @property
    def keeps(self) -> bool:
        """Whether an order may serve more than one swipe."""
        return self._tier.every > 1

    def saver(self, on: bool) -> None:
        """The battery saver is on or off."""
        if on is (self._tier is self._full):
            self._tier = self._full.saving() if on else self._full

    def __call__(
        self, models: SessionModels, form: Form | None, held: Remaining, now_ms: int, position: int, last: Order | None
    ) -> Order:
        """The order of `held` by the `form` of the models, which was chosen when the page came. `last` is the one before.

        After `overran` a late run still reads `held` and the models: the session goes on with copies of them.
        """
        if form is None or held.count < 2:
            return Order(np.arange(held.count), "cloud")
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
