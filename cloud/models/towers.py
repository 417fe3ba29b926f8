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

from cloud.data.samples import HISTORY_FEEDBACK
from cloud.models.layers import Embedding, mlp
from cloud.models.ranker import Vocabulary

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
    """Embedding of each user attribute. Users have no ID embedding here: with a few dozen rows each it only overfits."""
    history_max: int = 20
    """Events before the request that the user tower sees."""
    hidden: int = 64
    """The one hidden layer of each tower."""
    dropout: float = 0.1
    """In both towers."""


class LowerHalf(nn.Module):
    """Vectors of items and users."""

    def __init__(self, config: TowerConfig, vocabulary: Vocabulary) -> None:
        super().__init__()
        c, v = config, vocabulary
        self.item = Embedding(v.items, c.item_width)
        self.author = Embedding(v.authors, c.side_width)
        self.category = Embedding(v.categories, c.side_width)
        self.attributes = nn.ModuleList([Embedding(n, c.user_width) for n in v.user_categories])
        self.user_dense = nn.Linear(max(1, v.user_floats), c.user_width)
        identity = c.item_width + 2 * c.side_width
        self.item_tower = nn.Sequential(
            mlp([identity + v.statistics, c.hidden, c.vector_width], c.dropout), nn.LayerNorm(c.vector_width)
        )
        self.event = nn.Linear(c.vector_width + len(HISTORY_FEEDBACK), c.hidden)
        self.user_tower = nn.Sequential(
            mlp([c.hidden + c.user_width + 1, c.hidden, c.vector_width], c.dropout), nn.LayerNorm(c.vector_width)
        )
        self.bias = nn.Parameter(torch.zeros(1))
        self.scale = 1 / math.sqrt(c.vector_width)

    def items(
        self,
        item: Int[Tensor, "*b"],
        author: Int[Tensor, "*b"],
        category: Int[Tensor, "*b"],
        statistics: Float[Tensor, "*b s"],
    ) -> Float[Tensor, "*b d"]:
        """Vectors of items, given the statistics of the day."""
        return self.item_tower(torch.cat([self.item(item), self.author(author), self.category(category), statistics], -1))

    def user_rows(self, categories: Int[Tensor, "b a"], floats: Float[Tensor, "b f"]) -> Float[Tensor, "b u"]:
        """What is known of users apart from their history."""
        row = (
            self.user_dense(floats)
            if floats.shape[1]
            else self.user_dense(torch.zeros_like(categories[:, :1], dtype=torch.float))
        )
        for i, table in enumerate(self.attributes):
            row = row + table(categories[:, i])
        return row

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
        return self.user_tower(torch.cat([pooled, row, torch.log1p(count) / 4], -1))

    def match(self, user: Float[Tensor, "b d"], item: Float[Tensor, "b d"]) -> Float[Tensor, " b"]:
        """Logit of the first task from the two vectors alone."""
        return (user * item).sum(-1) * self.scale + self.bias
