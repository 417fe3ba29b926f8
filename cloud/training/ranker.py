"""Training of the cloud's full ranker (`pocketrank.cloud.models.full_ranker`), day by day, as production trains it.

One pass over the log in the order of time: each day is scored before it is learned. All scores are therefore those of a model
that had seen neither the row nor anything later, and can be inputs of the device model. Events from before the log are learned
first. The ranking of a page on the device is in `pocketrank.device.ranking.ranker`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import Samples
from pocketrank.cloud.models.full_ranker import FullRanker, FullRankerConfig
from pocketrank.cloud.training import ranks
from pocketrank.cloud.training.metrics import auc
from pocketrank.cloud.training.row_adam import RowAdam

__all__ = ["RankerInputs", "RankerTraining", "RankerTrainingConfig", "known_labels", "masked_log_loss"]


@dataclass(frozen=True)
class RankerTrainingConfig:
    """Training of the full ranker."""

    ranker: FullRankerConfig = FullRankerConfig()
    """Widths of the ranker."""
    batch: int = 512
    """Labelled impressions of a step, approximately: a list is never divided."""
    learning_rate: float = 2e-3
    """Learning rate of Adam (Kingma & Ba 2015), for dense parameters and embedding tables alike."""
    history_passes: int = 1
    """Passes over the events from before the log."""
    day_passes: int = 1
    """Passes over each day, after the day was scored."""
    update_rows_from: int = 1 << 14
    """Rows from which on a table of embeddings is updated by row (`row_adam`). A step then takes less time than it does with
    the whole table, and the weights are the same."""


class RankerInputs:
    """Inputs of the ranker for batches of lists."""

    def __init__(self, samples: Samples, statistics: ItemStatistics) -> None:
        self.samples, self.statistics = samples, statistics
        s = samples
        self.item = torch.as_tensor(s.event_item)
        self.feedback = torch.as_tensor(s.event_history)
        self.list_item, self.list_scene = torch.as_tensor(s.list_item), torch.as_tensor(s.list_scene)
        self.list_hour, self.list_user = torch.as_tensor(s.list_hour), torch.as_tensor(s.list_user)
        self.list_event = torch.as_tensor(s.list_event)
        self.start = torch.as_tensor(s.user_start)
        self.length = torch.as_tensor((s.list_item > 0).sum(1))
        self.list_statistics = torch.as_tensor(s.list_statistics)
        places = [s.statistics.history.index(sequence.behaviour) for sequence in s.config.features.sequences]
        self._showing = [np.flatnonzero(s.event_history[:, place] > 0) for place in places]

    def window(self, user: Tensor, end: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return the indices [b, h] of the last `length` events of each user before event `end`, and their mask [b, h].

        h is the number of events of the user who has the most, at least 1; shorter histories are padded at the front.
        """
        first = torch.maximum(self.start[user], end - length)
        h = max(1, int((end - first).max()))
        index = end[:, None] - h + torch.arange(h)
        mask = index >= first[:, None]
        return index.clamp(min=0), mask.float()

    def sequences(self, user: Tensor, end: Tensor) -> tuple[Tensor, Tensor] | tuple[None, None]:
        """Return the indices [b, q, t] of the events of each sequence of the users before event `end`, and their mask; without
        sequences None."""
        features = self.samples.config.features
        if not features.sequences:
            return None, None
        first = torch.maximum(self.start[user], end - features.user_events).numpy()
        index = np.zeros((len(user), len(self._showing), max(s.length for s in features.sequences)), np.int64)
        mask = np.zeros(index.shape, np.float32)
        for i, (sequence, showing) in enumerate(zip(features.sequences, self._showing, strict=True)):
            last = np.searchsorted(showing, end.numpy())
            place = last[:, None] + np.arange(-sequence.length, 0)
            known = place >= np.searchsorted(showing, first)[:, None]
            index[:, i, -sequence.length :] = np.where(known, np.append(showing, 0)[np.where(known, place, -1)], 0)
            mask[:, i, -sequence.length :] = known
        return torch.from_numpy(index), torch.from_numpy(mask)

    def rows(self, ranker: FullRanker, lists: Tensor, day: int) -> tuple[Tensor | None, ...]:
        """Return the arguments of `FullRanker.forward` for `lists`, with the item statistics as of `day`."""
        s = self.samples
        index, mask = self.window(self.list_user[lists], self.list_event[lists], s.config.history_max)
        width = max(1, int(self.length[lists].max()))
        item, past = self.list_item[lists, :width].long(), self.item[index]
        statistics = torch.from_numpy(self.statistics.as_of(day))[item]
        moment = self.list_statistics[lists, :width] if self.list_statistics.shape[2] else None
        showing, shown = self.sequences(self.list_user[lists], self.list_event[lists])
        return (
            ranker.user(self.list_user[lists]),
            ranker.identity(past),
            self.feedback[index],
            mask,
            ranker.item_rows(item, statistics),
            self.list_scene[lists, :width].long(),
            self.list_hour[lists, :width].long(),
            moment,
            None if showing is None else ranker.identity(self.item[showing]),
            shown,
        )


