"""Lower half of the device model: an item tower and a user tower that stay in the cloud.

A page of the split form carries their outputs. They are trained together with the upper half, and their dot product is trained
to predict the first task, so that the same vectors also serve retrieval.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketrank.cloud.data.samples import Samples
from pocketrank.cloud.models.entities import ItemIdentity, UserAttributes
from pocketrank.cloud.models.layers import mlp

__all__ = ["LowerHalf", "TowerConfig"]


@dataclass(frozen=True)
class TowerConfig:
    """Widths of the lower half."""

    vector_width: int = 32
    """Width of the vectors in a page; 32 take 64 bytes a candidate in fp16."""
    item_width: int = 16
    """Width of the ID embedding of an item."""
    side_width: int = 8
    """Width of the embedding of an author or a category."""
    user_width: int = 16
    """Width of the embedding of each user attribute."""
    history_max: int = 20
    """Events before the request that the user tower sees."""
    hidden: int = 64
    """Width of the one hidden layer of each tower."""
    dropout: float = 0.1
    """Dropout in both towers."""


class LowerHalf(nn.Module):
    """Item tower and user tower. `statistics` is the number of item statistics."""

    def __init__(self, config: TowerConfig, samples: Samples, statistics: int) -> None:
        super().__init__()
        c = config
        self.identity = ItemIdentity(samples, c.item_width, c.side_width)
        # Users have no ID embedding: with a few dozen rows each it would only overfit.
        self.user = UserAttributes(samples, c.user_width, ids=False)
        self.item_tower = nn.Sequential(
            mlp([self.identity.width + statistics, c.hidden, c.vector_width], c.dropout), nn.LayerNorm(c.vector_width)
        )
        self.event = nn.Linear(c.vector_width + len(samples.history_feedback), c.hidden)
        self.user_tower = nn.Sequential(
            mlp([c.hidden + c.user_width + 1, c.hidden, c.vector_width], c.dropout), nn.LayerNorm(c.vector_width)
        )
        self.bias = nn.Parameter(torch.zeros(1))
        self.scale = 1 / math.sqrt(c.vector_width)

    def items(self, item: Int[Tensor, "*b"], statistics: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        """Return the vectors of items, with the item statistics of a day."""
        vectors: Tensor = self.item_tower(torch.cat([self.identity(item), statistics], -1))
        return vectors

    def users(
        self,
        row: Float[Tensor, "b u"],
        history_vector: Float[Tensor, "b h d"],
        history_feedback: Float[Tensor, "b h f"],
        history_mask: Float[Tensor, "b h"],
    ) -> Float[Tensor, "b d"]:
        """Return the vectors of users.

        `row` is the output of `self.user`; the history holds the vectors of the items that the users saw before the request,
        and their feedback on them.
        """
        events = torch.relu(self.event(torch.cat([history_vector, history_feedback], -1)))  # b h hidden
        mask = history_mask[..., None]
        count = mask.sum(1)
        pooled = (events * mask).sum(1) / (count + 1)  # b hidden; the mean, drawn towards 0 for short histories
        vectors: Tensor = self.user_tower(torch.cat([pooled, row, torch.log1p(count) / 4], -1))
        return vectors

    def match(self, user: Float[Tensor, "b d"], item: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Return the logit of the first task, from the two vectors alone: their scaled dot product."""
        return (user * item).sum(-1) * self.scale + self.bias
