"""Publishing of a trained seed: the cloud half that serving reads (`pocketrank.cloud.published.published`), and gate rows.

The gate rows are test rows on which export compares the quality of a bundle's models with that of the trained model.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import pyarrow.compute as pc
import torch
from jaxtyping import Bool, Float, Float16, Int
from torch import Tensor, nn

from pocketrank.cloud.data.category_codes import codes_of_log, save_codes
from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.data.latest_events import LatestEvents
from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.models.full_ranker import FullRanker
from pocketrank.cloud.models.towers import LowerHalf
from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.published.profile import Profile
from pocketrank.cloud.published.published import Published, PublishedFeatures, PublishedRecord
from pocketrank.cloud.training.device_model import DeviceModel, item_columns
from pocketrank.cloud.training.learning_base import save_base

__all__ = ["GATE_ROWS", "ID_KINDS", "gate_arrays", "gate_rows", "publish", "publish_window", "split_version", "to_onnx"]

ID_KINDS = ("user_id", "item_id", "author_id")
"""Kinds of ids whose texts serving needs."""
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
        item_row: Float16[Tensor, "b n e"],
        scene: Int[Tensor, "b s"],
        hour: Int[Tensor, "b s"],
        statistics: Float[Tensor, "b n m"] | None = None,
        sequence_row: Float16[Tensor, "b q t i"] | None = None,
        sequence_mask: Float[Tensor, "b q t"] | None = None,
    ) -> Float[Tensor, "b n k"]:
        parts = [part.float() for part in torch.split(item_row, self.ranker.part_widths, -1)]
        moment = statistics, None if sequence_row is None else sequence_row.float(), sequence_mask
        return torch.sigmoid(self.ranker.logits(user_row, history_row.float(), history_feedback, parts, scene, hour, *moment))


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
    ranker: FullRanker | None,
    model: DeviceModel,
    statistics: ItemStatistics,
    latest: LatestEvents,
    gates: Sequence[Mapping[str, np.ndarray]],
    out: Path,
    *,
    simulated: bool,
    last_events: tuple[np.ndarray, np.ndarray, np.ndarray],
    log: Log | None = None,
    profile: Profile | None = None,
) -> str:
    """Write the cloud half as of the end of the log into `out`, with users as of their `latest` events, and the gate rows.

    `gates` are the gate rows of each window (`gate_arrays`), `last_events` those of `SampleStream.last_events`, and `profile`
    is that of the inputs. The dictionaries are those of `log`. Without a ranker the tables have no columns. Returns the split
    version. Raises `ValueError` for item rows beyond fp16.
    """
    assert model.lower is not None
    samples, lower = model.samples, model.lower
    # Tables of items and users.
    history_max = samples.config.history_max
    users = torch.arange(len(samples.user_ids))
    items = torch.arange(len(samples.item_ids))
    now = statistics.as_of(samples.days)
    days, counts = samples.statistics.by_day(*last_events)
    features = PublishedFeatures(
        config=samples.config.features,
        means=samples.statistics.means,
        days=days,
        until_ms=int(last_events[1].max(initial=0)),
    )
    events_max = samples.config.past_events
    history_item, history_feedback, history_ms = latest.history(events_max)
    item_float, item_category = item_columns(samples)
    with torch.no_grad():
        vector = lower.items(items, torch.from_numpy(now))
        item_row, identity, user_row = (torch.zeros(len(rows), 0) for rows in (items, items, users))
        if ranker is not None:
            item_rows = ranker.item_rows(items, torch.from_numpy(now))
            item_row, identity = torch.cat(ranker.item_parts(item_rows), -1), item_rows[:, : ranker.identity_width]
            user_row = ranker.user(users)
        published = Published(
            item_id=samples.item_ids,
            item_row=_half(item_row),
            item_identity=_half(identity),
            item_vector=_half(vector),
            item_float=item_float,
            item_category=item_category,
            item_author=samples.item_author_id,
            item_upload_ms=samples.item_upload_ms,
            item_popularity=now[:, 0],
            user_id=samples.user_ids,
            user_row=user_row.numpy(),
            tower_row=lower.user(users).numpy(),
            history_item=history_item,
            history_feedback=history_feedback,
            history_until_ms=np.where(latest.until_ms > 0, latest.until_ms, np.iinfo(np.int64).min),
            history_ms=history_ms if features.config else history_ms[:, :0],
            counts=counts,
        )
    record = PublishedRecord(
        split_version=split_version(lower),
        tasks=samples.config.tasks,
        history_max=history_max,
        tower_history_max=model.config.lower.history_max,
        scenes=samples.scenes,
        actions=samples.history_feedback[len(HISTORY_FEEDBACK) :],
        ranker=ranker is not None,
        float_names=("duration_ms", *samples.item_float_names),
        category_names=("category", "author", *samples.item_category_names),
        numbering=samples.numbering,
        simulated=simulated,
        time_zone=samples.config.time_zone,
        features=features,
    )
    # Graphs. The sizes of these example inputs are free in the graph.
    out.mkdir(parents=True, exist_ok=True)
    h, n, feedback = 7, min(5, len(items)), torch.zeros(1, 7, len(samples.history_feedback))
    codes = torch.zeros(1, 1, dtype=torch.long)
    if ranker is not None:
        rows = {
            "user_row": torch.as_tensor(published.user_row[:1]),
            "history_row": torch.zeros(1, h, ranker.identity_width, dtype=torch.half),
            "history_feedback": feedback,
            "item_row": torch.as_tensor(published.item_row[None, :n]),
            "scene": codes,
            "hour": codes.clone(),  # one tensor for both would become one input
        }
        if names := features.config.names:
            rows["statistics"] = torch.zeros(1, n, len(names))
        if sequences := features.config.sequences:
            shape = 1, len(sequences), max(one.length for one in sequences)
            rows["sequence_row"] = torch.zeros(*shape, ranker.identity_width, dtype=torch.half)
            rows["sequence_mask"] = torch.ones(shape)
        to_onnx(_Scores(ranker), rows, "pxtr", out / "ranker.onnx")
    tower = {
        "tower_row": torch.as_tensor(published.tower_row[:1]),
        "history_vector": torch.zeros(1, h, vector.shape[1], dtype=torch.half),
        "history_feedback": feedback,
        "history_mask": torch.ones(1, h, dtype=torch.bool),
    }
    to_onnx(_UserTower(lower), tower, "user_vector", out / "user_tower.onnx")
    np.savez(out / "gate.npz", **{name: np.concatenate([gate[name] for gate in gates]) for name in gates[0]})  # type: ignore[arg-type]
    if log is not None:
        ids = log.ids_of(ID_KINDS)
        save_codes(codes_of_log(log), out)
        of_kind = {kind: ids.filter(pc.equal(ids["kind"], kind)) for kind in ID_KINDS}
        kinds = {kind: (rows["code"].to_numpy(), rows["text"].to_pylist()) for kind, rows in of_kind.items() if len(rows)}
        if kinds:
            PublishedIds.save(out, kinds)
    if profile is not None:
        profile.save(out)
    if ranker is not None:
        save_base(ranker, lower, statistics, now, out)
    published.save(out, record)
    return record.split_version


def publish_window(ranker: FullRanker, model: DeviceModel, out: Path, *, simulated: bool) -> str:
    """Publish a model whose window is the whole log, with its first rows as gate rows; see `publish`."""
    samples, statistics = model.samples, model.inputs.statistics
    widths = {"feedback": len(samples.feedback_floats), "history": len(samples.history_feedback)}
    widths |= {"tasks": len(samples.config.tasks), "statistics": len(samples.statistics.names)}
    latest = LatestEvents(len(samples.user_ids), samples.config.past_events, **widths)
    latest.add(samples.fresh())
    gates, logged = [gate_arrays(model, np.arange(8))], samples.event_day >= 0
    last_events = samples.event_item[logged], samples.event_ms[logged], samples.event_history[logged]
    return publish(ranker, model, statistics, latest, gates, out, simulated=simulated, last_events=last_events)


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
        name: {1: history} if name.startswith("history") else {1: candidates} if name in ("item_row", "statistics") else None
        for name in inputs
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


def gate_rows(test_rows: int) -> np.ndarray:
    """Return the numbers, ascending, of the test rows that are gate rows."""
    return np.sort(np.random.default_rng(0).permutation(test_rows)[:GATE_ROWS])


def gate_arrays(model: DeviceModel, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return inputs and labels of rows of the split form's window, with the events padded at the front to `events_max`."""
    at = torch.as_tensor(rows)
    with torch.no_grad():
        arrays = model.arguments(at)
    labels = model.event["labels"][model.row["event"][at]]
    short = model.spec.events_max - arrays["event_mask"].shape[1]
    padded = {
        name: np.pad(value.numpy(), [(0, 0), (short, 0), *[(0, 0)] * (value.ndim - 2)])
        if name.startswith("event")
        else value.numpy()
        for name, value in arrays.items()
    }
    return padded | {"labels": labels.numpy()}