def known_labels(labels: Float[Tensor, "*b k"]) -> Int[Tensor, " k"]:
    """Return the number of known labels of each task."""
    return (~labels.isnan()).flatten(0, -2).sum(0)


def masked_log_loss(
    logits: Float[Tensor, "*b k"],
    labels: Float[Tensor, "*b k"],
    weights: Float[Tensor, " k"] | None = None,
    known: Int[Tensor, " k"] | None = None,
) -> Float[Tensor, ""]:
    """Return the log loss, averaged over the known labels of each task and summed over tasks, weighted by `weights`.

    A NaN label is unknown and takes no part. `known` are the `known_labels` of the batch, where `labels` are only a share of
    it. Gong et al. (CIKM 2022, section 4) train with the same weighted sum.
    """
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    known = known_labels(labels) if known is None else known
    per_task = (loss * ~labels.isnan()).flatten(0, -2).sum(0) / known.clamp(min=1)
    return per_task.sum() if weights is None else (per_task * weights).sum()


class RankerTraining:
    """Training of a ranker over windows of the log, in their order."""

    def __init__(
        self,
        samples: Samples,
        statistics: ItemStatistics,
        config: RankerTrainingConfig,
        *,
        learn_until: int,
        seed: int,
        rows: int,
        progress: Callable[[float], None] | None = None,
        log: Callable[[str, float, int], None] | None = None,
    ) -> None:
        """`samples` are of the first window; `rows` is the number of impressions of the whole log.

        Days from `learn_until` on are scored and not learned, with the item statistics as of `learn_until`. `progress` receives
        the share of the work that is done, 0 to 1, and `log` receives (name, value, step) of a training curve.
        """
        torch.manual_seed(seed)
        self._rng = np.random.default_rng(seed)
        self._ranker = FullRanker(config.ranker, samples, statistics.width)
        # The same at the beginning of a span: it shares what is not learned.
        self._before = copy.deepcopy(self._ranker, {id(buffer): buffer for buffer in self._ranker.buffers()}).eval()
        self._statistics, self._config, self._until = statistics, config, learn_until
        self._optimizer = RowAdam(self._ranker, config.learning_rate, rows_from=config.update_rows_from)
        shown = int((~np.isnan(samples.list_labels).all(2)).sum())
        self._lists_per_step = max(1, config.batch * len(samples.list_day) // max(1, shown))
        self._progress, self._log, self._step, self._learned = progress, log, 0, 0
        self._work = config.history_passes * int((samples.event_day < 0).sum()) + config.day_passes * rows

    @property
    def ranker(self) -> FullRanker:
        """The ranker that is trained, as it is now."""
        self._optimizer.catch_up()
        return self._ranker

    def window(self, samples: Samples, second_cut: Samples | None = None) -> list[NDArray[np.float32]]:
        """Score and then learn each day. Returns the scores [L, N, K] of `samples`, and of a second cut of the same window.

        The second cut has for example shorter lists with a fresher history: the same states of the ranker score them, and never
        learn them.
        """
        cuts = [RankerInputs(cut, self._statistics) for cut in (samples, second_cut) if cut is not None]
        scores = [np.zeros(cut.samples.list_labels.shape, np.float32) for cut in cuts]
        inputs = cuts[0]
        self._learn_history(inputs)
        last_day = _last_day(samples)
        for day in range(samples.first_window_day, samples.last_window_day + 1):
            for cut, pxtr in zip(cuts, scores, strict=True):
                _score(self.ranker, cut, np.flatnonzero(cut.samples.list_day == day), min(day, self._until), pxtr)
            self._validate(samples, day, scores[0])
            if day < self._until:
                self._learn_over(inputs, np.flatnonzero((last_day == day) & (samples.list_day >= 0)))
        return scores

    def learn_history(self, samples: Samples) -> None:
        """Learn the events from before the log of a shard. All shards follow before the first `begin_span`."""
        self._learn_history(RankerInputs(samples, self._statistics))

    def begin_span(self) -> None:
        """Keep the ranker as it is, for the scores of all shards of a span."""
        self._before.load_state_dict(self.ranker.state_dict())

    def shard(self, samples: Samples, day: int) -> NDArray[np.float32]:
        """Score all lists of a shard and then learn those that are over before the test days. Returns the scores [L, N, K].

        The scores are those of the ranker at `begin_span`, which had learned no other shard, with the item statistics as of
        `day`, the first of the span.
        """
        inputs, pxtr = RankerInputs(samples, self._statistics), np.zeros(samples.list_labels.shape, np.float32)
        logged = samples.list_day >= 0
        _score(self._before, inputs, np.flatnonzero(logged), min(day, self._until), pxtr)
        self._learn_over(inputs, np.flatnonzero(logged & (_last_day(samples) < self._until)))
        return pxtr

    def _validate(self, samples: Samples, day: int, pxtr: NDArray[np.float32]) -> None:
        """Log the AUC of a day that is scored and not yet learned (progressive validation)."""
        lists = np.flatnonzero(samples.list_day == day)
        if self._log and len(lists):
            for k, task in enumerate(samples.config.tasks):
                value = auc(samples.list_labels[lists, :, k].ravel(), pxtr[lists, :, k].ravel())
                if value is not None:
                    self._log(f"ranker/validation_auc/{task}", value, day)

    def _learn_history(self, inputs: RankerInputs) -> None:
        before = np.flatnonzero(inputs.samples.list_day < 0)
        for _ in range(self._config.history_passes):
            self._learn(inputs, before, -1)

    def _learn_over(self, inputs: RankerInputs, over: NDArray[np.int64]) -> None:
        # A pseudo-list may extend into later days: it is learned on the day of its last impression, with the statistics as of
        # the day on which it was scored.
        began = inputs.samples.list_day[over]
        for _ in range(self._config.day_passes):
            for day in np.unique(began).tolist():
                self._learn(inputs, over[began == day], day)

    def _learn(self, inputs: RankerInputs, lists: NDArray[np.int64], day: int) -> None:
        self._ranker.train()
        labels = torch.as_tensor(inputs.samples.list_labels)
        for chunk in _batches(self._rng.permutation(lists), self._lists_per_step):
            share, weight = ranks.share_of(len(chunk))
            logits = self._ranker(*inputs.rows(self._ranker, chunk[share], day))
            known = known_labels(labels[chunk])
            loss = weight * masked_log_loss(logits, labels[chunk[share], : logits.shape[1]], known=known)
            self._optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            ranks.sum_gradients(self._ranker.parameters())
            self._optimizer.step()
            self._step += 1
            if self._log and self._step % 20 == 0:
                self._log("ranker/loss", float(ranks.sum_array(loss.detach().numpy())), self._step)
            if self._progress:
                self._learned += int(inputs.length[chunk].sum())
                self._progress(min(1.0, self._learned / max(1, self._work)))


def _score(ranker: FullRanker, inputs: RankerInputs, lists: NDArray[np.int64], day: int, pxtr: NDArray[np.float32]) -> None:
    ranker.eval()
    for number, chunk in enumerate(_batches(lists, 1024)):
        if number % ranks.processes() == ranks.rank():
            with torch.no_grad():
                logits = ranker(*inputs.rows(ranker, chunk, day))
            pxtr[chunk.numpy(), : logits.shape[1]] = torch.sigmoid(logits).numpy()
    if ranks.processes() > 1:
        pxtr[lists] = ranks.sum_array(pxtr[lists])


def _last_day(samples: Samples) -> NDArray[np.int64]:
    """Return the day of the last impression of each list, -1 for those of the history."""
    last = np.full(len(samples.list_day), -1)
    np.maximum.at(last, samples.row_list, samples.event_day[samples.row_event])
    return last


def _batches(lists: NDArray[np.int64], size: int) -> Iterator[Tensor]:
    for i in range(0, len(lists), size):
        yield torch.as_tensor(lists[i : i + size])
