"""The lower half of the device model: an item tower and a user tower that stay in the cloud.

Their outputs travel with a page (split form). They are trained together with the upper half, and their dot product is trained
to predict the first task, so the same vectors serve as a retrieval index.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.data.samples import Samples
from pocketrank.cloud.models.entities import ItemIdentity, UserAttributes
from pocketrank.cloud.models.layers import mlp

__all__ = ["LowerHalf", "TowerConfig"]


@dataclass(frozen=True)
class TowerConfig:
    """Widths of the lower half."""

    vector_width: int = 32
    """Of the vectors in a page: 64 bytes a candidate in fp16."""
    item_width: int = 16
    """ID embedding of an item."""
    side_width: int = 8
    """Embedding of an author or a category."""
    user_width: int = 16
    """Embedding of each user attribute."""
    history_max: int = 20
    """Events before the request that the user tower sees."""
    hidden: int = 64
    """The one hidden layer of each tower."""
    dropout: float = 0.1
    """In both towers."""


class LowerHalf(nn.Module):
    """Vectors of items and users."""

    def __init__(self, config: TowerConfig, samples: Samples, statistics: int) -> None:
        super().__init__()
        c = config
        self.identity = ItemIdentity(samples, c.item_width, c.side_width)
        # no ID embedding of users: with a few dozen rows each it only learns them by heart
        self.user = UserAttributes(samples, c.user_width, ids=False)
        self.item_tower = nn.Sequential(
            mlp([self.identity.width + statistics, c.hidden, c.vector_width], c.dropout), nn.LayerNorm(c.vector_width)
        )
        self.event = nn.Linear(c.vector_width + len(HISTORY_FEEDBACK), c.hidden)
        self.user_tower = nn.Sequential(
            mlp([c.hidden + c.user_width + 1, c.hidden, c.vector_width], c.dropout), nn.LayerNorm(c.vector_width)
        )
        self.bias = nn.Parameter(torch.zeros(1))
        self.scale = 1 / math.sqrt(c.vector_width)

    def items(self, item: Int[Tensor, "*b"], statistics: Float[Tensor, "*b s"]) -> Float[Tensor, "*b d"]:
        """Vectors of items, given the statistics of the day."""
        vectors: Tensor = self.item_tower(torch.cat([self.identity(item), statistics], -1))
        return vectors

    def users(
        self,
        row: Float[Tensor, "b u"],
        history_vector: Float[Tensor, "b h d"],
        history_feedback: Float[Tensor, "b h f"],
        history_mask: Float[Tensor, "b h"],
    ) -> Float[Tensor, "b d"]:
        """Vectors of users, from the vectors of the items they saw before the request and how they took them."""
        events = torch.relu(self.event(torch.cat([history_vector, history_feedback], -1)))
        mask = history_mask[..., None]
        count = mask.sum(1)
        pooled = (events * mask).sum(1) / (count + 1)
        vectors: Tensor = self.user_tower(torch.cat([pooled, row, torch.log1p(count) / 4], -1))
        return vectors

    def match(self, user: Float[Tensor, "b d"], item: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Logit of the first task from the two vectors alone."""
        return (user * item).sum(-1) * self.scale + self.bias
