"""Embeddings of items and users by their index: ids and attributes, as the full ranker and the towers have them.

The attributes themselves are buffers. They come from the samples and not from the weights, so that a caller passes only the
index of an item or a user.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketrank.cloud.data.category_columns import shared_sizes
from pocketrank.cloud.data.samples import Samples
from pocketrank.cloud.models.layers import CategoryEmbeddings, Embedding

__all__ = ["ItemIdentity", "UserAttributes", "standardised"]


class ItemIdentity(nn.Module):
    """Embeddings of an item's id, author, category and further categories, and projections of its content vector and of its
    further numbers, if the log has them."""

    def __init__(self, samples: Samples, item_width: int, side_width: int) -> None:
        super().__init__()
        content = samples.item_content.shape[1]
        self.item = Embedding(len(samples.item_ids), item_width)
        self.author = Embedding(int(samples.item_author.max()) + 1, side_width)
        self.category = Embedding(int(samples.item_category.max()) + 1, side_width)
        self.content = nn.Linear(content, item_width) if content else None
        names = samples.item_category_names
        self.attributes = CategoryEmbeddings(names, shared_sizes(names, samples.item_categories), side_width)
        floats = samples.item_floats.shape[1]
        self.floats = nn.Linear(2 * floats, side_width) if floats else None
        self.width = item_width * (2 if content else 1) + side_width * (2 + len(self.attributes) + (floats > 0))
        for name in ("item_author", "item_category", "item_content", "item_categories"):
            self.register_buffer(name, torch.as_tensor(getattr(samples, name)), persistent=False)
        scale = _scale(samples.item_floats)
        self.register_buffer("item_floats", standardised(torch.as_tensor(samples.item_floats), scale), persistent=False)
        self.float_scale = scale
        """[2, B] mean and deviation of the further numbers"""
        self.item_author: Tensor
        self.item_categories: Tensor
        self.item_floats: Tensor
        self.item_category: Tensor
        self.item_content: Tensor

    def forward(self, item: Int[Tensor, "*b"]) -> Float[Tensor, "*b i"]:
        """Return the rows of items."""
        attributes = self.item_content[item], self.item_categories[item], self.item_floats[item]
        return self.encode(self.item(item), self.item_author[item], self.item_category[item], *attributes)

    def encode(
        self,
        own: Float[Tensor, "*b w"],
        author: Int[Tensor, "*b"],
        category: Int[Tensor, "*b"],
        content: Float[Tensor, "*b v"],
        categories: Int[Tensor, "*b c"],
        floats: Float[Tensor, "*b f"],
    ) -> Float[Tensor, "*b i"]:
        """Return the rows of items with these embeddings of their own and these attributes, numbers `standardised`."""
        parts = [own, self.author(author), self.category(category)]
        if self.content is not None:
            parts.append(self.content(content))
        parts += self.attributes(categories)
        if self.floats is not None:
            parts.append(self.floats(floats))
        return torch.cat(parts, -1)


class UserAttributes(nn.Module):
    """Sum of the embeddings of a user's categorical attributes, a projection of the numeric ones and, with `ids`, the id."""

    def __init__(self, samples: Samples, width: int, *, ids: bool) -> None:
        super().__init__()
        self.user = Embedding(len(samples.user_ids), width) if ids else None
        names = samples.user_category_names
        self.attributes = CategoryEmbeddings(names, shared_sizes(names, samples.user_categories), width)
        floats = samples.user_floats.shape[1]
        self.dense = nn.Linear(floats, width) if floats else None
        self.bias = nn.Parameter(torch.zeros(width))
        for name in ("user_categories", "user_floats"):
            self.register_buffer(name, torch.as_tensor(getattr(samples, name)), persistent=False)
        self.user_categories: Tensor
        self.user_floats: Tensor

    def forward(self, user: Int[Tensor, " b"]) -> Float[Tensor, "b u"]:
        """Return the rows of users."""
        row = self.bias.expand(len(user), -1)
        if self.user is not None:
            row = row + self.user(user)
        for attribute in self.attributes(self.user_categories[user]):
            row = row + attribute
        if self.dense is not None:
            row = row + self.dense(self.user_floats[user])
        return row


def _scale(values: NDArray[np.float32]) -> Tensor:
    """Return mean and deviation [2, B] of the known ones of numbers [n, B]."""
    known = np.isfinite(values)
    count = np.maximum(known.sum(0), 1)
    mean = np.where(known, values, 0).sum(0) / count
    deviation = np.sqrt((np.where(known, values - mean, 0) ** 2).sum(0) / count)
    return torch.as_tensor(np.stack([mean, np.where(deviation > 0, deviation, 1)]))


def standardised(values: Float[Tensor, "n f"], scale: Float[Tensor, "2 f"]) -> Float[Tensor, "n f2"]:
    """Return numbers with mean 0 and deviation 1, within ±4 and 0 where unknown; then whether each is known."""
    known = ~values.isnan()
    scaled = torch.where(known, (values - scale[0]) / scale[1], 0)
    return torch.cat([scaled.clamp(-4, 4), known.to(scaled.dtype)], -1).float()
