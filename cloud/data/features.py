"""Features of the moment: counts and rates over time windows, and a user's latest items of one behaviour.

They are configured in the recipe, and defined here once, for training (`samples`) and for serving
(`pocketrank.cloud.pages.moment`)::

    [[part]]
    use = "features"
    statistics = [
      { of = "author", days = [1, 7], rates = ["engaged"], device = true },
      { of = ["user", "category"], days = [7], rates = ["engaged", "purchase"] },
    ]
    sequences = [{ behaviour = "purchase", length = 20 }]

A *behaviour* is a column of feedback on past events: one of `pocketrank.cloud.data.feedback.HISTORY_FEEDBACK`, a label that
feedback events carry (`click`, `follow`, …), or an action of the log's own. A window of d days is the day of the moment so far
and the d - 1 days before it, in the log's time zone.

Statistics of items, or of what items share, count the events of all users; those of a user, or of a user with what items share,
count the user's latest `user_events` events.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.time_zones import DAY_MS, day_start_ms, local_ms

__all__ = ["USER", "BehaviourSequence", "FeatureConfig", "RecentEvents", "Statistic", "Statistics"]

Int = NDArray[np.int64]
Float = NDArray[np.float32]

USER = "user"
"""Name of the user in `Statistic.of`."""
DAYS_MAX = 60
"""Longest window in days."""
EVENT_LABELS = ("click", "like", "follow", "comment", "share", "profile_enter", "dislike")
"""Labels that feedback events carry as fields of their own."""
_COUNT_SCALE = 4.0
_MEAN_LIMITS = (1e-4, 1 - 1e-4)


class Statistic(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Numbers of events, and rates of behaviours among them, over time windows. Raises `ValueError`."""

    of: str | tuple[str, ...]
    """What the events share with the candidate: `user`, `item`, `author`, `category` or another category of items, or `user`
    and one of these."""
    days: tuple[int, ...] = (1, 7)
    """Lengths of the windows in days, 1 to 60."""
    rates: tuple[str, ...] = ()
    """Behaviours whose rates are wanted beside the number of events."""
    device: bool = False
    """Whether the columns travel with the page and are inputs of the device model."""

    def __post_init__(self) -> None:
        of = self.keys
        if not 1 <= len(of) <= 2 or len(set(of)) < len(of) or (len(of) == 2 and of[0] != USER):
            raise ValueError(f"Expected one of `user`, `item`, `author` and categories, or `user` and one of them, got {of}")
        if not self.days or any(not 1 <= days <= DAYS_MAX for days in self.days) or len(set(self.days)) < len(self.days):
            raise ValueError(f"Expected windows of different lengths from 1 to {DAYS_MAX} days, got {self.days}")

    @property
    def keys(self) -> tuple[str, ...]:
        """`of` as a tuple."""
        return (self.of,) if isinstance(self.of, str) else self.of

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns, such as `author_count_7d` and `author_click_7d`, window by window."""
        of = "_".join(self.keys)
        return tuple(f"{of}_{what}_{days}d" for days in self.days for what in ("count", *self.rates))


class BehaviourSequence(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The latest items on which a user showed a behaviour. Raises `ValueError`."""

    behaviour: str
    length: int = 20
    """Largest number of items."""

    def __post_init__(self) -> None:
        if self.length < 1:
            raise ValueError(f"Expected a length of 1 or more, got {self.length}")


class FeatureConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Features of the moment that the full ranker has. Raises `ValueError`."""

    user_events: int = 200
    """Number of a user's latest events from which that user's statistics and sequences are made."""
    smoothing: float = 20.0
    """Weight of the mean of all events in a rate, in events."""
    statistics: tuple[Statistic, ...] = ()
    sequences: tuple[BehaviourSequence, ...] = ()

    def __post_init__(self) -> None:
        if self.user_events < 1 or not self.smoothing > 0:
            raise ValueError("Expected user_events of 1 or more and smoothing above 0")
        names = [*self.names, *(sequence.behaviour for sequence in self.sequences)]
        if repeated := {name for name in names if names.count(name) > 1}:
            raise ValueError(f"Expected each statistic and each sequence once, got {', '.join(sorted(repeated))} again")

    def __bool__(self) -> bool:
        return bool(self.statistics or self.sequences)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns of statistics."""
        return tuple(name for statistic in self.statistics for name in statistic.names)

    @property
    def device(self) -> tuple[int, ...]:
        """Places in `names` of the columns that travel with pages."""
        marks = [statistic.device for statistic in self.statistics for _ in statistic.names]
        return tuple(place for place, mark in enumerate(marks) if mark)

    @property
    def behaviours(self) -> tuple[str, ...]:
        """The behaviours of statistics and sequences, each once."""
        rates = [rate for statistic in self.statistics for rate in statistic.rates]
        return tuple(dict.fromkeys([*rates, *(sequence.behaviour for sequence in self.sequences)]))

    @property
    def shared(self) -> tuple[str, ...]:
        """Keys by which the events of all users are counted."""
        return tuple(dict.fromkeys(s.keys[0] for s in self.statistics if s.keys[0] != USER))

    @property
    def user_keys(self) -> tuple[str, ...]:
        """Keys by which a user's own events are counted."""
        return tuple(dict.fromkeys(s.keys[1] for s in self.statistics if len(s.keys) == 2))

    @property
    def days_max(self) -> int:
        """Longest window of what is shared, in days; 0 without one."""
        return max((days for s in self.statistics if s.keys[0] != USER for days in s.days), default=0)

    def labels(self, actions: Sequence[str]) -> tuple[str, ...]:
        """Return the behaviours that are columns of the history for these features alone. Raises `ValueError`."""
        others = tuple(name for name in self.behaviours if name not in (*HISTORY_FEEDBACK, *actions))
        if unknown := [name for name in others if name not in EVENT_LABELS]:
            known = ", ".join((*HISTORY_FEEDBACK, *EVENT_LABELS, *actions))
            raise ValueError(f"Expected behaviours among {known}, got {', '.join(unknown)}")
        return others


class RecentEvents(msgspec.Struct, frozen=True):
    """The h latest events of users, oldest first and padded at the front; the batch axes may be missing."""

    item: Int  # [*b, h] positions in the item tables, 0 = padding
    ms: Int  # [*b, h] milliseconds since the epoch; 0 for padding and for events from before the log
    feedback: Float  # [*b, h, F] in the order of the history's columns


