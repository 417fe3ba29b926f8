"""The graph by which a server computes the rows of items that the run does not know
(`pocketrank.cloud.published.item_encoder`).

The embedding of a new item's own id is that of the unknown item. All else is that of its attributes.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import onnx
import torch
from jaxtyping import Float, Float16, Int
from torch import Tensor, nn

from pocketrank.cloud.models.entities import ItemIdentity, standardised
from pocketrank.cloud.models.full_ranker import FullRanker
from pocketrank.cloud.models.towers import LowerHalf

__all__ = ["export_item_encoder"]


class _ItemEncoder(nn.Module):
    def __init__(self, ranker: FullRanker, lower: LowerHalf) -> None:
        super().__init__()
        self.ranker, self.lower = ranker, lower

    def forward(
        self,
        author: Int[Tensor, " n"],
        category: Int[Tensor, " n"],
        statistics: Float[Tensor, "n s"],
        content: Float[Tensor, "n v"] | None = None,
        categories: Int[Tensor, "n c"] | None = None,
        floats: Float[Tensor, "n b"] | None = None,
    ) -> tuple[Float16[Tensor, "n e"], Float16[Tensor, "n i"], Float16[Tensor, "n d"]]:
        def identity(of: ItemIdentity) -> Tensor:
            n = author.shape[0]
            own = of.item.weight[:1].expand(n, -1)
            return of.encode(
                own,
                author,
                category,
                author.new_zeros((n, 0), dtype=torch.float32) if content is None else content,
                author.new_zeros((n, 0)) if categories is None else categories,
                author.new_zeros((n, 0), dtype=torch.float32) if floats is None else standardised(floats, of.float_scale),
            )

        of_ranker = identity(self.ranker.identity)
        row = torch.cat(self.ranker.item_parts(torch.cat([of_ranker, statistics], -1)), -1)
        vector = self.lower.item_tower(torch.cat([identity(self.lower.identity), statistics], -1))
        return row.half(), of_ranker.half(), vector.half()


def export_item_encoder(ranker: FullRanker, lower: LowerHalf, statistics: int, path: Path) -> None:
    """Write the graph to `path`. `statistics` is the number of item statistics."""
    of, n = ranker.identity, 3
    inputs = {
        "author": torch.zeros(n, dtype=torch.int64),
        "category": torch.zeros(n, dtype=torch.int64),
        "statistics": torch.zeros(n, statistics),
    }
    if of.content is not None:
        inputs["content"] = torch.zeros(n, of.item_content.shape[1])
    if of.item_categories.shape[1]:
        inputs["categories"] = torch.zeros(n, of.item_categories.shape[1], dtype=torch.int64)
    if of.floats is not None:
        inputs["floats"] = torch.zeros(n, of.float_scale.shape[1])
    items = torch.export.Dim("items", min=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            _ItemEncoder(ranker, lower).eval(),
            kwargs=inputs,
            dynamo=True,
            opset_version=18,
            input_names=list(inputs),
            output_names=["item_row", "item_identity", "item_vector"],
            dynamic_shapes={name: {0: items} for name in inputs},
            verbose=False,
        )
    assert program is not None
    onnx.save(program.model_proto, path)
