"""The cloud's multi-task full ranker: ID embeddings, item statistics and target attention over the history at request time.

It makes the pXTRs. The forward pass takes *rows* (what an embedding store holds) rather than ids, so serving can look rows up
wherever they live and the exported graph stays small. Target attention after DIN (Zhou et al., KDD 2018, section 4.3).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cloud.data.feedback import HISTORY_FEEDBACK
from cloud.data.samples import Samples
from cloud.models.entities import ItemIdentity, UserAttributes
from cloud.models.layers import Attention, Embedding, mlp

__all__ = ["Ranker", "RankerConfig"]


@dataclass(frozen=True)
class RankerConfig:
    """Widths of the full ranker."""

    item_width: int = 16
    """ID embedding of an item."""
    side_width: int = 8
    """Embedding of an author, a category, a user attribute, a scene, an hour."""
    user_width: int = 16
    """Width of a user's row."""
    heads: int = 4
    """Attention heads, 16 wide each."""
    hidden: tuple[int, ...] = (128, 64)
    """The shared tower."""
    dropout: float = 0.1
    """In the shared tower."""


class Ranker(nn.Module):
    """Logits of every task for the candidates of a list."""

    def __init__(self, config: RankerConfig, samples: Samples, statistics: int) -> None:
        super().__init__()
        c = config
        self.identity = ItemIdentity(samples, c.item_width, c.side_width)
        self.user = UserAttributes(samples, c.user_width, ids=True)
        self.scene = Embedding(int(samples.list_scene.max()) + 1, c.side_width)
        self.hour = Embedding(25, c.side_width)
        self.identity_width, self.row_width = self.identity.width, self.identity.width + statistics
        feedback = len(HISTORY_FEEDBACK)
        self.attention = Attention(self.row_width, self.identity_width + feedback, c.heads, 16)
        self.same = nn.Linear(self.identity_width, 16)
        width = self.row_width + 16 * c.heads + c.user_width + 2 * feedback + 1 + 2 * c.side_width + 2 * feedback + 1
        self.tower = mlp([width, *c.hidden], c.dropout)
        self.heads = nn.Linear(c.hidden[-1], len(samples.config.tasks))

    def item_rows(self, item: Int[Tensor, "*b"], statistics: Float[Tensor, "*b s"]) -> Float[Tensor, "*b e"]:
        """What a store holds of an item: identity first, then the day's statistics."""
        return torch.cat([self.identity(item), statistics], -1)

    def forward(
        self,
        user_row: Float[Tensor, "b u"],
        history_row: Float[Tensor, "b h i"],
        history_feedback: Float[Tensor, "b h f"],
        history_mask: Float[Tensor, "b h"],
        item_row: Float[Tensor, "b n e"],
        scene: Int[Tensor, "b s"],
        hour: Int[Tensor, "b s"],
    ) -> Float[Tensor, "b n k"]:
        """Logits. `history_row` holds the identity part of the rows of past items, oldest first. s is n, or 1 for all."""
        mask = history_mask[..., None]
        attended = self.attention(item_row, torch.cat([history_row, history_feedback], -1), history_mask)
        # how the user took the items of the past, all of them, the last eight, and those alike (a soft match on identity)
        count = mask.sum(1)
        mean = (history_feedback * mask).sum(1) / (count + 3)
        recent = (history_feedback * mask)[:, -8:].sum(1) / 8
        query, key = self.same(item_row[..., : self.identity_width]), self.same(history_row)
        alike = torch.sigmoid(query @ key.transpose(1, 2) - 2) * history_mask[:, None]  # b n h
        weight = alike.sum(-1, keepdim=True)
        same = alike @ history_feedback
        of_user = torch.cat([user_row, mean, recent, torch.log1p(count) / 4], -1)[:, None]
        same = torch.cat([same / (weight + 1), torch.log1p(same), torch.log1p(weight)], -1)
        x = self._entry(torch.cat([item_row, attended, same], -1), of_user, torch.cat([self.scene(scene), self.hour(hour)], -1))
        logits: Tensor = self.heads(torch.relu(self.tower[1:](x)))
        return logits

    def _entry(
        self, of_item: Float[Tensor, "b n x"], of_user: Float[Tensor, "b 1 y"], of_moment: Float[Tensor, "b s z"]
    ) -> Float[Tensor, "b n h"]:
        """The tower's first layer as a sum, because what candidates have in common is one row where they are served."""
        first = cast(nn.Linear, self.tower[0])
        weights = torch.split(first.weight, [part.shape[-1] for part in (of_item, of_user, of_moment)], 1)
        of_item, of_user, of_moment = (part @ w.T for part, w in zip((of_item, of_user, of_moment), weights, strict=True))
        return of_item + (of_user + of_moment + first.bias)
