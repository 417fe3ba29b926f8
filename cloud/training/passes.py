"""Passes over the windows of a log, as trainings make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pocketrank.cloud.data.latest_events import LatestEvents
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import Samples, SampleStream
from pocketrank.cloud.files import replacing
from pocketrank.cloud.training.device_model import DeviceModelConfig
from pocketrank.cloud.training.ranker import RankerTraining

__all__ = ["Passes", "save_array", "held_out_rows", "training_rows", "validation_rows", "warm_up_days"]


def warm_up_days(has_history: bool, config: DeviceModelConfig) -> int:
    """Return the number of first days that the ranker scored before it had learned enough; 0 for a log with history."""
    return 0 if has_history else config.warm_up_days


def training_rows(samples: Samples, config: DeviceModelConfig) -> np.ndarray:
    """Return the rows [r] that device models learn from: after the ranker's warm-up, before the validation and test days."""
    day, list_day = samples.event_day[samples.row_event], samples.list_day[samples.row_list]
    return np.flatnonzero((day < _validation_from(samples, config)) & (list_day >= warm_up_days(samples.has_history, config)))


def validation_rows(samples: Samples, config: DeviceModelConfig) -> np.ndarray:
    """Return the rows [r] of the last training days, on which a training with early stopping is validated."""
    day = samples.event_day[samples.row_event]
    return np.flatnonzero((day >= _validation_from(samples, config)) & (day < samples.learn_until))


def _validation_from(source: Samples | SampleStream, config: DeviceModelConfig) -> int:
    return source.learn_until - (config.validation_days if config.patience else 0)


def held_out_rows(samples: Samples) -> np.ndarray:
    """Return the rows [r] of the test days."""
    return np.flatnonzero(samples.event_day[samples.row_event] >= samples.learn_until)


class Passes:
    """Passes over the windows of a log. A log of one window stays in memory from one pass to the next."""

    def __init__(self, stream: SampleStream) -> None:
        self.stream = stream
        self._only: tuple[Samples, ItemStatistics] | None = None
        spans = stream.spans()
        span = next(spans)
        if span.end == stream.days and span.shards == 1:
            samples = span.build(0)
            self._only = samples, ItemStatistics(samples)

    def training_rows(self, config: DeviceModelConfig) -> int:
        """Return the number of training rows of device models, about where the log is large."""
        if self._only is not None:
            return len(training_rows(self._only[0], config))
        warm_up = warm_up_days(len(self.stream.log.history) > 0, config)
        return int(self.stream.day_rows[warm_up : _validation_from(self.stream, config)].sum())

    def windows(self, pxtr: Path | None = None, latest: LatestEvents | None = None) -> Iterator[tuple[Samples, ItemStatistics]]:
        """Return the windows in the order of time, with the statistics of the items.

        `pxtr` is the folder of the scores of the rows, by window. Into `latest` go the events of each window that was used.
        """
        if self._only is not None:
            samples = self._only[0]
            yield (samples if pxtr is None else samples.with_pxtr(np.load(pxtr / "0-0.npy"))), self._only[1]
            if latest is not None:
                latest.add(samples.fresh())
            return
        statistics: ItemStatistics | None = None
        for span in self.stream.spans(latest):
            for shard in range(span.shards):
                samples = span.build(shard)
                if pxtr is not None:
                    samples = samples.with_pxtr(np.load(pxtr / f"{span.index}-{shard}.npy"))
                if statistics is None:
                    statistics = ItemStatistics(samples)
                if shard == 0:
                    statistics.enter(samples if span.shards == 1 else None)
                if len(samples.row_event):  # few users may leave a shard empty
                    yield samples, statistics
                statistics.add(samples)
                span.done(samples)
        if statistics is not None:
            statistics.enter(None)

    def train_ranker(self, training: Callable[[Samples, ItemStatistics], RankerTraining], pxtr: Path) -> RankerTraining:
        """Train a ranker on all windows, and write the scores [R, K] of the rows of each into the folder `pxtr`."""
        pxtr.mkdir(exist_ok=True)
        if self._only is not None:
            made = training(*self._only)
            save_array(pxtr / "0-0.npy", _row_scores(self._only[0], made.window(self._only[0])[0]))
            return made
        begun: tuple[ItemStatistics, RankerTraining] | None = None
        for span in self.stream.spans():
            for shard in range(span.shards):
                samples = span.build(shard)
                if begun is None:
                    statistics = ItemStatistics(samples)
                    begun = statistics, training(samples, statistics)
                statistics, made = begun
                if shard == 0:
                    statistics.enter(samples if span.shards == 1 else None)
                scores = made.window(samples)[0] if span.shards == 1 else made.score(samples, span.first)
                save_array(pxtr / f"{span.index}-{shard}.npy", _row_scores(samples, scores))
                if span.shards == 1:
                    statistics.add(samples)
                    span.done(samples)
            for shard in range(span.shards if span.shards > 1 else 0):
                # All shards were scored before any is learned.
                samples = span.build(shard)
                made.learn(samples)
                statistics.add(samples)
                span.done(samples)
        assert begun is not None
        return begun[1]


def _row_scores(samples: Samples, scores: np.ndarray) -> np.ndarray:
    return np.asarray(scores[samples.row_list, samples.row_slot])


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array to `path` as NPY, atomically. Raises OSError."""
    with replacing(path) as part, part.open("wb") as file:  # numpy appends `.npy` to a path of another name
        np.save(file, array)
