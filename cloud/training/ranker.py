"""Training of the cloud's full ranker (`pocketrank.cloud.models.full_ranker`), day by day, as production trains it.

One pass over the log in the order of time: each day is scored before it is learned. All scores are therefore those of a model
that had seen neither the row nor anything later, and can be inputs of the device model. Events from before the log are learned
first. The ranking of a page on the device is in `pocketrank.device.ranking.ranker`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import Samples
from pocketrank.cloud.models.full_ranker import FullRanker, FullRankerConfig

__all__ = ["RankerInputs", "RankerTrainingConfig", "TrainedRanker", "masked_log_loss", "train_ranker"]


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


@dataclass(frozen=True)
class TrainedRanker:
    """A trained ranker, and its scores of every list from before it learned the list."""

    ranker: FullRanker
    pxtr: NDArray[np.float32]  # [L, N, K]
    second_pxtr: NDArray[np.float32] | None = None  # [L', N', K] of the second cut


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

    def window(self, user: Tensor, end: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Return the indices [b, h] of the last `length` events of each user before event `end`, and their mask [b, h].

        h is the number of events of the user who has the most, at least 1; shorter histories are padded at the front.
        """
        first = torch.maximum(self.start[user], end - length)
        h = max(1, int((end - first).max()))
        index = end[:, None] - h + torch.arange(h)
        mask = index >= first[:, None]
        return index.clamp(min=0), mask.float()

    def rows(self, ranker: FullRanker, lists: Tensor, day: int) -> tuple[Tensor, ...]:
        """Return the arguments of `FullRanker.forward` for `lists`, with the item statistics as of `day`."""
        s = self.samples
        index, mask = self.window(self.list_user[lists], self.list_event[lists], s.config.history_max)
        width = max(1, int(self.length[lists].max()))
        item, past = self.list_item[lists, :width], self.item[index]
        statistics = torch.from_numpy(self.statistics.as_of(day))[item]
        return (
            ranker.user(self.list_user[lists]),
            ranker.identity(past),
            self.feedback[index],
            mask,
            ranker.item_rows(item, statistics),
            self.list_scene[lists, :width],
            self.list_hour[lists, :width],
        )


def masked_log_loss(
    logits: Float[Tensor, "*b k"], labels: Float[Tensor, "*b k"], weights: Float[Tensor, " k"] | None = None
) -> Float[Tensor, ""]:
    """Return the log loss, averaged over the known labels of each task and summed over tasks, weighted by `weights`.

    A NaN label is unknown and takes no part. Gong et al. (CIKM 2022, section 4) train with the same weighted sum.
    """
    known = ~labels.isnan()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    per_task = (loss * known).flatten(0, -2).sum(0) / known.flatten(0, -2).sum(0).clamp(min=1)
    return per_task.sum() if weights is None else (per_task * weights).sum()


def train_ranker(
    samples: Samples,
    statistics: ItemStatistics,
    config: RankerTrainingConfig,
    *,
    learn_until: int,
    seed: int,
    second_cut: Samples | None = None,
    progress: Callable[[float], None] | None = None,
    log: Callable[[str, float, int], None] | None = None,
) -> TrainedRanker:
    """Train a ranker: score and then learn each day before `learn_until`, and only score the days from it on.

    The days from `learn_until` on are scored with the item statistics as of `learn_until`. `second_cut` is another cut of the
    same log into lists, for example shorter ones with a fresher history: the same states of the ranker score these lists, and
    never learn them. `progress` receives the share of the work that is done, 0 to 1, and `log` receives (name, value, step) of
    a training curve.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    ranker = FullRanker(config.ranker, samples, statistics.width)
    inputs = RankerInputs(samples, statistics)
    cuts = [(inputs, samples.list_day, np.zeros(samples.list_labels.shape, np.float32))]
    if second_cut is not None:
        scores = np.zeros(second_cut.list_labels.shape, np.float32)
        cuts.append((RankerInputs(second_cut, statistics), second_cut.list_day, scores))
    optimizer = torch.optim.Adam(ranker.parameters(), config.learning_rate, fused=True)
    labels = torch.as_tensor(samples.list_labels)
    shown = int((~np.isnan(samples.list_labels).all(2)).sum())
    lists_per_step = max(1, config.batch * len(samples.list_day) // max(1, shown))
    before = np.flatnonzero(samples.list_day < 0)
    # For `progress`, to score a list counts as half the work of learning it.
    work = config.history_passes * len(before) + (config.day_passes + 0.5) * (len(samples.list_day) - len(before))
    done = step = 0

    def learn(lists: NDArray[np.int64], day: int) -> None:
        nonlocal done, step
        ranker.train()
        for chunk in _batches(rng.permutation(lists), lists_per_step):
            arguments = inputs.rows(ranker, chunk, day)
            logits = ranker(*arguments)
            loss = masked_log_loss(logits, labels[chunk, : logits.shape[1]])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            step, done = step + 1, done + len(chunk)
            if log and step % 20 == 0:
                log("ranker/loss", float(loss.detach()), step)
            if progress:
                progress(min(1.0, done / work))

    def score(day: int) -> None:
        nonlocal done
        ranker.eval()
        for cut, list_day, pxtr in cuts:
            for chunk in _batches(np.flatnonzero(list_day == day), 1024):
                with torch.no_grad():
                    logits = ranker(*cut.rows(ranker, chunk, min(day, learn_until)))
                pxtr[chunk.numpy(), : logits.shape[1]] = torch.sigmoid(logits).numpy()
                done += len(chunk) // 2

    for _ in range(config.history_passes):
        learn(before, -1)
    # A pseudo-list may extend into later days: it is learned on the day of its last impression, with the statistics as of the
    # day on which it was scored.
    last_day = np.full(len(samples.list_day), -1)
    np.maximum.at(last_day, samples.row_list, samples.event_day[samples.row_event])
    for day in range(samples.days):
        score(day)
        if day < learn_until:
            over = np.flatnonzero((last_day == day) & (samples.list_day >= 0))
            for _ in range(config.day_passes):
                for began in np.unique(samples.list_day[over]).tolist():
                    learn(over[samples.list_day[over] == began], began)
    ranker.eval()
    return TrainedRanker(ranker, *(pxtr for _, _, pxtr in cuts))


def _batches(lists: NDArray[np.int64], size: int) -> Iterator[Tensor]:
    for i in range(0, len(lists), size):
        yield torch.as_tensor(lists[i : i + size])
