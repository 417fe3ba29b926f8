"""Publishing of a trained seed: the cloud half that serving reads (`pocketrank.cloud.published.published`), and gate rows.

The gate rows are test rows on which export compares the quality of a bundle's models with that of the trained model.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor, nn

from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.models.full_ranker import FullRanker
from pocketrank.cloud.models.towers import LowerHalf
from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.cloud.training.device_model import DeviceModel

__all__ = ["GATE_ROWS", "publish", "split_version", "to_onnx"]

GATE_ROWS = 2000
"""Number of gate rows."""


class _Scores(nn.Module):
    """The ranker as a graph: published item rows in fp16 are its inputs, probabilities its outputs."""

    def __init__(self, ranker: FullRanker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(
        self,
        user_row: Float[Tensor, "b u"],
        history_row: Float16[Tensor, "b h i"],
        history_feedback: Float[Tensor, "b h f"],
        item_row: Float16[Tensor, "b n q"],
        scene: Int[Tensor, "b s"],
        hour: Int[Tensor, "b s"],
    ) -> Float[Tensor, "b n k"]:
        parts = [part.float() for part in torch.split(item_row, self.ranker.part_widths, -1)]
        return torch.sigmoid(self.ranker.logits(user_row, history_row.float(), history_feedback, parts, scene, hour))


class _UserTower(nn.Module):
    """The user tower as a graph, with vectors in fp16 as stores keep them."""

    def __init__(self, lower: LowerHalf) -> None:
        super().__init__()
        self.lower = lower

    def forward(
        self,
        tower_row: Float[Tensor, "b u"],
        history_vector: Float16[Tensor, "b h d"],
        history_feedback: Float[Tensor, "b h f"],
        history_mask: Bool[Tensor, "b h"],
    ) -> Float[Tensor, "b d"]:
        return self.lower.users(tower_row, history_vector.float(), history_feedback, history_mask.float())


def split_version(lower: nn.Module) -> str:
    """Return the digest of a lower half: 16 hexadecimal digits of the SHA-256 of its weights, sorted by name."""
    h = hashlib.sha256()
    for name, value in sorted(lower.state_dict().items()):
        h.update(name.encode())
        h.update(value.contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


def publish(
    ranker: FullRanker, model: DeviceModel, statistics: ItemStatistics, test: np.ndarray, out: Path, *, simulated: bool
) -> str:
    """Write the cloud half as of the end of the log, and the gate rows of the rows `test`, into `out`.

    Returns the split version. Raises `ValueError` for item rows beyond fp16.
    """
    assert model.lower is not None
    samples, inputs, lower = model.samples, model.inputs, model.lower
    # Tables of items and users.
    history_max = samples.config.history_max
    users = torch.arange(len(samples.user_ids))
    items = torch.arange(len(samples.item_ids))
    now = statistics.as_of(samples.days)
    index, mask = inputs.window(users, inputs.start[users + 1], history_max)
    pad = history_max - index.shape[1]
    with torch.no_grad():
        item_rows, vector = (half(items, torch.from_numpy(now)) for half in (ranker.item_rows, lower.items))
        published = Published(
            item_id=samples.item_ids,
            item_row=_half(torch.cat(ranker.item_parts(item_rows), -1)),
            item_identity=_half(item_rows[:, : ranker.identity_width]),
            item_vector=_half(vector),
            item_float=np.where(samples.item_duration_s > 0, samples.item_duration_s * 1000, np.nan)[:, None].astype(
                np.float32
            ),
            item_category=np.stack([samples.item_category, samples.item_author], 1).astype(np.int32),
            item_author=samples.item_author_id,
            item_upload_ms=samples.item_upload_ms,
            item_popularity=now[:, 0],
            user_id=samples.user_ids,
            user_row=ranker.user(users).numpy(),
            tower_row=lower.user(users).numpy(),
            history_item=np.pad((inputs.item[index] * mask.long()).numpy().astype(np.int32), ((0, 0), (pad, 0))),
            history_feedback=np.pad((inputs.feedback[index] * mask[..., None]).numpy(), ((0, 0), (pad, 0), (0, 0))),
        )
    record = PublishedRecord(
        split_version=split_version(lower),
        tasks=samples.config.tasks,
        history_max=history_max,
        tower_history_max=model.config.lower.history_max,
        scenes=ranker.scene.weight.shape[0],
        float_names=("duration_ms",),
        category_names=("category", "author"),
        simulated=simulated,
        time_zone=samples.config.time_zone,
    )
    # Graphs. The sizes of these example inputs are free in the graph.
    out.mkdir(parents=True, exist_ok=True)
    h, n, feedback = 7, min(5, len(items)), torch.zeros(1, 7, inputs.feedback.shape[1])
    codes = torch.zeros(1, 1, dtype=torch.long)
    rows = {
        "user_row": torch.as_tensor(published.user_row[:1]),
        "history_row": torch.zeros(1, h, ranker.identity_width, dtype=torch.half),
        "history_feedback": feedback,
        "item_row": torch.as_tensor(published.item_row[None, :n]),
        "scene": codes,
        "hour": codes.clone(),  # one tensor for both would become one input
    }
    to_onnx(_Scores(ranker), rows, "pxtr", out / "ranker.onnx")
    tower = {
        "tower_row": torch.as_tensor(published.tower_row[:1]),
        "history_vector": torch.zeros(1, h, vector.shape[1], dtype=torch.half),
        "history_feedback": feedback,
        "history_mask": torch.ones(1, h, dtype=torch.bool),
    }
    to_onnx(_UserTower(lower), tower, "user_vector", out / "user_tower.onnx")
    _gate_rows(model, test, out / "gate.npz")
    published.save(out, record)
    return record.split_version


def _half(x: Float[Tensor, "*b"]) -> np.ndarray:
    """Convert to fp16. Raises `ValueError` for values beyond it, which would become infinite."""
    half = x.numpy().astype(np.float16)
    if not np.isfinite(half).all():
        raise ValueError(f"Expected item rows within the range of fp16, got up to {float(x.abs().max()):g}")
    return half


def to_onnx(model: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
    """Write `model` as an ONNX graph with the example `inputs` by name and one `output`.

    The number of history events and of candidates, each on axis 1, is free.
    """
    history, candidates = torch.export.Dim("history", min=1), torch.export.Dim("candidates", min=1)
    shapes = {
        name: {1: history} if name.startswith("history") else {1: candidates} if name == "item_row" else None for name in inputs
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        program = torch.onnx.export(
            model.eval(),
            kwargs=inputs,
            dynamo=True,
            opset_version=18,
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=shapes,
            verbose=False,
        )
    assert program is not None
    onnx.save(program.model_proto, path)


def _gate_rows(model: DeviceModel, test: np.ndarray, path: Path) -> None:
    """Write inputs and labels of gate rows of the split form, with the events padded at the front to `events_max`."""
    rows = torch.as_tensor(np.sort(np.random.default_rng(0).permutation(test)[:GATE_ROWS]))
    with torch.no_grad():
        arrays = model.arguments(rows)
    labels = model.event["labels"][model.row["event"][rows]]
    short = model.spec.events_max - arrays["event_mask"].shape[1]
    padded = {
        name: np.pad(value.numpy(), [(0, 0), (short, 0), *[(0, 0)] * (value.ndim - 2)])
        if name.startswith("event")
        else value.numpy()
        for name, value in arrays.items()
    }
    np.savez(path, **padded | {"labels": labels.numpy()})  # type: ignore[arg-type]
