"""The list search of `pocketrank.device.model.search` in operations that every runtime has, for graphs that do all of it
themselves.

A loop cannot be traced. It is traced as two pieces, what makes the first state and what makes a state from the one before, and
each format's writer closes it (`cut`): a search that is over computes no further step. With B = beam, N candidates and
L = `steps_max`, a state is ::

    lists   f32 [B, L]   places of the chosen, the last one last, padded at the front by -1
    reward  f32 [B]      of each list, best first; `NEVER` where the beam has no more lists
    alive   f32 [B]      the chance that the user gets past the list; only with a survival task

Rounding, ties and end are those of `pocketrank.device.model.search`. What follows from a choice is looked up by top-k's answer
in tables of all choices: to divide that answer by N would do, but converters make it a product with 1 / N, which can miss by
one.
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
"""The reward of what must not be chosen: finite, and so large that to add a reward to it changes nothing."""
BARRED = NEVER / 2
"""Above it are the rewards of what may be chosen."""
WEIGHT_MAX = 1e18
"""Largest weight of a task, so that no reward comes near `BARRED`."""


class ListSearch(nn.Module):
    """The pieces of a search for a spec's tasks. Raises `UnsupportedError` for a weight beyond `WEIGHT_MAX`."""

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
        """Names of what a state holds."""
        self.register_buffer("empty", torch.tensor([0.0] + [NEVER] * (search.beam - 1)))
        self.register_buffer("places", torch.arange(max(spec.candidates_max, 2 * search.steps_max)).float())
        self.empty: Tensor
        self.places: Tensor

    def start(self, probabilities: Float[Tensor, "1 n k"], mask: Float[Tensor, "1 n"]) -> dict[str, Tensor]:
        """The state after the first step, from the probabilities of what follows the empty list."""
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
        """The state after one more step, from the probabilities of what follows each list of the last one."""
        n, beam = mask.shape[1], self.search.beam
        places = self.places[:n]
        (i, weight), *others = self.weights
        worth = probabilities[..., i] * weight
        for i, weight in others:
            worth = worth + probabilities[..., i] * weight
        if alive is not None:
            worth = alive[:, None] * worth
        barred = (lists[..., None] == places).float().amax(1) - mask >= 0  # b n: had already, or masked
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
        """Whether the search goes on: lists may get longer, something is left, and they are not yet stable."""
        lists, reward, s = state["lists"], state["reward"], self.search
        high = reward[0]
        low = torch.where(reward > BARRED, reward, high).amin(0)
        ratio = torch.where(low > 0, low / high, torch.where(high < 0, high / low, 0.0))
        stable = (low == high) | (ratio >= s.stability)
        enough = lists[0, s.steps_max - s.list_size] >= 0
        left = (lists[0] >= 0).float().sum() < mask.sum()
        return (lists[0, 0] < 0) & left & ~(stable & enough)

    def chosen(self, lists: Float[Tensor, "b l"]) -> tuple[Int[Tensor, "b l"], Float[Tensor, "b l"]]:
        """A state's lists as the model takes them, and their mask."""
        return lists.clamp(min=0).to(torch.int32), (lists >= 0).float()

    def order(self, state: Mapping[str, Tensor]) -> Int[Tensor, "1 l"]:
        """The best of a state's lists from its first item on, padded at the back by -1."""
        lists, longest = state["lists"], self.search.steps_max
        best = torch.where(state["reward"][0] > BARRED, lists[0], -1.0)
        first = longest - (lists[0] >= 0).float().sum()
        padded = torch.cat([best, torch.full((longest,), -1.0)])[:, None]
        return embedding((self.places[:longest] + first).to(torch.int32), padded).to(torch.int32).T


def _largest(values: Float[Tensor, " m"], count: int) -> tuple[Float[Tensor, " k"], Int[Tensor, " k"]]:
    """The largest values and their places, of equal ones the first: ONNX and LiteRT promise that of top-k, torch does not."""
    if torch.compiler.is_exporting():
        best, places = torch.topk(values, count)
    else:
        best, places = (x[:count] for x in torch.sort(values, descending=True, stable=True))
    return best, places.to(torch.int32)
