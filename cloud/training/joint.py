"""Trains the device model: lower and upper half together, or the upper half alone in the self-contained form.

One sample is one logged impression: the events the device had seen by then, the candidates it could have shown (those of the
page that were still unshown; without known pages the shown item alone), and the labels of the item that was shown. Only
real pages lend their other candidates: in a pseudo-list these would be what the user was shown *later*, which depends on
the answer to be predicted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn

from cloud.data.rates import ItemStatistics
from cloud.data.samples import Samples
from cloud.models.reranker import UpperConfig, UpperHalf
from cloud.models.towers import LowerHalf, TowerConfig
from cloud.training.stream import RankerInputs, masked_log_loss
from device.contract import CategoryFeature, FeatureSpec, FloatFeature

__all__ = ["DeviceModel", "JointConfig", "device_spec", "predict", "train_device_model"]


@dataclass(frozen=True)
class JointConfig:
    """How the device model learns."""

    upper: UpperConfig = UpperConfig()
    """The device's half."""
    lower: TowerConfig = TowerConfig()
    """The cloud's half."""
    batch: int = 512
    """Rows of a step."""
    learning_rate: float = 3e-3
    """Of Adam, falling to a tenth along a cosine."""
    weight_decay: float = 1e-4
    """Decoupled (Loshchilov & Hutter 2019)."""
    epochs: int = 2
    """Passes over the training rows."""
    candidates: int = 8
    """Candidates of a training list, the shown one included; on the device there may be more."""
    match_weight: float = 0.3
    """Weight of the towers' own loss, which makes their vectors fit for retrieval."""
    warm_up_days: int = 1
    """First days of a log without history whose scores are too raw to learn from."""


def device_spec(samples: Samples, config: JointConfig, task_weights: dict[str, float]) -> FeatureSpec:
    """The feature spec of a device model trained on `samples`."""
    pxtr = [FloatFeature(name=f"pxtr_{t}", min=0, max=1, default=0.5) for t in samples.config.tasks]
    return FeatureSpec(
        tasks=samples.config.tasks,
        task_weights=task_weights,
        candidates_max=samples.config.list_max,
        events_max=samples.config.events_max,
        vector_width=config.lower.vector_width,
        list_sizes=(10, samples.config.list_max),
        candidate_floats=(*pxtr, FloatFeature(name="duration_ms", scale=1e-3, min=0, max=1800, default=15)),
        candidate_categories=(CategoryFeature(name="category", size=int(samples.item_category.max()) + 1),),
        feedback_floats=samples.feedback_floats,
        context_floats=(
            FloatFeature(name="position", min=0, max=1000),
            FloatFeature(name="hour", min=0, max=24, default=12),
        ),
    )


