"""From a trained seed to the cloud half that serving reads (`cloud.ranking.published`), and the rows that export gates on."""

from __future__ import annotations

import hashlib
import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from cloud.data.rates import ItemStatistics
from cloud.models.ranker import Ranker
from cloud.models.towers import LowerHalf
from cloud.ranking.published import Published, PublishedRecord
from cloud.training.joint import DeviceModel

__all__ = ["GATE_ROWS", "publish", "split_version"]

GATE_ROWS = 2000
"""Test rows that reduced precisions are gated on."""


class _Scores(nn.Module):
    """The ranker with probabilities for outputs."""

    def __init__(self, ranker: Ranker) -> None:
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


class _UserTower(nn.Module):
    """The user tower, which looks at the newest events only."""

    def __init__(self, lower: LowerHalf, history_max: int) -> None:
        super().__init__()
        self.lower, self.history_max = lower, history_max

    def forward(
        self,
        tower_row: Float[Tensor, "b u"],
        history_vector: Float[Tensor, "b h d"],
        history_feedback: Float[Tensor, "b h f"],
        history_mask: Float[Tensor, "b h"],
    ) -> Float[Tensor, "b d"]:
        last = slice(-self.history_max, None)
        return self.lower.users(tower_row, history_vector[:, last], history_feedback[:, last], history_mask[:, last])


def split_version(lower: nn.Module) -> str:
    """Digest of a lower half: 16 hex digits of the SHA-256 of its weights by name."""
    h = hashlib.sha256()
    for name, value in sorted(lower.state_dict().items()):
        h.update(name.encode())
        h.update(value.contiguous().numpy().tobytes())
    return h.hexdigest()[:16]


def publish(
    ranker: Ranker, model: DeviceModel, statistics: ItemStatistics, test: np.ndarray, out: Path, *, simulated: bool
) -> str:
    """Write the cloud half as of the end of the log, and the gate rows, into `out`. Returns the split version."""
    assert model.lower is not None
    samples, inputs, lower = model.samples, model.inputs, model.lower
    history_max = samples.config.history_max
    users = torch.arange(len(samples.user_ids))
    items = torch.arange(len(samples.item_ids))
    now = statistics.as_of(samples.days)
    index, mask = inputs.window(users, inputs.start[users + 1], history_max)
    pad = history_max - index.shape[1]
    with torch.no_grad():
        item_row, vector = (half(items, torch.from_numpy(now)) for half in (ranker.item_rows, lower.items))
        published = Published(
            item_id=samples.item_ids,
            item_row=item_row.numpy(),
            item_vector=vector.numpy().astype(np.float16),
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
        identity_width=ranker.identity_width,
        history_max=history_max,
        scenes=ranker.scene.weight.shape[0],
        float_names=("duration_ms",),
        category_names=("category", "author"),
        simulated=simulated,
        utc_offset_h=samples.config.utc_offset_h,
    )
    out.mkdir(parents=True, exist_ok=True)
    h, n, feedback = 7, min(5, len(items)), torch.zeros(1, 7, inputs.feedback.shape[1])
    rows = (torch.as_tensor(published.user_row[:1]), torch.zeros(1, h, ranker.identity_width), feedback, torch.ones(1, h))
    codes = torch.zeros(1, 1, dtype=torch.long)
    _to_onnx(
        _Scores(ranker),
        {
            **dict(zip(("user_row", "history_row", "history_feedback", "history_mask"), rows, strict=True)),
            "item_row": item_row[:n][None],
            "scene": codes,
            "hour": codes.clone(),  # one tensor for both would become one input
        },
        "pxtr",
        out / "ranker.onnx",
    )
    tower = {"tower_row": torch.as_tensor(published.tower_row[:1]), "history_vector": torch.zeros(1, h, vector.shape[1])}
    history = {"history_feedback": feedback, "history_mask": torch.ones(1, h)}
    _to_onnx(_UserTower(lower, model.config.lower.history_max), tower | history, "user_vector", out / "user_tower.onnx")
    _gate_rows(model, test, out / "gate.npz")
    published.save(out, record)
    return record.split_version


def _to_onnx(model: nn.Module, inputs: dict[str, Tensor], output: str, path: Path) -> None:
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
    """Rows as the split model takes them, the events padded at the front to `events_max`."""
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
