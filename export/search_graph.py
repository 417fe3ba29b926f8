"""The list search of `pocketrank.device.model.search` as a graph, in operations that every runtime has.

A loop cannot be traced. The search is traced as two pieces, one that computes the first state and one that computes a state
from the one before, and the writer of each format makes them a loop (`cut`), which ends with the search. With B = beam, N
candidates and L = `steps_max`, a state is ::

    lists   f32 [B, L]   indices of the chosen candidates, the newest last, padded at the front by -1
    reward  f32 [B]      reward of each list, best first; `NEVER` where the beam holds fewer lists
    alive   f32 [B]      probability that the user gets past the list; only with a survival task

Rounding, ties and the end are those of `pocketrank.device.model.search`. Lists and survival after a choice are looked up in
tables of all choices with the index from top-k. Dividing that index by N would also give the list, but converters turn the
division into a product with 1 / N, which can be off by one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding

from pocketrank.device.contract import FeatureSpec, SearchSpec
from pocketrank.export.errors import UnsupportedError

__all__ = ["BARRED", "WEIGHT_MAX", "ListSearch"]

NEVER = -1e30
"""Reward of a choice that is not allowed: finite, and so large that adding another reward does not change it."""
BARRED = NEVER / 2
"""Bound above which the rewards of allowed choices are."""
WEIGHT_MAX = 1e18
"""Largest weight of a task, which keeps all rewards far from `BARRED`."""


class ListSearch(nn.Module):
    """The two pieces of a search for a spec's tasks. Raises `UnsupportedError` for a weight beyond `WEIGHT_MAX`."""

    def __init__(self, spec: FeatureSpec, search: SearchSpec) -> None:
        super().__init__()
        weights = [(i, spec.task_weights.get(task, 0.0)) for i, task in enumerate(spec.tasks)]
        for i, weight in weights:
            if abs(weight) > WEIGHT_MAX:
                raise UnsupportedError(f"task_weights.{spec.tasks[i]}", f"at most {WEIGHT_MAX:g} for a search", f"{weight:g}")
        self.search = search
        self.weights = [(i, weight) for i, weight in weights if weight] or weights[:1]  # adding 0 changes no sum
        self.survival = None if spec.survival_task is None else spec.tasks.index(spec.survival_task)
        self.state = ("lists", "reward") if self.survival is None else ("lists", "reward", "alive")
        """Names of the values of a state."""
        self.register_buffer("empty", torch.tensor([0.0] + [NEVER] * (search.beam - 1)))
        self.register_buffer("places", torch.arange(max(spec.candidates_max, 2 * search.steps_max)).float())
        self.empty: Tensor
        self.places: Tensor

    def start(self, probabilities: Float[Tensor, "1 n k"], mask: Float[Tensor, "1 n"]) -> dict[str, Tensor]:
        """Return the state after the first step, from the probabilities of each candidate after the empty list."""
        beam = self.search.beam
        return self.step(probabilities, mask, torch.full((beam, self.search.steps_max), -1.0), self.empty, torch.ones(beam))

    def step(
        self,
        probabilities: Float[Tensor, "#b n k"],
        mask: Float[Tensor, "1 n"],
        lists: Float[Tensor, "b l"],
        reward: Float[Tensor, " b"],
        alive: Float[Tensor, " b"] | None = None,
    ) -> dict[str, Tensor]:
        """Return the state after one more step, from the probabilities of each candidate after each list."""
        n, beam = mask.shape[1], self.search.beam
        places = self.places[:n]
        # Worth of each choice: the weighted probabilities, times the probability that the user gets there.
        (i, weight), *others = self.weights
        worth = probabilities[..., i] * weight
        for i, weight in others:
            worth = worth + probabilities[..., i] * weight
        if alive is not None:
            worth = alive[:, None] * worth
        # The best choices of all lists become the next beam.
        barred = (lists[..., None] == places).float().amax(1) - mask >= 0  # b n: chosen already, or masked
        reward, best = _largest(torch.where(barred, NEVER, reward[:, None] + worth).flatten(), beam)
        longer = places[:, None].expand(beam, n, 1)
        if self.search.steps_max > 1:
            longer = torch.cat([lists[:, None, 1:].expand(beam, n, -1), longer], -1)
        state = {"lists": embedding(best, longer.flatten(0, 1)), "reward": reward}
        if self.survival is not None:
            assert alive is not None
            survived = alive[:, None] * probabilities[..., self.survival]
            state["alive"] = embedding(best, survived.flatten()[:, None]).flatten()
        return state

    def going(self, mask: Float[Tensor, "1 n"], state: Mapping[str, Tensor]) -> Bool[Tensor, ""]:
        """Return whether the search goes on: lists may grow, candidates are left, and the beam is not yet stable."""
        lists, reward, s = state["lists"], state["reward"], self.search
        high = reward[0]
        low = torch.where(reward > BARRED, reward, high).amin(0)
        ratio = torch.where(low > 0, low / high, torch.where(high < 0, high / low, 0.0))
        stable = (low == high) | (ratio >= s.stability)
        enough = lists[0, s.steps_max - s.list_size] >= 0
        left = (lists[0] >= 0).float().sum() < mask.sum()
        return (lists[0, 0] < 0) & left & ~(stable & enough)

    def chosen(self, lists: Float[Tensor, "b l"]) -> tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]:
        """Return a state's lists as the model takes them, and their mask."""
        return lists.clamp(min=0).to(torch.int32), (lists >= 0).float()

    def order(self, state: Mapping[str, Tensor]) -> Int[Tensor, "1 l"]:
        """Return the best list of a state from its first item on, padded at the back by -1."""
        lists, longest = state["lists"], self.search.steps_max
        best = torch.where(state["reward"][0] > BARRED, lists[0], -1.0)
        first = longest - (lists[0] >= 0).float().sum()
        padded = torch.cat([best, torch.full((longest,), -1.0)])[:, None]
        return embedding((self.places[:longest] + first).to(torch.int32), padded).to(torch.int32).T


def _largest(values: Float[Tensor, " m"], count: int) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """Return the largest values and their indices, equal ones in order, as top-k does in ONNX and LiteRT, but not in torch."""
    if torch.compiler.is_exporting():
        best, places = torch.topk(values, count)
    else:
        best, places = (x[:count] for x in torch.sort(values, descending=True, stable=True))
    return best, places.to(torch.int32)
