"""Layers that the models share, in operations that every converter accepts.

Attention is written out, with float masks and a finite penalty: the result for fully masked keys must be finite in ONNX, LiteRT
and Core ML alike. A learned null key, which is never masked, makes an empty history an ordinary case.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pocketrank.cloud.data.category_columns import table_columns

__all__ = [
    "Attention",
    "CategoryEmbeddings",
    "Embedding",
    "MultiGate",
    "SoftBins",
    "attend",
    "join_heads",
    "mlp",
    "penalty",
    "split_heads",
]

MASKED = -1e4
"""Added to the logit of a masked key; finite in fp16 too."""


def penalty(mask: Float[Tensor, "b t"]) -> Float[Tensor, "b 1 1 t1"]:
    """Return what is added to the logits of the null key, which is first, and of t keys, whose `mask` is 1 or 0."""
    return nn.functional.pad((mask - 1) * -MASKED, (1, 0))[:, None, None]


def attend(
    queries: Float[Tensor, "b h n w"], keys_values: Float[Tensor, "b h2 t w"], mask: Float[Tensor, "b s"] | None
) -> Float[Tensor, "b h n w"]:
    """Return softmax attention (Vaswani et al. 2017, equation 1) over the null key, which is first, and s = t - 1 keys.

    `keys_values` holds the heads of the keys, then those of the values. The queries are already divided by the square root of
    the head's width. `mask` is 1 for real keys; without it all keys are real.
    """
    keys, values = torch.chunk(keys_values, 2, 1)
    logits = queries @ keys.transpose(2, 3)  # b h n t
    return torch.softmax(logits if mask is None else logits + penalty(mask), -1) @ values


class Attention(nn.Module):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2) over keys and a learned null key."""

    def __init__(self, query_width: int | None, key_width: int, heads: int, head_width: int) -> None:
        """Without a `query_width` the queries are those of another attention."""
        super().__init__()
        self.heads, self.head_width = heads, head_width
        width = heads * head_width
        self.query = None if query_width is None else nn.Linear(query_width, width)
        self.key_value = nn.Linear(key_width, 2 * width)
        self.null = nn.Parameter(torch.zeros(1, 1, key_width))

    def queries(self, x: Float[Tensor, "*b q"]) -> Float[Tensor, "*b w"]:
        """Return the queries of all heads, side by side, divided by the square root of a head's width."""
        assert self.query is not None
        queries: Tensor = self.query(x) / math.sqrt(self.head_width)
        return queries

    def forward(
        self, queries: Float[Tensor, "b n w"], keys: Float[Tensor, "b t k"], mask: Float[Tensor, "b t"] | None
    ) -> Float[Tensor, "b n w"]:
        """Return the attended values for what `queries` returned. `mask` is 1 for real keys; without it all keys are real."""
        keys = torch.cat([self.null.expand(len(keys), -1, -1), keys], 1)
        return join_heads(attend(split_heads(queries, self.heads), split_heads(self.key_value(keys), 2 * self.heads), mask))


