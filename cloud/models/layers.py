"""Layers that the models share, written so that every converter takes them.

Attention is written by hand with float masks and a finite penalty: fully masked keys must stay finite in ONNX, LiteRT and
Core ML alike. A learned null key, never masked, makes an empty history an ordinary case.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

__all__ = ["Attention", "Embedding", "MultiGate", "SoftBins", "attend", "join_heads", "mlp", "penalty", "split_heads"]

MASKED = -1e4
"""Added to a masked key's logit; finite in fp16 too."""


def penalty(mask: Float[Tensor, "b t"]) -> Float[Tensor, "b 1 1 t1"]:
    """What is added to the logits of a null key, which comes first and is never masked, and of keys that `mask` is 1 for."""
    return nn.functional.pad((mask - 1) * -MASKED, (1, 0))[:, None, None]


def attend(
    queries: Float[Tensor, "b h n w"], keys_values: Float[Tensor, "b h2 t w"], mask: Float[Tensor, "b s"] | None
) -> Float[Tensor, "b h n w"]:
    """Softmax attention (Vaswani et al. 2017, 3.2) over a null key, which comes first, and s = t - 1 keys that `mask` is 1 for.

    `keys_values` are the heads of the keys, then those of the values. The queries are already divided by the square root of
    the head's width. Without a mask all keys are real.
    """
    keys, values = torch.chunk(keys_values, 2, 1)
    logits = queries @ keys.transpose(2, 3)
    return torch.softmax(logits if mask is None else logits + penalty(mask), -1) @ values


class Attention(nn.Module):
    """Multi-head attention over keys with a learned null key."""

    def __init__(self, query_width: int, key_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        width = heads * head_width
        self.query = nn.Linear(query_width, width)
        self.key_value = nn.Linear(key_width, 2 * width)
        self.null = nn.Parameter(torch.zeros(1, 1, key_width))

    def queries(self, x: Float[Tensor, "*b q"]) -> Float[Tensor, "*b w"]:
        """What looks, of all heads side by side, divided by the square root of a head's width."""
        queries: Tensor = self.query(x) / math.sqrt(self.head_width)
        return queries

    def forward(
        self, queries: Float[Tensor, "b n w"], keys: Float[Tensor, "b t k"], mask: Float[Tensor, "b t"] | None
    ) -> Float[Tensor, "b n w"]:
        """Attended values for `queries` of the method; `mask` is 1 for real keys, which all are without one."""
        keys = torch.cat([self.null.expand(len(keys), -1, -1), keys], 1)
        return join_heads(attend(split_heads(queries, self.heads), split_heads(self.key_value(keys), 2 * self.heads), mask))


def split_heads(x: Float[Tensor, "b n hw"], heads: int) -> Float[Tensor, "b h n w"]:
    """The last axis as heads."""
    b, n, width = x.shape
    return x.view(b, n, heads, width // heads).transpose(1, 2)


def join_heads(x: Float[Tensor, "b h n w"]) -> Float[Tensor, "b n hw"]:
    """The heads side by side."""
    return x.transpose(1, 2).flatten(2)


class Embedding(nn.Module):
    """A table of small normal rows; row 0 (unknown) starts at zero."""

    def __init__(self, size: int, width: int, scale: float = 0.05) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, width) * scale)
        with torch.no_grad():
            self.weight[0] = 0

    def forward(self, index: Int[Tensor, "*shape"]) -> Float[Tensor, "*shape w"]:
        """Rows of the table."""
        return nn.functional.embedding(index, self.weight)


class SoftBins(nn.Module):
    """Shares of each number in `bins` learned bins, after AutoDis (Guo et al., KDD 2021, 3.2).

    The linear layer that follows holds the bins' embeddings. The bins start as those of the nearest of equally spaced centres
    between -2 and 2, where standardised numbers lie; AutoDis's hidden layer is left out, a number being one-dimensional.
    """

    RANGE = 2.0
    """Of the first centres."""

    def __init__(self, features: int, bins: int) -> None:
        super().__init__()
        centres = torch.linspace(-self.RANGE, self.RANGE, bins)
        sharpness = (bins / (2 * self.RANGE)) ** 2
        self.weight = nn.Parameter((sharpness * centres).repeat(features, 1))
        self.bias = nn.Parameter((-sharpness * centres**2 / 2).repeat(features, 1))

    def forward(self, x: Float[Tensor, "*b f"]) -> Float[Tensor, "*b fh"]:
        """Shares, the bins of a feature side by side."""
        return torch.softmax(x[..., None] * self.weight + self.bias, -1).flatten(-2)


class MultiGate(nn.Module):
    """Experts, one gate and one tower per task (MMoE, Ma et al., KDD 2018, 4.2), from a first layer that is given as a sum.

    The first layer of all experts and gates is one product of `entry_width` columns; callers add up the parts of it that belong
    to candidate, context and attentions, because these are known at different times.
    """

    def __init__(self, experts: int, width: int, towers: Sequence[int], tasks: int) -> None:
        super().__init__()
        self.experts, self.width, self.tasks = experts, width, tasks
        self.entry_width = experts * width + (tasks * experts if experts > 1 else 0)
        widths = [width, *towers, 1]
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for a, b in itertools.pairwise(widths):
            bound = 1 / math.sqrt(a)
            last = 0.1 if b == 1 else 1.0  # the scores start near the cloud's
            self.weights.append(nn.Parameter(torch.empty(tasks, a, b).uniform_(-bound, bound) * last))
            self.biases.append(nn.Parameter(torch.zeros(tasks, 1, b)))

    def forward(self, entry: Float[Tensor, "m e"], dropout: float = 0.0) -> Float[Tensor, "m k"]:
        """Logits of the tasks."""
        m = entry.shape[0]
        if self.experts == 1:
            x = torch.relu(entry)[None]  # 1 m w
        else:
            experts, gates = torch.split(entry, [self.experts * self.width, self.tasks * self.experts], -1)
            gates = torch.softmax(gates.view(m, self.tasks, self.experts), -1)
            x = (gates @ torch.relu(experts).view(m, self.experts, self.width)).transpose(0, 1)  # k m w
        x = nn.functional.dropout(x, dropout, self.training)
        for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            x = torch.relu(x) @ weight + bias if i else x @ weight + bias
        return x[..., 0].transpose(0, 1)


def mlp(widths: Sequence[int], dropout: float = 0.0) -> nn.Sequential:
    """Linear layers of `widths` with ReLU between them, none after the last."""
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(a, b))
        if i < len(widths) - 2:
            layers.append(nn.ReLU())
            if dropout:
                layers.append(nn.Dropout(dropout))
    return nn.Sequential(*layers)
