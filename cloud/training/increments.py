"""Training of rows on samples as they come, on top of a run whose dense layers stand still.

What is learned is added to the embedding of an item's own id, and to the row of a user. Dense layers, normalisation and the
embeddings of hours and scenes are those of the run: they move with its next training, and a feature such as the hour of the day
would otherwise follow the hours of the last minutes. Inputs are those with which the page was served. The past items of a
history give no gradient, because their rows would be many times those of the candidates.

A step learns one batch of the join, whose samples and order the topic fixes. So the rows are a function of the topic alone,
however often a trainer was killed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pocketrank.cloud.data.rates import smoothed_rates
from pocketrank.cloud.published.ids import IdLookup
from pocketrank.cloud.published.item_encoder import ItemEncoder
from pocketrank.cloud.streams.join import HAS_NEXT, joined_labels
from pocketrank.cloud.streams.messages import ItemChange, Sample, ServedInputs
from pocketrank.cloud.training.learning_base import LearningBase
from pocketrank.cloud.training.row_table import RowConfig, RowTable

__all__ = ["IncrementConfig", "IncrementTraining", "StepResult"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]


@dataclass(frozen=True)
class IncrementConfig:
    """What is learned, and how fast."""

    items: RowConfig = RowConfig()
    """Rows of items."""
    users: RowConfig = RowConfig()
    """Rows of users."""
    statistics: bool = False
    """Whether the item statistics of what was learned go on from those of the run. Counts that grow beyond those of its data
    are inputs that its dense layers have not seen."""


@dataclass
class StepResult:
    """What a step found, before it learned, of s samples and K tasks."""

    probability: Float
    """[s, K] as the trainer predicts"""
    labels: Float
    """[s, K], NaN unknown or known before"""
    served: Float
    """[s, K] as served, NaN where the page was not ranked"""
    comparable: NDArray[np.bool_]
    """[s] whether what was served was made from inputs that are in the sample"""


class IncrementTraining:
    """Trainer of the rows on top of `base`. Not for several threads at a time."""

    def __init__(self, base: LearningBase, config: IncrementConfig | None = None) -> None:
        self.base, self.config = base, config or IncrementConfig()
        record = base.record
        self.tasks = record.tasks
        joined = {*joined_labels(), *record.actions}
        self._labelled = [(k, task) for k, task in enumerate(record.tasks) if task in joined]
        """Tasks whose labels the join knows, with their places. Of the others nothing is learned."""
        self.items = RowTable(base.item_width, self.config.items)
        self.users = RowTable(base.published.user_row.shape[1], self.config.users)
        self._item_at, self._user_at = (
            IdLookup(np.asarray(base.published.item_id)),
            IdLookup(np.asarray(base.published.user_id)),
        )
        self._user_row = np.asarray(base.published.user_row)
        features = record.features.config
        cells = len(features.sequences) * max((one.length for one in features.sequences), default=0)
        self._widths = base.published.history_feedback.shape[2], cells, len(features.names)
        """Of the feedback on an event, of all sequences, and of the statistics of the moment."""
        self._encoder = ItemEncoder(base.folder, base.published, record)
        self._new: dict[int, tuple[Float, Float, tuple[int, int]]] = {}
        """Of items that the run does not have: identity, statistics, and codes of author and category."""
        names = record.category_names
        codes = np.asarray(base.published.item_category)
        self._author, self._category = codes[:, names.index("author")], codes[:, names.index("category")]
        self._counts: list[dict[int, NDArray[np.float64]]] = [{}, {}, {}]
        """What was counted since the training, by id of an item that has a row, by author and by category."""
        k = len(self.tasks)
        shown, taken = base.counts[0][:, :k].sum(0), base.counts[0][:, k:-1].sum(0)
        self._mean = (taken + 1) / (shown + 10)
        self.counted: dict[int, None] = {}
        """Items of which something was counted since `changed_items` was called."""
        self.unsaved_counts: dict[tuple[int, int], None] = {}
        """Group and key of counts that changed since they were saved."""

    # Items and users.

    def put(self, changes: Sequence[ItemChange]) -> None:
        """Take notice of items that the run does not have. Their first attributes stay, as they do in servers."""
        puts = {one.item_id: one for one in reversed(changes) if not one.removed}
        new = [one for id, one in puts.items() if id not in self._new and not self._item_at.one(id)]
        if new:
            attributes = self._encoder.new_items(new)
            rows, statistics = self._encoder(attributes), self._encoder.statistics_of(attributes)
            pairs = zip(attributes.author.tolist(), attributes.category.tolist(), strict=True)
            for i, (one, pair) in enumerate(zip(new, pairs, strict=True)):
                self._new[one.item_id] = rows["item_identity"][i].astype(np.float32), statistics[i], pair

    def _of_items(self, ids: Sequence[int]) -> tuple[Float, Float]:
        """Return the identities [n, Ei] and statistics [n, S] of items, without what was learned."""
        at = self._item_at(ids)
        identity, statistics = self.base.identity[at], self.base.statistics[at]
        for i in np.flatnonzero(at == 0).tolist():
            if (new := self._new.get(ids[i])) is not None:
                identity[i], statistics[i] = new[0], new[1]
        if self.config.statistics:
            self._update_statistics(ids, at, statistics)
        return identity, statistics

    def _update_statistics(self, ids: Sequence[int], at: Int, statistics: Float) -> None:
        """Replace the rates and counts of those items of which anything was counted."""
        block = len(self.tasks) + 1
        for i, (id, place) in enumerate(zip(ids, at.tolist(), strict=True)):
            for group, key in enumerate(self._keys(id, place)):
                counted = self._counts[group].get(key)
                if counted is not None:
                    base = self.base.counts[group]
                    code = place if group == 0 else key
                    total = counted + base[code] if 0 < code < len(base) else counted
                    statistics[i, group * block : (group + 1) * block] = smoothed_rates(total[None], self._mean)[0]

    def _keys(self, id: int, place: int) -> tuple[int, int, int]:
        """Return what an item is counted by: its id, and the codes of author and category."""
        if place:
            return id, int(self._author[place]), int(self._category[place])
        new = self._new.get(id)
        return (id, *new[2]) if new is not None else (id, 0, 0)

    # Learning.

    def fits(self, sample: Sample) -> bool:
        """Return whether the inputs of a sample have the sizes of this run's. Pages of other runs may have others."""
        inputs, (feedback, cells, statistics) = sample.inputs, self._widths
        events = len(inputs.history_item) // 8
        return (
            len(inputs.history_item) == 8 * events
            and len(inputs.history_feedback) == 4 * events * feedback
            and len(inputs.sequence_item) == 8 * cells
            and len(inputs.sequence_mask) == 4 * cells
            and len(sample.statistics) == 4 * statistics
            and len(sample.pxtr) in (0, 4 * len(self.tasks))
            and 0 <= inputs.hour < 24
        )

    def step(self, samples: Sequence[Sample], *, learn: bool = True) -> StepResult:
        """Predict a batch and `learn` it. All samples fit, and have `pxtr` of all tasks."""
        pages: dict[str, list[int]] = {}
        for i, sample in enumerate(samples):
            pages.setdefault(sample.page_id, []).append(i)
        now_ms = max(sample.event_ms for sample in samples)
        first = [samples[of_page[0]].inputs for of_page in pages.values()]
        n = max(map(len, pages.values()))
        place = np.full((len(pages), n), -1, np.int64)
        for row, of_page in zip(place, pages.values(), strict=True):
            row[: len(of_page)] = of_page
        real = place >= 0
        item_ids = [sample.item_id for sample in samples]
        times = Counter(item_ids)
        ids = list(times)
        index = {id: i for i, id in enumerate(ids)}
        user_times = Counter(sample.inputs.user_id for sample in samples)
        user_ids = list(user_times)
        user_index = {id: i for i, id in enumerate(user_ids)}
        if learn:
            item_slots, user_slots = self.items.use(times, now_ms), self.users.use(user_times, now_ms)
        item_delta = torch.from_numpy(self.items.of(ids)).requires_grad_()
        user_delta = torch.from_numpy(self.users.of(user_ids)).requires_grad_()
        user_at = self._user_at(user_ids)
        of_user = torch.from_numpy(self._user_row[user_at]) + user_delta
        identity, statistics = (torch.from_numpy(values) for values in self._of_items(ids))
        own = torch.nn.functional.pad(item_delta, (0, identity.shape[1] - item_delta.shape[1]))
        rows = torch.cat([identity + own, statistics], -1)
        candidate = torch.from_numpy(np.where(real, np.array([index[id] for id in item_ids])[place], 0))
        user = torch.tensor([user_index[one.user_id] for one in first])
        logits = self._logits(of_user[user], rows[candidate], first, samples, place)

        labels, change = self._labels(samples)
        of_sample = np.zeros((len(samples), 2), np.int64)
        of_sample[place[real]] = np.argwhere(real)
        flat = logits[torch.from_numpy(of_sample[:, 0]), torch.from_numpy(of_sample[:, 1])]
        known = torch.from_numpy(~np.isnan(labels))
        target = torch.from_numpy(np.nan_to_num(labels))
        if learn:
            loss = torch.nn.functional.binary_cross_entropy_with_logits(flat, target, reduction="none")
            total = (loss * known).sum() + (flat * torch.from_numpy(change)).sum()
            gradients: tuple[Tensor, ...] = torch.autograd.grad(total, (item_delta, user_delta))
            self.items.update(ids, item_slots, gradients[0].numpy())
            self.users.update(user_ids, user_slots, gradients[1].numpy())
            if self.config.statistics:
                self._count(samples)
        served = np.full(labels.shape, np.nan, np.float32)
        comparable = np.zeros(len(samples), np.bool_)
        for i, sample in enumerate(samples):
            if len(sample.pxtr) == 4 * labels.shape[1]:
                served[i], comparable[i] = np.frombuffer(sample.pxtr, "<f4"), True
        return StepResult(torch.sigmoid(flat.detach()).numpy(), labels, served, comparable)

    def _logits(
        self, user_row: Tensor, rows: Tensor, inputs: Sequence[ServedInputs], samples: Sequence[Sample], place: Int
    ) -> Tensor:
        record, layers = self.base.record, self.base.layers
        width = self.base.published.history_feedback.shape[2]
        histories = [np.frombuffer(one.history_item, "<i8") for one in inputs]
        h = max(map(len, histories))
        past = np.full((len(inputs), h), np.iinfo(np.int64).min, np.int64)
        feedback, mask = np.zeros((len(inputs), h, width), np.float32), np.zeros((len(inputs), h), np.float32)
        for i, (one, items) in enumerate(zip(inputs, histories, strict=True)):
            if len(items):
                past[i, -len(items) :], mask[i, -len(items) :] = items, 1
                feedback[i, -len(items) :] = np.frombuffer(one.history_feedback, "<f4").reshape(len(items), width)
        scene = torch.tensor([[one.scene + 1 if 0 <= one.scene < record.scenes - 1 else 0] for one in inputs])
        hour = torch.tensor([[one.hour + 1] for one in inputs])
        moment: list[Tensor | None] = [None, None, None]
        if names := record.features.config.names:
            values = np.zeros((*place.shape, len(names)), np.float32)
            for row, column in np.argwhere(place >= 0).tolist():
                values[row, column] = np.frombuffer(samples[place[row, column]].statistics, "<f4")
            moment[0] = torch.from_numpy(values)
        if sequences := record.features.config.sequences:
            shape = len(inputs), len(sequences), max(one.length for one in sequences)
            item = np.stack([np.frombuffer(one.sequence_item, "<i8") for one in inputs]).reshape(shape)
            moment[1] = self._identities(item)
            moment[2] = torch.from_numpy(np.stack([np.frombuffer(one.sequence_mask, "<f4") for one in inputs]).reshape(shape))
        history = self._identities(past)
        return layers.logits(
            user_row, history, torch.from_numpy(feedback), layers.item_parts(rows), scene, hour, *moment,
            history_mask=torch.from_numpy(mask),
        )  # fmt: skip

    def _identities(self, items: Int) -> Tensor:
        """Return the identities [*b, Ei] of past items [*b], with what was learned and without gradients."""
        unique, inverse = np.unique(items, return_inverse=True)
        ids = unique.tolist()
        identity = self.base.identity[self._item_at(ids)]
        for i, id in enumerate(ids):
            if (new := self._new.get(id)) is not None:
                identity[i] = new[0]
        identity[:, : self.items.width] += self.items.of(ids)
        return torch.from_numpy(identity[inverse.reshape(items.shape)])

    def _labels(self, samples: Sequence[Sample]) -> tuple[Float, Float]:
        """Return the labels [s, K] that are new, and by how much the known ones changed: what was learned with them is undone
        by the difference of the two losses, which is this times the logit."""
        labels = np.full((len(samples), len(self.tasks)), np.nan, np.float32)
        change = np.zeros(labels.shape, np.float32)
        for i, sample in enumerate(samples):
            for k, task in self._labelled:
                if task == HAS_NEXT and task not in sample.labels:
                    continue
                value = sample.labels.get(task, False)
                if sample.before and (task != HAS_NEXT or task in sample.before):
                    change[i, k] = float(sample.before.get(task, False)) - value
                else:
                    labels[i, k] = value
        return labels, change

    def _count(self, samples: Sequence[Sample]) -> None:
        k = len(self.tasks)
        at = self._item_at([sample.item_id for sample in samples]).tolist()
        labels, change = self._labels(samples)
        values = np.concatenate([~np.isnan(labels), np.nan_to_num(labels) - change, np.zeros((len(samples), 1))], 1)
        values[:, 2 * k] = [not sample.before for sample in samples]
        for row, sample, place in zip(values, samples, at, strict=True):
            self.counted[sample.item_id] = None
            for group, key in enumerate(self._keys(sample.item_id, place)):
                if key and (group or key in self.items):
                    counts = self._counts[group]
                    counts[key] = counts[key] + row if key in counts else row.copy()
                    self.unsaved_counts[group, key] = None

    # What is published and kept.

    def changed_items(self) -> tuple[list[int], list[int]]:
        """Return the items whose published rows changed since the last call, and those of which nothing is known any more."""
        ids, gone = self.items.taken()
        counted, self.counted = self.counted, {}
        return list(dict.fromkeys([*ids, *(id for id in counted if id in self.items)])), gone

    def item_rows(self, ids: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return the published rows of items by the names of `Published`."""
        identity, statistics = self._of_items(ids)
        identity[:, : self.items.width] += self.items.of(ids)
        with torch.no_grad():
            parts = self.base.layers.item_parts(torch.from_numpy(np.concatenate([identity, statistics], 1)))
        return {"item_row": torch.cat(parts, -1).numpy().astype(np.float16), "item_identity": identity.astype(np.float16)}

    def user_rows(self, ids: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return the published rows of users by the names of `Published`."""
        return {"user_row": self._user_row[self._user_at(ids)] + self.users.of(ids)}

    def expire(self, now_ms: int) -> None:
        """Give up rows that were not used for long enough, and what was counted of such items."""
        for id in self.items.expire(now_ms):
            if self._counts[0].pop(id, None) is not None:
                self.unsaved_counts[0, id] = None
        self.users.expire(now_ms)

    def counts(self, group: int, key: int) -> bytes | None:
        """Return what was counted of a key, packed; None without any."""
        counts = self._counts[group].get(key)
        return None if counts is None else counts.tobytes()

    def set_counts(self, group: int, key: int, data: bytes | None) -> None:
        """Put counts in place that were packed."""
        if data is None:
            self._counts[group].pop(key, None)
        else:
            self._counts[group][key] = np.frombuffer(data).copy()
