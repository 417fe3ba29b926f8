"""Trains the full ranker the way production does: one pass over the log in time order, each day scored before it is learned.

The scores that come out were all made by a model that had never seen the row (nor anything later), so they can be inputs of
the device model. What is known from before the log is learned first.
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

__all__ = ["RankerInputs", "StreamConfig", "StreamResult", "masked_log_loss", "stream"]


@dataclass(frozen=True)
class StreamConfig:
    """How the ranker learns."""

    ranker: FullRankerConfig = FullRankerConfig()
    """Its widths."""
    batch: int = 512
    """Labelled impressions of a step, about; whole lists go together."""
    learning_rate: float = 2e-3
    """Of Adam (Kingma & Ba 2015), dense parameters and tables alike."""
    history_passes: int = 1
    """Passes over what is known from before the log."""
    day_passes: int = 1
    """Passes over each day after it was scored."""


@dataclass(frozen=True)
class StreamResult:
    """A trained ranker and the scores it gave to every list before learning it."""

    ranker: FullRanker
    pxtr: NDArray[np.float32]  # [L, N, K]
    also: NDArray[np.float32] | None = None  # [L', N', K] of the second cut


class RankerInputs:
    """Assembles the ranker's inputs for batches of lists."""

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
        """Event indices [b, h] of the last `length` events of each user before `end`, and their mask; h is the longest."""
        first = torch.maximum(self.start[user], end - length)
        h = max(1, int((end - first).max()))
        index = end[:, None] - h + torch.arange(h)
        mask = index >= first[:, None]
        return index.clamp(min=0), mask.float()

    def rows(self, ranker: FullRanker, lists: Tensor, day: int) -> tuple[Tensor, ...]:
        """The arguments of `FullRanker.forward` for `lists`, with statistics as of `day`."""
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
    """Log loss summed over tasks, by their `weights` if given, averaged over known labels; NaN labels are unknown."""
    known = ~labels.isnan()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, labels.nan_to_num(), reduction="none")
    per_task = (loss * known).flatten(0, -2).sum(0) / known.flatten(0, -2).sum(0).clamp(min=1)
    return per_task.sum() if weights is None else (per_task * weights).sum()


def stream(
    samples: Samples,
    statistics: ItemStatistics,
    config: StreamConfig,
    *,
    learn_until: int,
    seed: int,
    also: Samples | None = None,
    progress: Callable[[float], None] | None = None,
    log: Callable[[str, float, int], None] | None = None,
) -> StreamResult:
    """Score and learn day by day; days from `learn_until` on are scored only, with the statistics as of that day.

    `also` is another cut of the same log into lists, say shorter ones that know a fresher history: they are scored by the same
    states of the ranker and never learned. `progress` gets the share done; `log` gets (name, value, step) for a training curve.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    ranker = FullRanker(config.ranker, samples, statistics.width)
    inputs = RankerInputs(samples, statistics)
    cuts = [(inputs, samples.list_day, np.zeros(samples.list_labels.shape, np.float32))]
    if also is not None:
        cuts.append((RankerInputs(also, statistics), also.list_day, np.zeros(also.list_labels.shape, np.float32)))
    optimizer = torch.optim.Adam(ranker.parameters(), config.learning_rate, fused=True)
    labels = torch.as_tensor(samples.list_labels)
    shown = int((~np.isnan(samples.list_labels).all(2)).sum())
    lists_per_step = max(1, config.batch * len(samples.list_day) // max(1, shown))
    before = np.flatnonzero(samples.list_day < 0)
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
    # a pseudo-list may go on into later days: it is learned when its last impression is over, as of the day that it was scored
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
    return StreamResult(ranker, *(pxtr for _, _, pxtr in cuts))


def _batches(lists: NDArray[np.int64], size: int) -> Iterator[Tensor]:
    for i in range(0, len(lists), size):
        yield torch.as_tensor(lists[i : i + size])
