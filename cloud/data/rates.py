"""Item statistics as of a day: smoothed rates of the item, its author and its category, and the item's age.

Only events of earlier days count, so that a rate never contains the row that it is a feature of. Rates are the strongest
hand-made features of a full ranker.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.samples import Samples

__all__ = ["ItemStatistics", "smoothed_rates"]

SMOOTHING = 20.0
"""Weight of the global rate, in impressions: about the median of an item's impressions in the slice of KuaiRand-Pure."""


class ItemStatistics:
    """Statistics of all items, of the events before a window of the log and of those in it."""

    def __init__(self, samples: Samples) -> None:
        """`samples` are of the first window."""
        self._groups = [np.arange(len(samples.item_ids)), samples.item_author, samples.item_category]
        tasks = len(samples.config.tasks)
        self._counts = [np.zeros((int(group.max()) + 1, 2 * tasks + 1)) for group in self._groups]
        """By group of items: [G, 2 K + 1] number of known labels, of positive ones, and of events."""
        self._added = [np.zeros_like(counts) for counts in self._counts]
        self._window: Samples | None = samples
        self._entities, self._known = samples, dict[int, NDArray[np.float32]]()

    @property
    def width(self) -> int:
        """Columns of `as_of`: for item, author and category one rate per task and a count; then duration, age, and whether the
        age is unknown."""
        return 3 * (len(self._entities.config.tasks) + 1) + 3

    def enter(self, samples: Samples | None) -> None:
        """Go on to a window, whose own days count for the days after them; with None they do not. What was `add`ed before
        counts from now on."""
        self._window = samples
        for counts, added in zip(self._counts, self._added, strict=True):
            counts += added
            added[:] = 0
        until = self._entities.learn_until
        self._known = {day: values for day, values in self._known.items() if day == until}

    def add(self, samples: Samples) -> None:
        """Count the events of a window, for the later ones."""
        for counts, more in zip(self._added, self._count(samples, samples.event_fresh), strict=True):
            counts += more

    def totals(self) -> list[NDArray[np.float64]]:
        """Return the counts [G, 2 K + 1] of all events so far by item, author and category: known labels and positive ones of
        each task, and events."""
        window = self._window
        of_window = None if window is None else self._count(window, window.event_fresh)
        return [counts + (0 if of_window is None else of_window[i]) for i, counts in enumerate(self._counts)]

    def as_of(self, day: int) -> NDArray[np.float32]:
        """Return the statistics [I + 1, width] of the events before `day`.

        Day -1 has no events, and day 0 those from before the log. Of the days before the window only the first test day is
        known.
        """
        if day not in self._known:
            self._known[day] = self._compute(day)
        return self._known[day]

    def _count(self, s: Samples, events: NDArray[np.bool_]) -> list[NDArray[np.float64]]:
        item, labels = s.event_item[events], s.event_labels[events]
        columns = np.concatenate([~np.isnan(labels), np.nan_to_num(labels), np.ones((len(item), 1))], 1)
        out = []
        for group, counts in zip(self._groups, self._counts, strict=True):
            of_event = group[item]
            sums = [np.bincount(of_event, weights=values, minlength=len(counts)) for values in columns.T]
            out.append(np.stack(sums, 1).astype(np.float64))  # without events they are integers
        return out

    def _compute(self, day: int) -> NDArray[np.float32]:
        s, counts = self._entities, self._counts
        if self._window is not None:
            past = self._window.event_fresh & (self._window.event_day < day)
            counts = [x + y for x, y in zip(counts, self._count(self._window, past), strict=True)]
        tasks = len(s.config.tasks)
        columns: list[NDArray[np.floating]] = []
        totals, positives = counts[0][:, :tasks].sum(0), counts[0][:, tasks:-1].sum(0)
        mean = (positives + 1) / (totals + 10)
        for group, of_group in zip(self._groups, counts, strict=True):
            columns += list(smoothed_rates(of_group, mean)[group].T)
        start = s.day_start[day] if day < s.days else s.day_start[-1] + 1
        age = np.maximum(max(start if day >= 0 else 0, 0) - s.item_upload_day, 0)
        columns += [np.log1p(s.item_duration_s) - 3, np.nan_to_num(np.log1p(age) / 2), np.isnan(age)]
        return np.stack(columns, 1).astype(np.float32)


def smoothed_rates(counts: NDArray[np.float64], mean: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the statistics [G, K + 1] of counts [G, 2 K + 1]: smoothed rates of the tasks as log odds, less those of their
    means [K], and log1p(events) / 4."""
    tasks = len(mean)
    rate = (counts[:, tasks:-1] + SMOOTHING * mean) / (counts[:, :tasks] + SMOOTHING)
    return np.concatenate([_logit(rate, mean), np.log1p(counts[:, -1:]) / 4], 1)


def _logit(rate: NDArray[np.floating], mean: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return log odds, less those of the mean."""
    return np.asarray(np.log(rate / (1 - rate) * (1 - mean) / mean))
