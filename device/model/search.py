"""Search for the list to show next: greedy and adaptive beam search over the list reward.

Gong et al., CIKM 2022, arXiv 2208.09577. The items of a list are scored one after the other, each given those before it. The
list's reward is ::

    ListReward(P) = sum_i s_i r_i       r_i  reward of showing the i-th item: the weighted sum of its probabilities
                                        s_i  probability that the user gets that far: 1, then the product of the survivals
                                             of the items before

A beam holds the best lists found so far. Each step extends every list by every candidate that it lacks and keeps the best of
the results. The search stops as soon as the lists of the beam are nearly as good as one another, since a longer search would
gain little.

The same search runs inside exported graphs, whose results must be equal to these. All arithmetic is therefore float32, and
every product and every sum is rounded by itself, in this order. The empty list has reward 0 and s 1 (K tasks, N candidates)::

    r         = ((p_1 w_1 + p_2 w_2) + ..) + p_K w_K
    reward'   = reward + s r                        of the list extended by the candidate
    s'        = s p_survival                        or s, without a survival task
    beam'     = the largest reward', best first; ties by the index (place of the list in the beam) N + candidate
    stability = low / high  when 0 < low            low, high: smallest and largest reward of the beam
                high / low  when high < 0           both are losses
                1           when low = high         as in a beam of one list
                0           otherwise               a gain and a loss, or one of them and 0
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketrank.device.contract import SearchSpec
from pocketrank.device.runtimes.base import RuntimeRunError

__all__ = ["GREEDY", "Reward", "SearchResult", "Step", "StopReason", "search"]

Step: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""The seam to a model: prefixes i64 [b, i] in, probabilities f32 [b, N, K] of every candidate as each prefix's next item out.

A prefix holds places in cloud order, its first item first; the empty prefix is [1, 0]. The probabilities of candidates that a
prefix holds already are ignored. The result may be memory that the next call overwrites.
"""

StopReason: TypeAlias = Literal["stable", "length", "exhausted"]
"""Why a search ended: the beam was stable, `steps_max` was reached, or no candidate was left. The first that holds is given."""

GREEDY = SearchSpec(beam=1, list_size=1, steps_max=1)
"""Search for the best next item only: one run of the model."""


class Reward:
    """Reward of showing an item, and the task that predicts whether the user stays for the next."""

    def __init__(self, weights: ArrayLike, survival: int | None = None) -> None:
        """`weights` are f32 [K], of any sign. `survival` is the index of the task whose probability discounts what follows
        (`has_next` where the model has it); None discounts nothing. Raises ValueError for weights that are not finite, and for
        an index out of range.
        """
        with np.errstate(over="ignore"):
            self.weights = np.array(weights, np.float32)
        self.survival = survival
        if self.weights.ndim != 1 or not self.weights.size or not np.isfinite(self.weights).all():
            raise ValueError(f"expected finite weights [K] with K >= 1, got {weights!r}")
        if survival is not None and not 0 <= survival < len(self.weights):
            raise ValueError(f"expected survival in 0..{len(self.weights) - 1} or None, got {survival}")

    def __call__(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rewards r [..] of items with `probabilities` [.., K]."""
        # Unlike a matrix product or a sum, an accumulation adds in the same order on every machine.
        weighted: NDArray[np.float32] = np.add.accumulate(probabilities * self.weights, axis=-1)
        return weighted[..., -1]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The best list that a search found."""

    order: NDArray[np.int64]
    """[steps] places in cloud order"""
    reward: float
    """ListReward(order)"""
    stability: tuple[float, ...]
    """[steps] stability of the beam after each step"""
    reason: StopReason
    """why the search ended"""

    @property
    def steps(self) -> int:
        """Number of items that the search chose."""
        return len(self.stability)


def search(step: Step, candidates: int, reward: Reward, config: SearchSpec | None = None) -> SearchResult | None:
    """Return the list of the highest reward that the beam finds among `candidates` (N) in cloud order.

    No list holds a candidate twice, and no two lists of a beam are equal. Where there are fewer lists than `beam`, the beam
    holds all of them. With fewer candidates than `list_size` all of them are chosen; without candidates the list is empty, its
    reward is 0, and the model is not run.

    Returns None when the reward of a list on the way is not finite. Raises ValueError for fewer than 0 candidates,
    `RuntimeRunError` for probabilities of the wrong shape, and whatever `step` raises.
    """
    config = config or SearchSpec()
    if candidates < 0:
        raise ValueError(f"expected candidates >= 0, got {candidates}")
    lists = np.zeros((1, 0), np.int64)
    rewards, survival = np.zeros(1, np.float32), np.ones(1, np.float32)  # reward and s of each list
    stability: list[float] = []
    reason: StopReason = "exhausted"
    for length in range(candidates):
        probabilities = np.asarray(step(lists), np.float32)
        expected = (len(lists), candidates, len(reward.weights))
        if probabilities.shape != expected:
            raise RuntimeRunError("probabilities", str(list(expected)), str(list(probabilities.shape)))
        with np.errstate(over="ignore", invalid="ignore"):
            longer = rewards[:, None] + survival[:, None] * reward(probabilities)  # reward'
        longer[np.arange(len(lists))[:, None], lists] = -np.inf
        flat = longer.reshape(-1)
        best = np.negative(flat).argsort(kind="stable")[: len(lists) * (candidates - length)]
        # Sorting puts infinities at the ends and NaN last, so the two ends are enough to check.
        if not (math.isfinite(flat[best[0]]) and math.isfinite(flat[best[-1]])):
            return None
        best = best[: config.beam]
        parents, items = np.divmod(best, candidates)
        lists = np.concatenate([lists[parents], items[:, None]], axis=1)
        rewards = flat[best]
        ratio = _stability(rewards[-1], rewards[0])
        stability.append(float(ratio))
        if len(stability) >= config.list_size and ratio >= np.float32(config.stability):
            reason = "stable"
            break
        if len(stability) == config.steps_max:
            reason = "length"
            break
        survival = survival[parents]
        if reward.survival is not None:
            survival = survival * probabilities[parents, items, reward.survival]  # s'
    return SearchResult(lists[0], float(rewards[0]), tuple(stability), reason)


def _stability(low: np.float32, high: np.float32) -> np.float32:
    if low == high:
        return np.float32(1)
    if low > 0:
        return low / high
    return high / low if high < 0 else np.float32(0)
