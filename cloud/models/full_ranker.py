"""The cloud's full ranker: a multi-task model whose probabilities are the pXTRs of a page.

Its inputs are ID embeddings, item statistics and the user's history at request time, over which it has target attention after
DIN (Zhou et al., KDD 2018, section 4.3). The forward pass has *rows* as inputs and not ids, so that serving may look the rows
up in any store, and the exported graph is small. The parts of the computation that depend on an item alone are separate, so
that no request repeats them.

`pocketrank.cloud.training.ranker` trains this model. It is not the ranking on the device, `pocketrank.device.ranking.ranker`.

If the recipe has features of the moment (`pocketrank.cloud.data.features`), statistics of the candidates and sequences by
behaviour are inputs too.

Sizes in the comments: b requests, n candidates, h events of the history, f values of feedback on an event, k tasks, m
statistics, q sequences of t items.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketrank.cloud.data.samples import Samples
from pocketrank.cloud.models.entities import ItemIdentity, UserAttributes
from pocketrank.cloud.models.layers import Attention, Embedding, mlp

__all__ = ["FullRanker", "FullRankerConfig", "RankerLayers", "RankerWidths"]


@dataclass(frozen=True)
class FullRankerConfig:
    """Widths of the full ranker."""

    item_width: int = 16
    """Width of the ID embedding of an item."""
    side_width: int = 8
    """Width of the embedding of an author, a category, a scene or an hour."""
    user_width: int = 16
    """Width of a user's row, and of the embeddings of id and attributes of which it is the sum."""
    heads: int = 4
    """Attention heads, 16 wide each."""
    hidden: tuple[int, ...] = (128, 64)
    """Widths of the shared tower."""
    dropout: float = 0.1
    """Dropout in the shared tower."""


@dataclass(frozen=True)
class RankerWidths:
    """What the widths of a ranker's dense layers depend on beside its config."""

    identity: int
    """Width of the identity of an item."""
    statistics: int
    """Number of item statistics."""
    feedback: int
    """Values of feedback on an event."""
    scenes: int
    """Codes of scenes."""
    tasks: int
    moment: int
    """Number of statistics of the moment."""
    sequences: int