def split_heads(x: Float[Tensor, "b n hw"], heads: int) -> Float[Tensor, "b h n w"]:
    """Split the last axis into heads."""
    b, n, width = x.shape
    return x.view(b, n, heads, width // heads).transpose(1, 2)


def join_heads(x: Float[Tensor, "b h n w"]) -> Float[Tensor, "b n hw"]:
    """Join the heads side by side."""
    return x.transpose(1, 2).flatten(2)


class Embedding(nn.Module):
    """Table of rows that start small and normally distributed; row 0 (unknown) starts at zero."""

    sparse = False
    """Whether its gradient has the rows alone that were looked up."""

    def __init__(self, size: int, width: int, scale: float = 0.05) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, width) * scale)
        with torch.no_grad():
            self.weight[0] = 0

    def forward(self, index: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape w"]:
        """Return rows of the table."""
        return nn.functional.embedding(index, self.weight, sparse=self.sparse)


class CategoryEmbeddings(nn.ModuleList):
    """Tables of categories, one for all columns of a category.

    A category with several values (`pocketrank.cloud.data.category_columns`) has the mean of the known ones, as the watched
    videos of Covington et al. (RecSys 2016, section 3.2); without any it has the row of the unknown, as others have.
    """

    def __init__(self, columns: Sequence[str], sizes: Sequence[int], width: int) -> None:
        """`sizes` are the numbers of codes of `columns`, 0 included."""
        self.places = table_columns(columns)
        super().__init__([Embedding(max(sizes[place] for place in places), width) for places in self.places])

    def forward(self, codes: Int[Tensor, "*shape c"]) -> list[Float[Tensor, "*shape w"]]:
        """Return the embedding of each category."""
        # The converter of LiteRT rejects a split into one part.
        columns = torch.split(codes, 1, -1) if codes.shape[-1] > 1 else (codes,)
        return [
            table(columns[places[0]].squeeze(-1))
            if len(places) == 1
            else self._mean(table, torch.cat([columns[place] for place in places], -1))
            for table, places in zip(self, self.places, strict=True)
        ]

    @staticmethod
    def _mean(table: nn.Module, codes: Int[Tensor, "*shape n"]) -> Float[Tensor, "*shape w"]:
        # Equal shares of the known values; of all, which have one row, where none is known.
        share = torch.softmax((codes.float().clamp(max=1) - 1) * -MASKED, -1)
        mean: Tensor = share[..., None, :] @ table(codes)
        return mean.squeeze(-2)


class SoftBins(nn.Module):
    """Soft assignment of each number to `bins` learned bins, after AutoDis (Guo et al., KDD 2021, section 3.2).

    The linear layer that follows holds the embeddings of the bins. At the start the bins have equally spaced centres between -2
    and 2, where most standardised numbers are, and a number belongs mostly to the bin of the nearest centre. The hidden layer
    of AutoDis is left out, because a number has one dimension.
    """

    RANGE = 2.0
    """Largest centre at the start, the smallest being its negative."""

    def __init__(self, features: int, bins: int) -> None:
        super().__init__()
        centres = torch.linspace(-self.RANGE, self.RANGE, bins)
        # The softmax of -sharpness (x - centre)^2 / 2, in which x^2 cancels, is linear in x with this weight and bias.
        sharpness = (bins / (2 * self.RANGE)) ** 2
        self.weight = nn.Parameter((sharpness * centres).repeat(features, 1))
        self.bias = nn.Parameter((-sharpness * centres**2 / 2).repeat(features, 1))

    def forward(self, x: Float[Tensor, "*b f"]) -> Float[Tensor, "*b fh"]:
        """Return the shares, the bins of each feature side by side."""
        return torch.softmax(x[..., None] * self.weight + self.bias, -1).flatten(-2)


class MultiGate(nn.Module):
    """Multi-gate mixture of experts (MMoE, Ma et al., KDD 2018, section 4.2) with a tower per task.

    Its input is the first layer of all experts and gates, before their activations, as `entry_width` columns. Callers add up
    the parts of this layer that belong to candidate, context and attentions, because these are known at different times.
    """

    def __init__(self, experts: int, width: int, towers: Sequence[int], tasks: int) -> None:
        super().__init__()
        self.experts, self.width, self.tasks = experts, width, tasks
        self.entry_width = experts * width + (tasks * experts if experts > 1 else 0)
        widths = [width, *towers, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in itertools.pairwise(widths):
            bound = 1 / math.sqrt(a)
            last = 0.1 if b == 1 else 1.0  # the residual outweighs it: scores start near the cloud's
            self.weights.append(nn.Parameter(torch.empty(tasks, a, b).uniform_(-bound, bound) * last))
            self.biases.append(nn.Parameter(torch.zeros(tasks, 1, b)))

    def forward(self, entry: Float[Tensor, "m e"], dropout: float = 0.0) -> Float[Tensor, "m k"]:
        """Return the logits of the tasks."""
        m = entry.shape[0]
        if self.experts == 1:
            x = torch.relu(entry)[None]  # 1 m w
        else:
            # f^k(x) = sum over i of g^k(x)_i f_i(x), with the gates g^k(x) = softmax(W_gk x)
            experts, gates = torch.split(entry, [self.experts * self.width, self.tasks * self.experts], -1)
            gates = torch.softmax(gates.view(m, self.tasks, self.experts), -1)  # m k i
            x = (gates @ torch.relu(experts).view(m, self.experts, self.width)).transpose(0, 1)  # k m w
        x = nn.functional.dropout(x, dropout, self.training)
        # y_k = h^k(f^k(x)): the towers of all tasks as one batched product
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.relu(x) @ weight + bias if i else x @ weight + bias
        return x[..., 0].transpose(0, 1)


def mlp(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Return linear layers of `widths`, with ReLU and dropout between them and nothing after the last."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(a, b))
        if i < len(widths) - 2:
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
