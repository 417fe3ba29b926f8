"""Training of the device model: both halves together, or the upper half alone in the self-contained form.

One sample is one logged impression: the events that the device had seen by then, the item that was shown, and its labels. A
list search looks further ahead: it scores an item after others that are chosen and not yet watched. A share of the samples
therefore has the inputs of such a search: the last few impressions before the row are moved from the watched list to the list
of chosen candidates, without their feedback. The published system trains with all watched items as the chosen ones instead
(Gong et al., CIKM 2022, section 4), an input that it never has when it ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from msgspec import UNSET
from numpy.typing import NDArray
from torch import Tensor, nn

from pocketrank.cloud.data.category_columns import shared_sizes
from pocketrank.cloud.data.entities import Entities
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import LogFacts, Samples
from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.models.reranker import UpperHalf
from pocketrank.cloud.models.towers import LowerHalf, TowerConfig
from pocketrank.cloud.training import ranks
from pocketrank.cloud.training.ranker import RankerInputs, known_labels, masked_log_loss
from pocketrank.device.contract import CategoryFeature, FeatureSpec, FloatFeature, SearchSpec

__all__ = ["DeviceModel", "DeviceModelConfig", "DeviceTraining", "device_spec", "item_columns", "predict", "train_device_model"]


@dataclass(frozen=True)
class DeviceModelConfig:
    """Widths of the device model, and its training."""

    upper: UpperConfig = UpperConfig()
    """Upper half, on the device."""
    lower: TowerConfig = TowerConfig()
    """Lower half, in the cloud."""
    batch: int = 512
    """Rows of a step."""
    neighbours: int = 16
    """Consecutive rows of a user that are in one step together, because they share most of their events."""
    learning_rate: float = 3e-3
    """Learning rate of Adam at the start; it falls to a tenth along a cosine."""
    weight_decay: float = 1e-4
    """Decoupled weight decay (Loshchilov & Hutter 2019)."""
    epochs: int = 2
    """Passes over the training rows."""
    patience: int = 0
    """Passes without a better validation after which training stops early, and the best pass is kept; 0 makes all passes."""
    validation_days: int = 1
    """Last training days that are validated on, and not learned, with `patience`."""
    ahead_share: float = 0.3
    """Share of the samples whose last impressions are chosen and not yet watched, as in a list search."""
    ahead_max: int = 4
    """Largest number of such impressions; 1 to this are equally likely."""
    loss_weights: tuple[tuple[str, float], ...] = ()
    """Weights in the loss of the tasks whose weight is not 1, by name."""
    match_weight: float = 0.3
    """Weight of the loss of the towers' dot product, which makes their vectors fit for retrieval."""
    warm_up_days: int = 1
    """First days of a log without history that are left out, because the ranker had learned too little to score them."""


PXTR_UNKNOWN = 0.5
"""Stands for a score that is not known."""
_STATISTIC_MAX = 10.0
"""Bound of features of the moment, most of which are between -3 and 3."""
SURVIVAL_TASK = "has_next"
"""Label that says whether a user stayed for another item."""


def device_spec(
    facts: LogFacts, config: DeviceModelConfig, task_weights: dict[str, float], search: SearchSpec | None = None
) -> FeatureSpec:
    """Return the feature spec of a device model that is trained on a log of these `facts`."""
    names = ("category", *facts.item_category_names)
    sizes = shared_sizes(names, np.column_stack([facts.item_category, facts.item_categories]))
    numbers = [_number(name, values) for name, values in zip(facts.item_float_names, facts.item_floats.T, strict=True)]
    pxtr = [FloatFeature(name=f"pxtr_{t}", min=0, max=1, default=PXTR_UNKNOWN) for t in facts.config.tasks]
    features = facts.config.features
    moment = [FloatFeature(name=features.names[place], min=-_STATISTIC_MAX, max=_STATISTIC_MAX) for place in features.device]
    return FeatureSpec(
        tasks=facts.config.tasks,
        task_weights=task_weights,
        candidates_max=facts.config.list_max,
        events_max=facts.config.events_max,
        vector_width=config.lower.vector_width,
        list_sizes=(10, facts.config.list_max),
        candidate_floats=(*pxtr, FloatFeature(name="duration_ms", scale=1e-3, min=0, max=1800, default=15), *numbers, *moment),
        candidate_categories=tuple(CategoryFeature(name=n, size=size) for n, size in zip(names, sizes, strict=True)),
        feedback_floats=facts.feedback_floats,
        context_floats=(
            FloatFeature(name="position", min=0, max=1000),
            FloatFeature(name="hour", min=0, max=24, default=12),
        ),
        survival_task=SURVIVAL_TASK if SURVIVAL_TASK in facts.config.tasks else None,
        search=search,
        numbering=facts.numbering or UNSET,
    )