class RankerLayers(nn.Module):
    """The dense layers of the ranker: logits from the rows of items and users."""

    def __init__(self, config: FullRankerConfig, widths: RankerWidths) -> None:
        super().__init__()
        self._make(config, widths)

    def _make(self, c: FullRankerConfig, w: RankerWidths) -> None:
        self.config, self.widths = c, w
        self.scene = Embedding(w.scenes, c.side_width)
        self.hour = Embedding(25, c.side_width)
        self.identity_width, self.row_width = w.identity, w.identity + w.statistics
        self.attention = Attention(self.row_width, self.identity_width + w.feedback, c.heads, 16)
        self.same = nn.Linear(self.identity_width, 16)
        self.sequences = nn.ModuleList([Attention(None, self.identity_width, c.heads, 16) for _ in range(w.sequences)])
        width = self.row_width + 16 * c.heads + c.user_width + 2 * w.feedback + 1 + 2 * c.side_width + 2 * w.feedback + 1
        width += w.moment + w.sequences * (16 * c.heads + 1)
        self.tower = mlp([width, *c.hidden], c.dropout)
        self.hidden = c.hidden[0]
        self.heads = nn.Linear(c.hidden[-1], w.tasks)

    def item_parts(self, item_row: Float[Tensor, "*b e"]) -> tuple[Tensor, Tensor, Tensor]:
        """Return the parts that depend on an item alone, of the widths `part_widths`.

        They are the queries of the attention [*b, w] and of the similarity [*b, l], and the item's part of the tower's first
        layer [*b, hidden].
        """
        first = cast(nn.Linear, self.tower[0]).weight[:, : self.row_width]
        return self.attention.queries(item_row), self.same(item_row[..., : self.identity_width]), item_row @ first.T

    @property
    def part_widths(self) -> list[int]:
        """Widths of `item_parts`."""
        return [self.attention.heads * self.attention.head_width, self.same.out_features, self.hidden]

    def logits(
        self,
        user_row: Float[Tensor, "b u"],
        history_row: Float[Tensor, "b h i"],
        history_feedback: Float[Tensor, "b h f"],
        item_parts: Sequence[Float[Tensor, "b n _"]],
        scene: Int[Tensor, "b s"],
        hour: Int[Tensor, "b s"],
        statistics: Float[Tensor, "b n m"] | None = None,
        sequence_row: Float[Tensor, "b q t i"] | None = None,
        sequence_mask: Float[Tensor, "b q t"] | None = None,
        *,
        history_mask: Float[Tensor, "b h"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Return the logits as `forward` does, from the parts of items. Without a mask all events are real; h may be 0."""
        query, similar_query, of_item = item_parts
        b, n, _ = query.shape
        # Target attention over the history (DIN, section 4.3, as multi-head attention).
        attended = self.attention(query, torch.cat([history_row, history_feedback], -1), history_mask)
        # Mean feedback on three sets of past items: all, the last eight, and those similar to the candidate (a soft match of
        # the identities). Each event is a 1, by which events are counted, and its feedback. The first event is padding, so that
        # there is always one.
        pad = nn.functional.pad
        feedback = pad(history_feedback, (1, 0), value=1.0)
        feedback = pad(feedback if history_mask is None else feedback * history_mask[..., None], (0, 0, 1, 0))  # b 1+h 1+f
        similarity = torch.sigmoid(similar_query @ self.same(pad(history_row, (0, 0, 1, 0))).transpose(1, 2) - 2)  # b n 1+h
        total, recent, of_similar = feedback.sum(1), feedback[:, -8:, 1:].sum(1) / 8, similarity @ feedback
        count, weight = total[:, :1], of_similar[..., :1]
        # Constants are the prior of the means, and bring the others to a range of about 1.
        of_candidates = [attended, of_similar[..., 1:] / (weight + 1), torch.log1p(of_similar)]
        if statistics is not None:
            of_candidates.append(statistics)
        if sequence_row is not None and sequence_mask is not None:
            for i, sequence in enumerate(self.sequences):
                items = torch.log1p(sequence_mask[:, i].sum(1))[:, None, None] / 4
                of_candidates += [sequence(query, sequence_row[:, i], sequence_mask[:, i]), items.expand(-1, n, -1)]
        x = torch.cat(of_candidates, -1)
        of_user = torch.cat([user_row, total[:, 1:] / (count + 3), recent, torch.log1p(count) / 4], -1)[:, None]
        of_moment = torch.cat([self.scene(scene), self.hour(hour)], -1)
        # The first layer of the tower as a sum of products: the part that all candidates share is computed once.
        first = cast(nn.Linear, self.tower[0])
        widths = [self.row_width, x.shape[-1], of_user.shape[-1], of_moment.shape[-1]]
        _, w_x, w_user, w_moment = torch.split(first.weight, widths, 1)
        common = of_user @ w_user.T + of_moment @ w_moment.T + first.bias  # b s hidden
        entry = torch.addmm(of_item.flatten(0, 1), x.flatten(0, 1), w_x.T).view(b, n, -1) + common
        logits: Tensor = self.heads(torch.relu(self.tower[1:](entry.flatten(0, 1))))
        return logits.view(b, n, -1)


class FullRanker(RankerLayers):
    """Logits of every task for the candidates of a list. `statistics` is the number of item statistics."""

    def __init__(self, config: FullRankerConfig, samples: Samples, statistics: int) -> None:
        nn.Module.__init__(self)
        self.identity = ItemIdentity(samples, config.item_width, config.side_width)
        self.user = UserAttributes(samples, config.user_width, ids=True)
        widths = RankerWidths(
            identity=self.identity.width,
            statistics=statistics,
            feedback=len(samples.history_feedback),
            scenes=samples.scenes,
            tasks=len(samples.config.tasks),
            moment=len(samples.statistics.names),
            sequences=len(samples.config.features.sequences),
        )
        self._make(config, widths)

    def item_rows(self, item: Int[Tensor, "*b"], statistics: Float[Tensor, "*b s"]) -> Float[Tensor, "*b e"]:
        """Return the whole rows of items: the identity, then the statistics of the day."""
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
        statistics: Float[Tensor, "b n m"] | None = None,
        sequence_row: Float[Tensor, "b q t i"] | None = None,
        sequence_mask: Float[Tensor, "b q t"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        """Return the logits. `history_row` and `sequence_row` hold the identity part of the rows of past items, oldest first.

        Scene and hour are those of each candidate, s = n, or of all, s = 1.
        """
        parts, moment = self.item_parts(item_row), (statistics, sequence_row, sequence_mask)
        return self.logits(user_row, history_row, history_feedback, parts, scene, hour, *moment, history_mask=history_mask)