class Statistics:
    """The columns of statistics of a config, whose history has these columns with these means."""

    def __init__(
        self,
        config: FeatureConfig,
        history: Sequence[str],
        means: Sequence[float],
        codes: Mapping[str, NDArray[np.integer[Any]]],
        time_zone: str,
    ) -> None:
        """`codes` are those of items by the names in `Statistic.of`, [I + 1] with 0 for unknown. Raises `ValueError`."""
        self.config, self.history, self.means, self.time_zone = config, tuple(history), tuple(means), time_zone
        rates = tuple(dict.fromkeys(rate for statistic in config.statistics for rate in statistic.rates))
        self._columns = [self.history.index(rate) for rate in rates]
        if unknown := [key for key in (*config.shared, *config.user_keys) if key not in codes]:
            raise ValueError(f"Expected statistics of `user` or of {', '.join(codes)}, got {', '.join(unknown)}")
        self.codes = {key: codes[key] for key in (*config.shared, *config.user_keys)}
        self._user_keys = config.user_keys
        self.names = config.names
        """Names of the columns."""
        self.width = 1 + len(rates)
        """Width of what is counted: events, and the sums of their behaviours."""
        # For each column, its window among all windows, and its place in what is counted: 0 is the number of events.
        windows = [statistic for statistic in config.statistics for _ in statistic.days]
        self._window = np.array([w for w, statistic in enumerate(windows) for _ in range(1 + len(statistic.rates))], np.int64)
        places = [(0, *(1 + rates.index(rate) for rate in statistic.rates)) for statistic in windows]
        self._place = np.array([place for of_window in places for place in of_window], np.int64)
        self._windows = len(windows)
        self._is_share = np.array([place > 0 and rates[place - 1] != "watch_log" for place in self._place], np.bool_)
        mean = np.array([means[self._columns[place - 1]] if place else 0.0 for place in self._place], np.float32)
        self._mean = np.where(self._is_share, mean.clip(*_MEAN_LIMITS), mean).astype(np.float32)

    def follow(self, codes: Mapping[str, NDArray[np.integer[Any]]]) -> None:
        """Go on with the codes of a catalogue that has changed."""
        for key in self.codes:
            self.codes[key] = codes[key]

    def with_means(self, means: Sequence[float]) -> Statistics:
        """Return the same statistics less other means."""
        return Statistics(self.config, self.history, means, self.codes, self.time_zone)

    def values(self, feedback: Float) -> Float:
        """Return what is counted of events: [*b, width] from feedback [*b, F]."""
        return np.concatenate([np.ones((*feedback.shape[:-1], 1), np.float32), feedback[..., self._columns]], -1)

    def by_day(self, item: Int, ms: Int, feedback: Float) -> tuple[tuple[int, ...], dict[str, Float]]:
        """Return the days of the longest window that ends with the last of these events [E], counted from 1 January 1970, and
        the counts [D, codes, width] by key; without statistics of all users nothing."""
        if not self.config.shared:
            return (), {}
        day, values = self.day(ms), self.values(feedback)
        days = range(int(day.max()) - self.config.days_max + 1, int(day.max()) + 1)
        at = (day >= days.start) & (item > 0)
        found: dict[str, Float] = {}
        for key in self.config.shared:
            counts = np.zeros((len(days), int(self.codes[key].max(initial=0)) + 1, self.width), np.float32)
            np.add.at(counts, (day[at] - days.start, self.codes[key][item[at]]), values[at])
            found[key] = counts
        return tuple(days), found

    def day(self, ms: Int) -> Int:
        """Return the days of moments [*b], counted from 1 January 1970 in the log's time zone."""
        return np.asarray(local_ms(ms, self.time_zone) // DAY_MS)

    def since(self, day: Int, days: int) -> Int:
        """Return when the windows of this length begin that end on each `day` [*b]."""
        first = np.asarray(day - (days - 1))
        unique, place = (first.reshape(-1), np.zeros(1, np.int64)) if first.ndim == 0 else np.unique(first, return_inverse=True)
        starts = np.array([day_start_ms(int(one), self.time_zone) for one in unique], np.int64)
        return starts[place.reshape(-1)].reshape(first.shape)

    def __call__(
        self,
        item: NDArray[np.integer[Any]],
        day: Int,
        recent: RecentEvents,
        shared: Callable[[str, int, NDArray[np.integer[Any]]], NDArray[Any]],
    ) -> Float:
        """Return the columns [*b, n, S] of candidates `item` [*b, n] at moments of each `day` [*b], after the events `recent`.

        `shared` takes a key, the days of a window and the codes [*b, n], and returns the counts [*b, n, width] of all users.
        """
        values, counts = self.values(recent.feedback), np.empty((*item.shape, self._windows, self.width), np.float32)
        keys = {key: codes[item] for key, codes in self.codes.items()}
        same = {
            key: ((keys[key][..., :, None] == self.codes[key][recent.item][..., None, :]) & (keys[key] > 0)[..., None]).astype(
                np.float32
            )
            for key in self._user_keys
        }
        window = 0
        for statistic in self.config.statistics:
            first, *rest = statistic.keys
            for days in statistic.days:
                if first != USER:
                    counts[..., window, :] = shared(first, days, keys[first])
                else:
                    within = values * (recent.ms >= self.since(day, days)[..., None])[..., None]
                    counts[..., window, :] = same[rest[0]] @ within if rest else within.sum(-2, keepdims=True)
                window += 1
        return self._columns_of(counts)

    def _columns_of(self, counts: Float) -> Float:
        """Return the number of events, as log1p(n) / 4, and the rates less the mean: log odds for shares, else values."""
        columns, mean, smoothing = counts[..., self._window, self._place], self._mean, self.config.smoothing
        is_count, is_share = self._place == 0, self._is_share
        rates = (columns + smoothing * mean) / (counts[..., self._window, 0] + np.float32(smoothing)) - mean * ~is_share
        share, middle = rates[..., is_share], mean[is_share]
        rates[..., is_share] = np.log(share / (1 - share) * ((1 - middle) / middle))
        rates[..., is_count] = np.log1p(columns[..., is_count]) / np.float32(_COUNT_SCALE)
        made: Float = rates.astype(np.float32)
        return made
