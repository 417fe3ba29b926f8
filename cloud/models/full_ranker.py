"""The cloud's multi-task full ranker: ID embeddings, item statistics and target attention over the history at request time.

It makes the pXTRs. The forward pass takes *rows* rather than ids, so serving can look rows up wherever they live and the
exported graph stays small; what depends on an item alone is a part of its own, so that no request computes it. Target attention
after DIN (Zhou et al., KDD 2018, section 4.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.data.samples import Samples
from pocketrank.cloud.models.entities import ItemIdentity, UserAttributes
from pocketrank.cloud.models.layers import Attention, Embedding, mlp

__all__ = ["FullRanker", "FullRankerConfig"]


@dataclass(frozen=True)
class FullRankerConfig:
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


class FullRanker(nn.Module):
    """Logits of every task for the candidates of a list."""

    def __init__(self, config: FullRankerConfig, samples: Samples, statistics: int) -> None:
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
        self.hidden = c.hidden[0]
        self.heads = nn.Linear(c.hidden[-1], len(samples.config.tasks))

    def item_rows(self, item: Int[Tensor, "*b"], statistics: Float[Tensor, "*b s"]) -> Float[Tensor, "*b e"]:
        """All that is known of an item: identity first, then the day's statistics."""
        return torch.cat([self.identity(item), statistics], -1)

    def item_parts(self, item_row: Float[Tensor, "*b e"]) -> tuple[Tensor, Tensor, Tensor]:
        """What depends on an item alone: queries of the attention [*b, w] and of likeness [*b, l], and its part of the tower's
        first layer [*b, hidden]. Their widths are `part_widths`.
        """
        first = cast(nn.Linear, self.tower[0]).weight[:, : self.row_width]
        return self.attention.queries(item_row), self.same(item_row[..., : self.identity_width]), item_row @ first.T

    @property
    def part_widths(self) -> list[int]:
        """Of `item_parts`."""
        return [self.attention.heads * self.attention.head_width, self.same.out_features, self.hidden]

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
        parts = self.item_parts(item_row)
        return self.logits(user_row, history_row, history_feedback, parts, scene, hour, history_mask)

    def logits(
        self,
        user_row: Float[Tensor, "b u"],
        history_row: Float[Tensor, "b h i"],
        history_feedback: Float[Tensor, "b h f"],
        item_parts: Sequence[Float[Tensor, "b n _"]],
        scene: Int[Tensor, "b s"],
        hour: Int[Tensor, "b s"],
        history_mask: Float[Tensor, "b h"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """As `forward`, from the parts of items. Without a mask all of the past is real, and h may be 0."""
        query, alike_query, of_item = item_parts
        b, n, _ = query.shape
        attended = self.attention(query, torch.cat([history_row, history_feedback], -1), history_mask)
        # How the user took the items of the past: all of them, the last eight, and those alike (a soft match on identity). Each
        # event counts as 1 and has its feedback; an event of nothing comes first, so that there is always one.
        pad = nn.functional.pad
        taken = pad(history_feedback, (1, 0), value=1.0)
        taken = pad(taken if history_mask is None else taken * history_mask[..., None], (0, 0, 1, 0))  # b 1+h 1+f
        alike = torch.sigmoid(alike_query @ self.same(pad(history_row, (0, 0, 1, 0))).transpose(1, 2) - 2)  # b n 1+h
        total, recent, same = taken.sum(1), taken[:, -8:, 1:].sum(1) / 8, alike @ taken
        count, weight = total[:, :1], same[..., :1]
        x = torch.cat([attended, same[..., 1:] / (weight + 1), torch.log1p(same)], -1)
        of_user = torch.cat([user_row, total[:, 1:] / (count + 3), recent, torch.log1p(count) / 4], -1)[:, None]
        of_moment = torch.cat([self.scene(scene), self.hour(hour)], -1)
        # The tower's first layer as a sum, because what candidates have in common is one row where they are served.
        first = cast(nn.Linear, self.tower[0])
        widths = [self.row_width, x.shape[-1], of_user.shape[-1], of_moment.shape[-1]]
        _, w_x, w_user, w_moment = torch.split(first.weight, widths, 1)
        common = of_user @ w_user.T + of_moment @ w_moment.T + first.bias  # b s hidden
        entry = torch.addmm(of_item.flatten(0, 1), x.flatten(0, 1), w_x.T).view(b, n, -1) + common
        logits: Tensor = self.heads(torch.relu(self.tower[1:](entry.flatten(0, 1))))
        return logits.view(b, n, -1)