def item_columns(items: Entities) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Return the columns of items as pages carry them: numbers [I + 1, B + 1], raw and NaN where unknown, of which the first is
    the duration in milliseconds; and codes [I + 1, C + 2], of which the first are category and author."""
    duration = np.where(items.item_duration_s > 0, items.item_duration_s * 1000, np.nan)[:, None]
    codes = np.concatenate([items.item_category[:, None], items.item_author[:, None], items.item_categories], 1)
    return np.concatenate([duration, items.item_floats], 1).astype(np.float32), codes.astype(np.int32)


def _number(name: str, values: NDArray[np.float32]) -> FloatFeature:
    """Return the feature of a number of items, scaled to a deviation of 1 and clipped to the values that are known."""
    known = values[np.isfinite(values)].astype(np.float64)
    deviation = float(known.std()) if len(known) else 0.0
    scale = 1 / deviation if deviation > 0 else 1.0
    low, middle, high = (float(q) * scale for q in np.quantile(known, [0, 0.5, 1])) if len(known) else (0.0, 0.0, 0.0)
    return FloatFeature(name=name, scale=scale, min=low, max=high, default=middle)


def _feature(values: NDArray[np.float32], feature: FloatFeature) -> NDArray[np.float32]:
    """Return raw values as a device makes inputs of them."""
    scaled = np.where(np.isnan(values), feature.default, values.astype(np.float64) * feature.scale)
    return np.clip(scaled, feature.min, feature.max).astype(np.float32)


@dataclass(frozen=True)
class _Window:
    """For each row, the events that the device has feedback on, and those after them, which are only chosen."""

    now: Int[Tensor, " b"]  # first event without feedback
    index: Int[Tensor, "b t"]
    seen: Float[Tensor, "b t"]
    chosen: Int[Tensor, "b i"]
    chosen_mask: Float[Tensor, "b i"]


def _select(inputs: dict[str, Tensor], *names: str) -> dict[str, Tensor]:
    return {name: inputs[name] for name in names if name in inputs}


class DeviceModel(nn.Module):
    """Both halves, and their inputs from a window of samples. With `split=False` there is no lower half.

    The scores of the full ranker are `samples.event_pxtr`. With `feedback=False` the watched list is always empty.
    """

    def __init__(
        self,
        samples: Samples,
        statistics: ItemStatistics,
        spec: FeatureSpec,
        config: DeviceModelConfig,
        *,
        split: bool,
        feedback: bool = True,
    ) -> None:
        super().__init__()
        self.spec, self.config, self.split, self.feedback = spec, config, split, feedback
        self.upper = UpperHalf(config.upper, spec, split=split)
        self.lower = LowerHalf(config.lower, samples, statistics.width) if split else None
        self.enter(samples, statistics)
        # The inputs are standardised by about 50,000 rows.
        shown = torch.arange(len(samples.row_event))[:: max(1, len(samples.row_event) // 50_000)]
        event = self.row["event"][shown]
        self.upper.item_floats.fit(self._floats(event))
        self.upper.feedback_floats.fit(self.event["feedback"][event])
        self.upper.context_floats.fit(self._context(shown))

    def enter(self, samples: Samples, statistics: ItemStatistics) -> None:
        """Take the inputs from another window of the same log."""
        s = self.samples = samples
        self.inputs = RankerInputs(s, statistics)
        # [day - first day]; on test days the statistics of the first of them, as for the full ranker: neither learns from test
        # rows.
        self.first_day = int(s.list_day.min())
        days = range(self.first_day, int(s.list_day.max()) + 1)
        self.statistics = torch.from_numpy(np.stack([statistics.as_of(min(d, s.learn_until)) for d in days]))
        # The samples as tensors. Each event of the log is one row.
        self.row = {n: torch.as_tensor(getattr(s, f"row_{n}")) for n in ("event", "list", "position", "events_from")}
        self.event = {
            n: torch.as_tensor(getattr(s, f"event_{n}")) for n in ("item", "ms", "position", "feedback", "labels", "pxtr")
        }
        moment = s.event_statistics[:, list(s.config.features.device)]
        self.event["statistics"] = torch.as_tensor(moment.clip(-_STATISTIC_MAX, _STATISTIC_MAX))
        self.day = torch.as_tensor(s.list_day)
        # What a device computes from the columns that are published: `item_columns`.
        floats, categories = item_columns(s)
        duration, *features = self.spec.candidate_floats[len(s.config.tasks) :][: 1 + len(s.item_float_names)]
        known_s = np.where(s.item_duration_s > 0, s.item_duration_s, duration.default).clip(duration.min, duration.max)
        scaled = [known_s.astype(np.float32)]
        scaled += [_feature(values, feature) for values, feature in zip(floats.T[1:], features, strict=True)]
        self.numbers = torch.as_tensor(np.stack(scaled, 1))  # [I + 1, B + 1]
        self.categories = torch.as_tensor(np.delete(categories, 1, 1).astype(np.int64))  # [I + 1, C + 1]

    def _floats(self, event: Tensor) -> Float[Tensor, "*b f"]:
        """Return the `spec.candidate_floats` of the items that events showed."""
        scores, item = self.event["pxtr"][event].nan_to_num(PXTR_UNKNOWN), self.event["item"][event]
        return torch.cat([scores, self.numbers[item], self.event["statistics"][event]], -1)

    def _context(self, rows: Tensor) -> Float[Tensor, "b f"]:
        hour = self.event["ms"][self.row["event"][rows]] // 3_600_000 % 24  # UTC, the only time zone that a device knows
        columns = torch.stack([self.row["position"][rows], hour], -1).float()
        features = self.spec.context_floats
        return columns.clamp(torch.tensor([f.min for f in features]), torch.tensor([f.max for f in features]))

    def arguments(self, rows: Int[Tensor, " b"]) -> dict[str, Tensor]:
        """Return the upper half's inputs for the items that `rows` showed, as lists of one candidate each."""
        window = self._window(rows, torch.zeros_like(rows))
        inputs = self._candidates(rows) | self._events(window.index, self._day(rows)[:, None].expand_as(window.index))
        return inputs | self._ranking_inputs(rows, window) | {"candidate_mask": torch.ones(len(rows), 1)}

    def logits(
        self, rows: Int[Tensor, " b"], ahead: Int[Tensor, " b"] | None = None
    ) -> tuple[Float[Tensor, "b k"], Float[Tensor, " b"] | None]:
        """Return the logits of the items that `rows` showed, and in the split form the logits of the towers' dot product.

        The last `ahead` impressions before each row are chosen and not watched; by default none.
        """
        window = self._window(rows, torch.zeros_like(rows) if ahead is None else ahead)
        upper, inputs = self.upper, self._candidates(rows)
        at_ranking = self._ranking_inputs(rows, window)
        candidates = upper.encode_candidates(**inputs)
        # The rows of a batch are neighbours in time, so that most events are in many windows: each is encoded once.
        day, events = self._day(rows)[:, None], len(self.event["item"])
        unique, inverse = torch.unique(window.index + day * events, return_inverse=True)
        encoded = upper.encode_events(**self._events((unique % events)[None], (unique // events)[None]))
        ready = upper.watch(candidates, encoded[0][inverse], user_vector=inputs.get("user_vector"), **at_ranking)
        chosen = None
        if window.chosen.shape[1]:
            chosen = upper.encode_candidates(**self._items(window.chosen, day), **_select(inputs, "user_vector"))
        match = None
        if self.lower is not None:
            match = self.lower.match(inputs["user_vector"], inputs["candidate_vector"][:, 0])
        return upper.choose(ready, candidates, chosen, window.chosen_mask)[:, 0], match

    def _day(self, rows: Tensor) -> Int[Tensor, " b"]:
        """Return the index in `statistics` of the day of each row's list."""
        return self.day[self.row["list"][rows]] - self.first_day

    def _window(self, rows: Tensor, ahead: Tensor) -> _Window:
        end, first = self.row["event"][rows], self.row["events_from"][rows]
        now = torch.maximum(end - ahead, first)
        t, i = max(1, int((now - first).max())), int((end - now).max())
        index, chosen = now[:, None] - t + torch.arange(t), end[:, None] - i + torch.arange(i)
        seen = (index >= first[:, None]).float() * float(self.feedback)
        return _Window(now, index.clamp(min=0), seen, chosen.clamp(min=0), (chosen >= now[:, None]).float())

    def _candidates(self, rows: Tensor) -> dict[str, Tensor]:
        """Return the items that rows showed as candidates, and the user vectors of the rows' lists."""
        inputs = self._items(self.row["event"][rows][:, None], self._day(rows)[:, None])
        if self.lower is not None:
            lists = self.row["list"][rows]
            user = self.inputs.list_user[lists]
            window, known = self.inputs.window(user, self.inputs.list_event[lists], self.config.lower.history_max)
            past = self._vectors(self.event["item"][window], self._day(rows)[:, None])
            inputs["user_vector"] = self.lower.users(self.lower.user(user), past, self.inputs.feedback[window], known)
        return inputs

    def _items(self, event: Int[Tensor, "b t"], day: Int[Tensor, "#b #t"]) -> dict[str, Tensor]:
        """Return the items that events showed, as candidates."""
        item = self.event["item"][event]
        inputs = {
            "candidate_float": self._floats(event),
            "candidate_category": self.categories[item],
        }
        return inputs if self.lower is None else inputs | {"candidate_vector": self._vectors(item, day)}

    def _events(self, event: Int[Tensor, "b t"], day: Int[Tensor, "b t"]) -> dict[str, Tensor]:
        items = {name.replace("candidate", "event"): value for name, value in self._items(event, day).items()}
        return items | {"event_feedback": self.event["feedback"][event]}

    def _ranking_inputs(self, rows: Tensor, window: _Window) -> dict[str, Tensor]:
        """Return the inputs that are known only at the time of a ranking."""
        seconds = (self.event["ms"][window.now][:, None] - self.event["ms"][window.index]).float() / 1000
        places = (self.event["position"][window.now][:, None] - self.event["position"][window.index]).float()
        gap = torch.stack([seconds.clamp(0, 604_800), places.clamp(0, 10_000)], -1)
        return {"event_gap": gap, "event_mask": window.seen, "context": self._context(rows)}

    def _vectors(self, item: Int[Tensor, "b m"], day: Int[Tensor, "#b #m"]) -> Float[Tensor, "b m d"]:
        """Return item vectors with the statistics of a day; each pair of item and day is computed once."""
        assert self.lower is not None
        days, items = self.statistics.shape[:2]
        unique, inverse = torch.unique(item + day * items, return_inverse=True)
        return self.lower.items(unique % items, self.statistics.view(days * items, -1)[unique])[inverse]


class DeviceTraining:
    """Fits a model to the labels of rows, window by window, in place."""

    def __init__(
        self,
        model: DeviceModel,
        *,
        rows: int,
        seed: int,
        progress: Callable[[float], None] | None = None,
        log: Callable[[str, float, int], None] | None = None,
    ) -> None:
        """`rows` is the number of rows of an epoch in all windows. `progress` receives the share of the steps that is done, and
        `log` receives (name, value, step) of a training curve."""
        config = model.config
        self._model, self._rng, self._progress, self._log = model, np.random.default_rng(seed), progress, log
        self._weights = torch.tensor([dict(config.loss_weights).get(task, 1.0) for task in model.spec.tasks])
        self._steps = max(1, config.epochs * -(-rows // (config.batch // config.neighbours * config.neighbours)))
        self._optimizer = torch.optim.AdamW(
            model.parameters(), config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimizer, self._steps, config.learning_rate / 10)
        self._step = 0

    def learn(self, rows: NDArray[np.int64]) -> None:
        """Learn `rows` of the window that the model has entered, once."""
        model, config, s = self._model, self._model.config, self._model.samples
        labels = model.event["labels"][model.row["event"]]
        length = s.row_event - s.row_events_from
        model.train()
        for chunk in _batches(self._rng, rows, config, length):
            ahead = torch.randint(1, config.ahead_max + 1, chunk.shape)
            ahead = ahead * (torch.rand(chunk.shape) < config.ahead_share)
            share, weight = ranks.share_of(len(chunk))
            mine, known = chunk[share], known_labels(labels[chunk])
            logits, match = model.logits(mine, ahead[share])
            loss = weight * masked_log_loss(logits, labels[mine], self._weights, known)
            total = loss
            if match is not None:
                matched = masked_log_loss(match[:, None], labels[mine, :1], known=known[:1])
                total = loss + weight * config.match_weight * matched
            self._optimizer.zero_grad()
            total.backward()  # type: ignore[no-untyped-call]
            ranks.sum_gradients(model.parameters())
            self._optimizer.step()
            self._step += 1
            if self._step < self._steps:  # windows may end in smaller steps, and then there are more
                self._schedule.step()
            if self._log and self._step % 20 == 0:
                self._log("loss", float(ranks.sum_array(loss.detach().numpy())), self._step)
            if self._progress:
                self._progress(min(1.0, self._step / self._steps))
        model.eval()


def train_device_model(
    model: DeviceModel,
    rows: NDArray[np.int64],
    *,
    seed: int,
    progress: Callable[[float], None] | None = None,
    log: Callable[[str, float, int], None] | None = None,
) -> None:
    """Fit `model` to the labels of `rows` of its one window, in place; see `DeviceTraining`."""
    training = DeviceTraining(model, rows=len(rows), seed=seed, progress=progress, log=log)
    for _ in range(model.config.epochs):
        training.learn(rows)


def predict(model: DeviceModel, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the probabilities [rows, K] of the items that `rows` showed."""
    model.eval()
    out = np.zeros((len(rows), len(model.spec.tasks)), np.float32)
    # Rows with about as many events together, so that little of a batch is padding.
    length = model.samples.row_event - model.samples.row_events_from
    by_length = np.argsort(length[rows], kind="stable")
    with torch.no_grad():
        for i in range(512 * ranks.rank(), len(rows), 512 * ranks.processes()):
            at = by_length[i : i + 512]
            out[at] = torch.sigmoid(model.logits(torch.as_tensor(rows[at]))[0]).numpy()
    return ranks.sum_array(out)


def _batches(
    rng: np.random.Generator, rows: NDArray[np.int64], config: DeviceModelConfig, length: NDArray[np.int64]
) -> Iterator[Tensor]:
    """Yield random batches of runs of `neighbours` rows; the runs of a batch have about as many events, for little padding."""
    size, run = config.batch, config.neighbours
    runs = [rows[i : i + run] for i in range(0, len(rows), run)]
    order = rng.permutation(len(runs))
    last = np.array([length[r].max() for r in runs])
    per_batch = max(1, size // run)
    pool = per_batch * 32  # sorted by length within pools: over all runs, a batch would always be of the same length
    for i in range(0, len(order), pool):
        part = order[i : i + pool]
        part = part[np.argsort(last[part], kind="stable")]
        for j in rng.permutation(np.arange(0, len(part), per_batch)):
            yield torch.as_tensor(np.concatenate([runs[k] for k in part[j : j + per_batch]]))