class DeviceModel(nn.Module):
    """Both halves, and the assembly of their inputs from samples. Without a lower half it is self-contained."""

    def __init__(
        self,
        samples: Samples,
        statistics: ItemStatistics,
        pxtr: Float[NDArray[np.float32], "l n k"],
        spec: FeatureSpec,
        config: JointConfig,
        *,
        split: bool,
        feedback: bool = True,
    ) -> None:
        super().__init__()
        self.spec, self.config, self.split, self.feedback = spec, config, split, feedback
        self.upper = UpperHalf(config.upper, spec, split=split)
        self.lower = LowerHalf(config.lower, samples, statistics.width) if split else None
        self.samples, self.inputs = samples, RankerInputs(samples, statistics)
        days = range(-1, int(samples.list_day.max()) + 1)
        # day + 1; on test days those that the full ranker has too, so that neither learns from test rows
        self.statistics = torch.from_numpy(np.stack([statistics.as_of(min(d, samples.learn_until)) for d in days]))
        self.pxtr = torch.from_numpy(pxtr)
        s = samples
        self.row = {n: torch.as_tensor(getattr(s, f"row_{n}")) for n in ("event", "list", "slot", "events_from", "position")}
        self.row_of_event = torch.zeros(len(s.event_item), dtype=torch.long)
        self.row_of_event[self.row["event"]] = torch.arange(len(s.row_event))
        self.event = {n: torch.as_tensor(getattr(s, f"event_{n}")) for n in ("item", "ms", "position", "feedback", "labels")}
        self.shown, self.day = torch.as_tensor(s.list_shown), torch.as_tensor(s.list_day)
        self.duration, self.category = torch.as_tensor(s.item_duration_s), torch.as_tensor(s.item_category)
        shown = torch.arange(len(s.row_event))[:: max(1, len(s.row_event) // 50_000)]
        self.upper.item_floats.fit(self._floats(self.row["list"][shown], self.row["slot"][shown]))
        self.upper.feedback_floats.fit(self.event["feedback"][self.row["event"][shown]])
        self.upper.context_floats.fit(self._context(shown))

    def _floats(self, lists: Tensor, slot: Tensor) -> Float[Tensor, "*b f"]:
        """`spec.candidate_floats` of list slots."""
        duration = self.duration[self.inputs.list_item[lists, slot]][..., None]
        feature = self.spec.candidate_floats[-1]
        duration = torch.where(duration > 0, duration, feature.default).clamp(feature.min, feature.max)  # 0 is unknown
        return torch.cat([self.pxtr[lists, slot], duration], -1)

    def _context(self, rows: Tensor) -> Float[Tensor, "b f"]:
        hour = self.event["ms"][self.row["event"][rows]] // 3_600_000 % 24  # UTC, for a device knows no other
        columns = torch.stack([self.row["position"][rows], hour], -1).float()
        features = self.spec.context_floats
        return columns.clamp(torch.tensor([f.min for f in features]), torch.tensor([f.max for f in features]))

    def slots(self, rows: Tensor, width: int) -> tuple[Tensor, Tensor]:
        """Up to `width` slots [b, n] that could have been shown, the one that was first, and their mask."""
        lists, event = self.row["list"][rows], self.row["event"][rows]
        slot = self.row["slot"][rows]
        key = torch.rand(len(rows), self.shown.shape[1]) + 1
        key = torch.where(self.shown[lists] > event[:, None], key, 0.0)
        key[torch.arange(len(rows)), slot] = 3
        key, order = key.topk(min(width, key.shape[1]), 1)
        n = int((key > 0).sum(1).max())
        return order[:, :n], (key[:, :n] > 0).float()

    def arguments(self, rows: Tensor, width: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """The upper half's inputs for `rows`, and the match logits of the shown items."""
        lists = self.row["list"][rows]
        slot, mask = self.slots(rows, width)
        at = lists[:, None].expand_as(slot)
        item = self.inputs.list_item[at, slot]
        end, first = self.row["event"][rows], self.row["events_from"][rows]
        t = max(1, int((end - first).max()))
        index = end[:, None] - t + torch.arange(t)
        seen = (index >= first[:, None]).float() * float(self.feedback)
        index = index.clamp(min=0)
        past = self.row_of_event[index]
        past_item = self.event["item"][index]
        seconds = (self.event["ms"][end][:, None] - self.event["ms"][index]).float() / 1000
        places = (self.event["position"][end][:, None] - self.event["position"][index]).float()
        inputs = {
            "candidate_float": self._floats(at, slot),
            "candidate_category": self.category[item][..., None],
            "candidate_mask": mask,
            "event_float": self._floats(self.row["list"][past], self.row["slot"][past]),
            "event_category": self.category[past_item][..., None],
            "event_feedback": self.event["feedback"][index],
            "event_gap": torch.stack([seconds.clamp(0, 604_800), places.clamp(0, 10_000)], -1),
            "event_mask": seen,
            "context": self._context(rows),
        }
        if self.lower is None:
            return inputs, None
        day = self.day[lists] + 1
        user = self.inputs.list_user[lists]
        window, known = self.inputs.window(user, self.inputs.list_event[lists], self.config.lower.history_max)
        inputs["candidate_vector"] = self._vectors(item, day)
        inputs["event_vector"] = self._vectors(past_item, day)
        inputs["user_vector"] = self.lower.users(
            self.lower.user(user),
            self._vectors(self.event["item"][window], day),
            self.inputs.feedback[window],
            known,
        )
        return inputs, self.lower.match(inputs["user_vector"], inputs["candidate_vector"][:, 0])

    def _vectors(self, item: Tensor, day: Tensor) -> Float[Tensor, "b m d"]:
        """Item vectors [b, m, d] with the statistics of each row's day; each pair of item and day is computed once."""
        assert self.lower is not None
        days, items = self.statistics.shape[:2]
        unique, inverse = torch.unique(item + day[:, None] * items, return_inverse=True)
        return self.lower.items(unique % items, self.statistics.view(days * items, -1)[unique])[inverse]


def train_device_model(
    model: DeviceModel,
    rows: NDArray[np.int64],
    *,
    seed: int,
    progress: Callable[[float], None] | None = None,
    log: Callable[[str, float, int], None] | None = None,
) -> None:
    """Fit `model` to the labels of `rows`, in place."""
    config, rng = model.config, np.random.default_rng(seed)
    labels = model.event["labels"][model.row["event"]]
    length = model.samples.row_event - model.samples.row_events_from
    steps = config.epochs * -(-len(rows) // config.batch)
    optimizer = torch.optim.AdamW(model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, config.learning_rate / 10)
    step = 0
    model.train()
    for _ in range(config.epochs):
        for chunk in _batches(rng, rows, length, config.batch):
            inputs, match = model.arguments(chunk, config.candidates)
            logits = model.upper.logits(**inputs)[:, 0]
            loss = masked_log_loss(logits, labels[chunk])
            total = loss
            if match is not None:
                total = loss + config.match_weight * masked_log_loss(match[:, None], labels[chunk, :1])
            optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            step += 1
            if log and step % 20 == 0:
                log("device/loss", float(loss.detach()), step)
            if progress:
                progress(step / steps)
    model.eval()


def predict(model: DeviceModel, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Probabilities [rows, K] of the items that were shown."""
    model.eval()
    out = np.empty((len(rows), len(model.spec.tasks)), np.float32)
    length = model.samples.row_event - model.samples.row_events_from
    by_length = np.argsort(length[rows], kind="stable")
    with torch.no_grad():
        for i in range(0, len(rows), 512):
            at = by_length[i : i + 512]
            inputs, _ = model.arguments(torch.as_tensor(rows[at]), model.spec.candidates_max)
            out[at] = model.upper(**inputs)[:, 0].numpy()
    return out


def _batches(rng: np.random.Generator, rows: NDArray[np.int64], length: NDArray[np.int64], size: int) -> Iterator[Tensor]:
    """Random batches of rows with about as many events, so that little is padding."""
    rows = rng.permutation(rows)
    pool = size * 32
    for i in range(0, len(rows), pool):
        part = rows[i : i + pool]
        part = part[np.argsort(length[part], kind="stable")]
        starts = np.arange(0, len(part), size)
        for j in rng.permutation(starts):
            yield torch.as_tensor(part[j : j + size])
