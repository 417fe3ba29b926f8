"""Which list to show next: greedy and adaptive beam search over the list reward.

Gong et al., CIKM 2022, arXiv 2208.09577. A list of candidates, scored one after the other given those before, is worth ::

    ListReward(P) = sum_i s_i r_i       r_i  what showing the i-th item is worth, the weighted sum of its probabilities
                                        s_i  the chance that the user gets that far: 1, then the product of the survivals before

A beam holds the best lists found so far. Each step puts every candidate that a list lacks behind it and keeps the best of all;
the search stops as soon as the lists left are nearly as good as one another, since looking further would gain little.

The same search runs inside exported graphs, whose answers must be equal to these. All arithmetic is therefore float32, every
product and every sum rounded by itself, in this order, from reward 0 and s 1 of the empty list (K tasks, N candidates)::

    r         = ((p_1 w_1 + p_2 w_2) + ..) + p_K w_K
    reward'   = reward + s r                        of the list with the candidate behind it
    s'        = s p_survival                        or s, without a survival task
    beam'     = the largest reward', best first; equal ones by their index (place of the list in the beam) N + candidate
    stability = low / high  when 0 < low            low, high: smallest and largest reward of the beam
                high / low  when high < 0           how near in size two losses are
                1           when low = high         so for a beam of one list
                0           otherwise               a gain beside a loss, or either beside nothing
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pocketrank.device.contract import SearchSpec
from pocketrank.device.runtimes.base import RuntimeRunError

__all__ = ["GREEDY", "Reward", "SearchResult", "Step", "StopReason", "search"]

Step: TypeAlias = Callable[[NDArray[np.int64]], NDArray[np.float32]]
"""The seam to a model: prefixes i64 [b, i] to the probabilities f32 [b, N, K] of every candidate as each prefix's next item.

A prefix holds places in cloud order, first item first; the empty one comes as [1, 0]. What is answered for candidates that the
prefix has already does not matter. The answer may be memory that the next call writes over.
"""

StopReason: TypeAlias = Literal["stable", "length", "exhausted"]
"""Why a search ended, the first that is true: the rule held, `steps_max` was reached, no candidate was left."""


GREEDY = SearchSpec(beam=1, list_size=1, steps_max=1)
"""The best next item and no look ahead: one run of the model."""


class Reward:
    """What showing an item is worth, and which task tells whether the user stays for the next."""

    def __init__(self, weights: ArrayLike, survival: int | None = None) -> None:
        """`weights` are f32 [K], of any sign. `survival` is the task whose probability discounts what follows (`has_next`
        where the model has it); None discounts nothing. Raises ValueError.
        """
        with np.errstate(over="ignore"):
            self.weights = np.array(weights, np.float32)
        self.survival = survival
        if self.weights.ndim != 1 or not self.weights.size or not np.isfinite(self.weights).all():
            raise ValueError(f"expected finite weights [K] with K >= 1, got {weights!r}")
        if survival is not None and not 0 <= survival < len(self.weights):
            raise ValueError(f"expected survival in 0..{len(self.weights) - 1} or None, got {survival}")

    def __call__(self, probabilities: NDArray[np.float32]) -> NDArray[np.float32]:
        """r of items with `probabilities` [.., K]: [..]."""
        # Unlike a matrix product or a sum, an accumulation has one order of additions on every machine.
        weighted: NDArray[np.float32] = np.add.accumulate(probabilities * self.weights, axis=-1)
        return weighted[..., -1]


@dataclass(frozen=True, eq=False)
class SearchResult:
    """The best list, and how it was found."""

    order: NDArray[np.int64]
    """[fixed + steps] places in cloud order: the fixed ones, then those that were decided"""
    reward: float
    """ListReward(order)"""
    stability: tuple[float, ...]
    """[steps] of the beam after each step"""
    reason: StopReason
    """why it ended"""
    first: NDArray[np.int64]
    """[N - fixed] all but the fixed, best first by the reward of being first behind them; ties in cloud order"""

    @property
    def steps(self) -> int:
        """Items decided."""
        return len(self.stability)

    @property
    def full_order(self) -> NDArray[np.int64]:
        """[N] `order`, then all that it lacks as in `first`."""
        left = np.ones(len(self.order) + len(self.first) - self.steps, np.bool_)
        left[self.order] = False
        return np.concatenate([self.order, self.first[left[self.first]]])


def search(
    step: Step, candidates: int, reward: Reward, config: SearchSpec | None = None, fixed: Sequence[int] = ()
) -> SearchResult | None:
    """The list of the highest reward that the beam finds among `candidates` (N) in cloud order.

    Every list begins with `fixed`, places of what is on screen or buffered already: scored for reward and survival, one run
    each, but not decided, so that neither `list_size` nor `steps_max` counts them. No list holds a candidate twice and no two
    lists of a beam are equal; where there are fewer lists than `beam`, the beam is that small. With fewer candidates than
    `list_size` all of them are decided; with none the list is empty, its reward 0, and the model is not run.

    None when the reward of a list that it meets is not finite. Raises ValueError for `fixed` places that repeat or are not in
    0..N-1, `RuntimeRunError` for an answer of the wrong shape, and whatever `step` raises.
    """
    config = config or SearchSpec()
    if candidates < 0 or len(set(fixed)) < len(fixed) or not all(0 <= place < candidates for place in fixed):
        raise ValueError(f"expected candidates >= 0 and distinct fixed places among them, got {candidates} and {list(fixed)}")
    lists = np.zeros((1, 0), np.int64)
    rewards, alive = np.zeros(1, np.float32), np.ones(1, np.float32)
    first = np.zeros(0, np.int64)
    stability: list[float] = []
    reason: StopReason = "exhausted"
    for length in range(candidates):
        probabilities = np.asarray(step(lists), np.float32)
        expected = (len(lists), candidates, len(reward.weights))
        if probabilities.shape != expected:
            raise RuntimeRunError("probabilities", str(list(expected)), str(list(probabilities.shape)))
        with np.errstate(over="ignore", invalid="ignore"):
            longer = rewards[:, None] + alive[:, None] * reward(probabilities)
        longer[np.arange(len(lists))[:, None], lists] = -np.inf
        flat = longer.reshape(-1)
        if length < len(fixed):
            best = np.array(fixed[length : length + 1], np.int64)
        else:
            best = np.negative(flat).argsort(kind="stable")[: len(lists) * (candidates - length)]
        # The ends tell: infinities are sorted there, and NaN behind everything.
        if not (math.isfinite(flat[best[0]]) and math.isfinite(flat[best[-1]])):
            return None
        if length == len(fixed):
            first = best
        best = best[: config.beam]
        parents, items = np.divmod(best, candidates)
        lists = np.concatenate([lists[parents], items[:, None]], axis=1)
        rewards = flat[best]
        if length >= len(fixed):
            ratio = _stability(rewards[-1], rewards[0])
            stability.append(float(ratio))
            if len(stability) >= config.list_size and ratio >= np.float32(config.stability):
                reason = "stable"
                break
            if len(stability) == config.steps_max:
                reason = "length"
                break
        alive = alive[parents]
        if reward.survival is not None:
            alive = alive * probabilities[parents, items, reward.survival]
    return SearchResult(lists[0], float(rewards[0]), tuple(stability), reason, first)


def _stability(low: np.float32, high: np.float32) -> np.float32:
    if low == high:
        return np.float32(1)
    if low > 0:
        return low / high
    return high / low if high < 0 else np.float32(0)
