"""Layers that both models share, written so that every converter takes them.

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

__all__ = ["Attention", "Embedding", "attend", "join_heads", "mlp", "split_heads"]

MASKED = -1e4
"""Added to a masked key's logit; finite in fp16 too."""


def attend(
    queries: Float[Tensor, "b h n w"], keys_values: Float[Tensor, "b h2 t w"], mask: Float[Tensor, "b s"]
) -> Float[Tensor, "b h n w"]:
    """Softmax attention (Vaswani et al. 2017, 3.2) over a null key, which comes first, and s = t - 1 keys that `mask` is 1 for.

    `keys_values` are the heads of the keys, then those of the values. The queries are already divided by the square root of
    the head's width.
    """
    keys, values = torch.chunk(keys_values, 2, 1)
    penalty = nn.functional.pad((mask - 1) * -MASKED, (1, 0))[:, None, None]  # b 1 1 t
    return torch.softmax(queries @ keys.transpose(2, 3) + penalty, -1) @ values


class Attention(nn.Module):
    """Multi-head attention of `queries` over `keys` with a learned null key."""

    def __init__(self, query_width: int, key_width: int, heads: int, head_width: int) -> None:
        super().__init__()
        self.heads, self.head_width = heads, head_width
        width = heads * head_width
        self.query = nn.Linear(query_width, width)
        self.key_value = nn.Linear(key_width, 2 * width)
        self.null = nn.Parameter(torch.zeros(1, 1, key_width))

    def scaled_query(self) -> tuple[Float[Tensor, "w q"], Float[Tensor, " w"]]:
        """Weight and bias of the queries as `attend` wants them."""
        scale = 1 / math.sqrt(self.head_width)
        return self.query.weight * scale, self.query.bias * scale

    def null_key_value(self) -> Float[Tensor, "1 h2 1 w"]:
        """Key and value heads of the null key."""
        null: Tensor = self.key_value(self.null)
        return split_heads(null, 2 * self.heads)

    def forward(
        self, queries: Float[Tensor, "b n q"], keys: Float[Tensor, "b t k"], mask: Float[Tensor, "b t"]
    ) -> Float[Tensor, "b n w"]:
        """Attended values; `mask` is 1 for real keys."""
        q = split_heads(nn.functional.linear(queries, *self.scaled_query()), self.heads)
        kv = split_heads(self.key_value(keys), 2 * self.heads)
        kv = torch.cat([self.null_key_value().expand(len(kv), -1, -1, -1), kv], 2)
        return join_heads(attend(q, kv, mask))


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
