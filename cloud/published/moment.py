"""Features of the moment in serving: what `pocketrank.cloud.data.features` defines, for the candidates of one request."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.features import RecentEvents, Statistics
from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.published.published import Published, PublishedError, PublishedRecord

__all__ = ["Moment", "MomentInputs", "published_statistics", "statistics_codes"]

Counts = Callable[[str, int, NDArray[np.integer[Any]]], NDArray[Any]]


class MomentInputs(NamedTuple):
    """Inputs of the ranker for n candidates."""

    statistics: NDArray[np.float32]
    """[n, S]"""
    sequence: NDArray[np.int64]
    """[q, t] positions in the item tables of each sequence's items, oldest first and padded at the front"""
    sequence_mask: NDArray[np.float32]
    """[q, t]"""


class Moment:
    """Maker of the features of the moment that a run was trained with."""

    def __init__(
        self, statistics: Statistics, counts: Callable[[int], Counts] | None, clock: Callable[[], float] = time
    ) -> None:
        """`counts` takes a time and returns the counts of all users as of then (`Statistics.__call__`); `clock` returns seconds
        since the epoch."""
        self.statistics, self._counts, self._clock = statistics, counts, clock
        config = statistics.config
        self._sequences = [(statistics.history.index(one.behaviour), one.length) for one in config.sequences]
        self._shape = len(config.sequences), max((one.length for one in config.sequences), default=0)

    @property
    def nothing(self) -> MomentInputs:
        """What a user without events has, of one candidate of whom nothing was counted."""
        width = len(self.statistics.names)
        return MomentInputs(
            np.zeros((1, width), np.float32), np.zeros(self._shape, np.int64), np.zeros(self._shape, np.float32)
        )

    def __call__(self, item: NDArray[np.int64], now_ms: int, recent: RecentEvents) -> MomentInputs:
        """Return the features of candidates at positions `item` [n] for a user with these latest events.

        The moment is that of the device's clock, but not before the last event and not after this clock.
        """
        now_ms = max(0, min(now_ms, int(1000 * self._clock())), *recent.ms[-1:].tolist())
        shared = self._counts(now_ms) if self._counts else _nobody
        statistics = self.statistics(item, self.statistics.day(np.array(now_ms)), recent, shared)
        sequence, mask = np.zeros(self._shape, np.int64), np.zeros(self._shape, np.float32)
        for i, (column, length) in enumerate(self._sequences):
            showing = recent.item[recent.feedback[:, column] > 0][-length:]
            if len(showing):
                sequence[i, -len(showing) :], mask[i, -len(showing) :] = showing, 1
        return MomentInputs(statistics, sequence, mask)


def published_statistics(published: Published, record: PublishedRecord) -> Statistics:
    """Return the statistics of the moment that a run was trained with, perhaps none. Raises `PublishedError`."""
    features, codes = record.features, statistics_codes(np.asarray(published.item_category), record.category_names)
    history = (*HISTORY_FEEDBACK, *record.actions)
    try:
        return Statistics(features.config, history, features.means, codes, record.time_zone)
    except ValueError as error:
        raise PublishedError(str(error)) from error


def statistics_codes(categories: NDArray[np.int32], names: Sequence[str]) -> dict[str, NDArray[np.integer[Any]]]:
    """Return the codes of items by which statistics count, from their categories [I, C] of these names."""
    return {"item": np.arange(len(categories)), **dict(zip(names, categories.T, strict=True))}


def _nobody(key: str, days: int, code: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
    raise AssertionError("statistics of all users need counts")
