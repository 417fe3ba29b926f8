"""Passes over the windows of a log, as trainings make them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pocketrank.cloud.data.latest_events import LatestEvents
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import SampleStream, Span
from pocketrank.cloud.data.samples import LogFacts, Samples
from pocketrank.cloud.files import replacing
from pocketrank.cloud.training import ranks
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


def _validation_from(facts: LogFacts, config: DeviceModelConfig) -> int:
    return facts.learn_until - (config.validation_days if config.patience else 0)


def held_out_rows(samples: Samples) -> np.ndarray:
    """Return the rows [r] of the test days."""
    return np.flatnonzero(samples.event_day[samples.row_event] >= samples.learn_until)


class Passes:
    """Passes over the windows of a log. A log of one window stays in memory from one pass to the next."""

    def __init__(self, stream: SampleStream) -> None:
        self.stream = stream
        self._only: tuple[Span, Samples, ItemStatistics] | None = None
        span = next(stream.spans())
        if span.end == stream.facts.days and span.shards == 1:
            samples = span.build(0)
            self._only = span, samples, ItemStatistics(samples)

    def training_rows(self, config: DeviceModelConfig) -> int:
        """Return the number of training rows of device models, about where the log is large."""
        if self._only is not None:
            return len(training_rows(self._only[1], config))
        warm_up = warm_up_days(self.stream.facts.has_history, config)
        return int(self.stream.day_rows[warm_up : _validation_from(self.stream.facts, config)].sum())

    def windows(self, pxtr: Path | None = None, latest: LatestEvents | None = None) -> Iterator[tuple[Samples, ItemStatistics]]:
        """Return the windows in the order of time, with the statistics of the items.

        `pxtr` is the folder of the scores of the rows, by window. Into `latest` go the events of each window that was used.
        """
        for span, shard, samples, statistics in self._walk(latest):
            if pxtr is not None:
                samples = samples.with_pxtr(np.load(pxtr / f"{span.index}-{shard}.npy"))
            if len(samples.row_event):  # few users may leave a shard empty
                yield samples, statistics
            del samples  # before the next are made

    def train_ranker(self, training: Callable[[Samples, ItemStatistics], RankerTraining], pxtr: Path) -> RankerTraining:
        """Train a ranker on all windows, and write the scores [R, K] of the rows of each into the folder `pxtr`."""
        pxtr.mkdir(exist_ok=True)
        made: RankerTraining | None = None
        for span, shard, samples, statistics in self._walk():
            made = made or training(samples, statistics)
            if span.shards > 1 and shard == 0:
                if span.index == 0 and samples.has_history:
                    for each in range(span.shards):
                        made.learn_history(span.build(each))
                made.begin_span()
            scores = made.window(samples)[0] if span.shards == 1 else made.shard(samples, span.first)
            if ranks.is_first():
                save_array(pxtr / f"{span.index}-{shard}.npy", scores[samples.row_list, samples.row_slot])
            del samples, scores  # before the next are made
        assert made is not None
        ranks.barrier()
        return made

    def _walk(self, latest: LatestEvents | None = None) -> Iterator[tuple[Span, int, Samples, ItemStatistics]]:
        """Return each shard of each span, with its samples and the statistics of the items."""
        if self._only is not None:
            span, samples, statistics = self._only
            yield span, 0, samples, statistics
            if latest is not None:
                latest.add(samples.fresh())
            return
        known: ItemStatistics | None = None
        for span in self.stream.spans(latest):
            for shard in range(span.shards):
                samples = span.build(shard)
                known = known or ItemStatistics(samples)
                if shard == 0:
                    known.enter(samples if span.shards == 1 else None)
                yield span, shard, samples, known
                known.add(samples)
                span.done(samples)
                del samples  # before the next are made
            assert known is not None
            known.enter(None)


def save_array(path: Path, array: np.ndarray) -> None:
    """Write an array to `path` as NPY, atomically. Raises OSError."""
    with replacing(path) as part, part.open("wb") as file:  # numpy appends `.npy` to a path of another name
        np.save(file, array)
