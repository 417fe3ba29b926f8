"""Item statistics as of a day: smoothed rates of the item, its author and its category, and the item's age.

Only events of earlier days count, so that a rate never contains the row that it is a feature of. Rates are the strongest
hand-made features of a full ranker.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.samples import Samples

__all__ = ["ItemStatistics"]

SMOOTHING = 20.0
"""Weight of the global rate, in impressions: about the median of an item's impressions in the slice of KuaiRand-Pure."""


class ItemStatistics:
    """Statistics of all items as of the beginning of a day."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self._known: dict[int, NDArray[np.float32]] = {}

    @cached_property
    def width(self) -> int:
        """Columns of `as_of`: for item, author and category one rate per task and a count; then duration, age, and whether the
        age is unknown."""
        return 3 * (len(self.samples.config.tasks) + 1) + 3

    def as_of(self, day: int) -> NDArray[np.float32]:
        """Return the statistics [I + 1, width] of the events before `day`.

        Day -1 has no events, and day 0 those from before the log.
        """
        if day not in self._known:
            self._known[day] = self._compute(day)
        return self._known[day]

    def _compute(self, day: int) -> NDArray[np.float32]:
        s = self.samples
        past = s.event_day < day
        item, labels = s.event_item[past], s.event_labels[past]
        known = ~np.isnan(labels)
        columns: list[NDArray[np.floating]] = []
        totals, positives = known.sum(0), np.where(known, labels, 0).sum(0)
        mean = (positives + 1) / (totals + 10)
        for group in (np.arange(len(s.item_ids)), s.item_author, s.item_category):
            size = int(group.max()) + 1
            of_event = group[item]
            for k in range(labels.shape[1]):
                shown = np.bincount(of_event, weights=known[:, k], minlength=size)
                taken = np.bincount(of_event, weights=np.where(known[:, k], labels[:, k], 0), minlength=size)
                rate = (taken + SMOOTHING * mean[k]) / (shown + SMOOTHING)
                columns.append(_logit(rate, mean[k])[group])
            columns.append(np.log1p(np.bincount(of_event, minlength=size))[group] / 4)
        age = np.maximum(max(day, 0) - s.item_upload_day, 0)
        columns += [np.log1p(s.item_duration_s) - 3, np.nan_to_num(np.log1p(age) / 2), np.isnan(age)]
        return np.stack(columns, 1).astype(np.float32)


def _logit(rate: NDArray[np.floating], mean: float) -> NDArray[np.floating]:
    """Return log odds, less those of the mean."""
    return np.log(rate / (1 - rate) * (1 - mean) / mean)
