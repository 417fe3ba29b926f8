"""The ranker whole, as anybody would export it: it takes all that is known of an item, and computes what depends on the item
alone again for every request. Peers rank with it, and it is what `model_ms` times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketrank.cloud.models.full_ranker import FullRanker
from pocketrank.cloud.training.publish import to_onnx

__all__ = ["WHOLE_GRAPH", "WHOLE_ROWS", "save_whole", "sides_of"]

WHOLE_GRAPH, WHOLE_ROWS = "whole_ranker.onnx", "whole_item_row.npy"
_SIDE = "item_side.onnx"
_PART = 100_000


class _Scores(nn.Module):
    def __init__(self, ranker: FullRanker) -> None:
        super().__init__()
        self.ranker = ranker

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
        return torch.sigmoid(self.ranker(user_row, history_row, history_feedback, history_mask, item_row, scene, hour))


class _Side(nn.Module):
    def __init__(self, ranker: FullRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, item_row: Float[Tensor, "b n e"]) -> Float[Tensor, "b n q"]:
        return torch.cat(self.ranker.item_parts(item_row), -1)


def save_whole(
    ranker: FullRanker, user_row: Float[Tensor, "u v"], item_row: Float[Tensor, "i e"], feedback_width: int, folder: Path
) -> None:
    """The graphs and the rows [I, E] of all items, and examples of users' rows, beside the published half in `folder`."""
    codes, rows = torch.zeros(1, 1, dtype=torch.long), item_row[None, :5]
    inputs = {
        "user_row": user_row[:1],
        "history_row": torch.zeros(1, 7, ranker.identity_width),
        "history_feedback": torch.zeros(1, 7, feedback_width),
        "history_mask": torch.ones(1, 7),
        "item_row": rows,
        "scene": codes,
        "hour": codes.clone(),
    }
    to_onnx(_Scores(ranker), inputs, "pxtr", folder / WHOLE_GRAPH)
    to_onnx(_Side(ranker), {"item_row": rows}, "item_side", folder / _SIDE)
    np.save(folder / WHOLE_ROWS, item_row.numpy())


def sides_of(item_row: NDArray[np.float32], folder: Path) -> NDArray[np.float16]:
    """What is published of items with these rows [I, E]: [I, Q]."""
    session = ort.InferenceSession(str(folder / _SIDE), providers=["CPUExecutionProvider"])
    parts: list[NDArray[Any]] = []
    for start in range(0, len(item_row), _PART):
        part = item_row[start : start + _PART]
        parts.append(session.run(["item_side"], {"item_row": part[None]})[0][0].astype(np.float16))
    return np.concatenate(parts)
