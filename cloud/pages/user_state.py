"""The state of each user in serving: the published history and every feedback event that was accepted since.

The states follow from the events in the order of the feedback log, each applied by itself: however they are cut into calls, and
whoever accepted them, the same log makes the same states. A user's events are sorted by when they happened (impression time as
corrected in the log, then position, then place in the log) and not by when they arrived.

The published history of a user ends at a known time (`Published.history_until_ms`). Events of the log from up to then are in it
already, so they are no part of the user's history again. They still count as seen: the published history has a user's last
events only. Where the time is unknown, published events count as older than all others.

A user has a separate state for each experiment. It starts from the published history, and only events of that experiment change
it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from hashlib import blake2b
from operator import attrgetter
from threading import Lock
from time import time
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.features import RecentEvents, Statistics
from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.pages.live_counts import LiveCounts, SavedCounts
from pocketrank.cloud.published.ids import IdLookup
from pocketrank.cloud.published.live_rows import LiveRows
from pocketrank.cloud.published.moment import published_statistics
from pocketrank.cloud.published.onnx_ranker import History
from pocketrank.cloud.published.published import Published, PublishedError, PublishedRecord
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, LONG_VIEW_MS, FeedbackEvent

__all__ = [
    "EVENTS_MAX",
    "EXPERIMENTS_MAX",
    "SEEN_MAX",
    "KeptUser",
    "Rows",
    "UserState",
    "UserStates",
    "logged_rows",
]

_OLDEST = np.iinfo(np.int64).min
_LAST_POSITION = np.iinfo(np.int64).max

Int = NDArray[np.int64]
Float = NDArray[np.float32]
Rows = NDArray[np.int64]
"""[e, W] the e events kept of one user in an experiment, oldest first. One array of words is joined and copied in a
quarter of the time that one array for each column takes, and is smaller for the few events that most users have. W is
`UserStates.row_words`."""

SEEN_MAX = 2000
"""Default number of a user's latest events that are kept."""
EVENTS_MAX = 20_000_000
"""Default number of events that are kept of all users, some 1 GB. Beyond it the users go whose feedback is oldest; what they
did since the last training is then known to the log alone."""
EXPERIMENTS_MAX = 8
"""Number of experiments that a user has states in. Beyond it the one goes that changed first."""
_WINDOW_COST = 32
"""What a state takes beside its events, in events."""
_BUCKETS = 4096
"""Parts in which the states are copied. With 100,000 users one is copied in some 10 µs."""

_MS, _POSITION, _PLACE, _REST = range(4)
"""Words of a row. The rest are words of 4 bytes: the item, and the feedback."""
_PUBLISHED = -1
"""Place of a published event, which is in no log."""

_columns = attrgetter("item_id", "watch_ms", "like", "click", "impression_ms", "position")


class UserState(NamedTuple):
    """Snapshot of a user; later feedback makes a new one."""

    history: History
    """The last `history_max` events, oldest first, each counted once."""
    seen: Int
    """[s] item positions of all events kept, repeats possible"""
    recent: RecentEvents | None
    """The latest events that features of the moment are made of; None without such features."""


class KeptUser(NamedTuple):
    """What is kept of a user. Later feedback makes a new one."""

    place: int
    """Place in the log of the last event that changed it."""
    windows: Mapping[str | None, Rows]
    """By experiment, the one that changed last at the end."""

    @property
    def cost(self) -> int:
        """Size in memory, in events."""
        return sum(map(_cost, self.windows.values()))


_NOBODY = KeptUser(_PUBLISHED, {})


class UserStates:
    """States of all users, the latest `events_max` events of them. Safe to call from several threads: what is kept of a user is
    replaced, never written to.
    """

    def __init__(
        self,
        published: Published,
        record: PublishedRecord,
        seen_max: int = SEEN_MAX,
        events_max: int = EVENTS_MAX,
        *,
        items: LiveRows | None = None,
        statistics: Statistics | None = None,
    ) -> None:
        """`items` are the rows of items and `statistics` the features of the moment where they change, by default those of
        `published`."""
        self._history_max, features = record.history_max, record.features
        self._user_events = features.config.user_events if features.config else 0
        self._published_max = published.history_item.shape[1]
        self._keep = max(seen_max, self._published_max)
        statistics = statistics or published_statistics(published, record)
        self.counts = LiveCounts(published.counts, features, statistics) if features.config.shared else None
        """What all users did, for features of the moment; None where none of these needs it."""
        self._items = items or LiveRows(published.item_id, {"item_float": published.item_float})
        self._users = IdLookup(published.user_id)
        self._history_item = np.asarray(published.history_item)
        self._history_feedback = np.asarray(published.history_feedback, np.float32)
        self._history_counts: list[int] = (self._history_item > 0).sum(1).tolist()  # padding is at the front
        self._history_counts[0] = 0  # an unknown user has no history
        self._history_until_ms = np.asarray(published.history_until_ms)
        self._history_ms = np.asarray(published.history_ms)
        if "duration_ms" not in record.float_names:
            raise PublishedError(f"Expected a published column `duration_ms`, got {', '.join(record.float_names)}")
        self.actions = record.actions
        """Names of the app's own actions that are in the rows."""
        width = len(HISTORY_FEEDBACK) + len(record.actions)
        if published.history_feedback.shape[2] != width:
            got = published.history_feedback.shape[2]
            raise PublishedError(f"Expected {width} feedback values per history event, got {got}")
        self._feedback = slice(1, 1 + width)  # of the 4-byte words
        self.row_words = _REST + (2 + width) // 2
        """Width of a row in words of 8 bytes."""
        self._no_rows = np.zeros((0, self.row_words), np.int64)
        self._duration = record.float_names.index("duration_ms")
        self._kept: list[dict[int, KeptUser]] = [{} for _ in range(_BUCKETS)]
        self._copies: list[dict[int, KeptUser] | None] | None = None
        """Copies of parts that changed since `copies` was called; None while nobody copies."""
        self._recent: OrderedDict[int, None] = OrderedDict()
        """The users, the one that changed last at the end."""
        self._events_max = events_max
        self.cost = 0
        """Size of all states in memory, in events."""
        self.place = 0
        """Place in the log of the last event that was applied."""
        self.events = 0
        """Number of events that the states were made of, those that have left them since included."""
        self.latest_ms: int | None = None
        """Latest date of an event that was applied, in milliseconds since the epoch; None before the first."""
        self._lock = Lock()

    def __call__(self, user_id: int, experiment: str | None = None) -> UserState:
        """Return the state of a user in an experiment, or outside of any; an unknown user's has no events."""
        rows = self._user(user_id).windows.get(experiment)
        if rows is None:
            rows = self._published_rows(self._users.one(user_id))
        latest = self._latest(rows, self._history_max)
        item = _items(rows)
        history = History(item[len(item) - len(latest) :], self._feedback_of(latest))
        if not self._user_events:
            return UserState(history, item, None)
        events = self._latest(rows, self._user_events)
        ms, published = events[:, _MS].copy(), int((events[:, _PLACE] == _PUBLISHED).sum())
        if published:  # rows of published events have the time of the last of them
            ms[:published] = self._history_ms[self._users.one(user_id), -published:]
        recent = RecentEvents(item[len(item) - len(events) :], ms, self._feedback_of(events))
        return UserState(history, item, recent)

    def _latest(self, rows: Rows, number: int) -> Rows:
        latest = rows[-number:]
        if len(latest) and latest[0, _PLACE] != _PUBLISHED:  # events before the published ones are in those
            latest = latest[(latest[:, _PLACE] == _PUBLISHED).argmax() :]
        return latest

    def _counted(self, rows: Rows) -> tuple[Int, Int, Float]:
        """Return item, time and feedback of the events of rows."""
        return _items(rows), rows[:, _MS], self._feedback_of(rows)

    def _feedback_of(self, rows: Rows) -> Float:
        return rows[:, _REST:].view(np.float32)[:, self._feedback].copy()

    def apply(self, events: Sequence[FeedbackEvent], places: Sequence[int] | None = None, *, dated: bool = False) -> None:
        """Add the next events of the log, which are at `places` [n], by default the next ones. Events of items that are not
        published are ignored.

        Unless their dates are known to be right (`dated`), those from after now count as the oldest: they would stay the user's
        latest for years.
        """
        if not events:
            return
        places = range(self.place + 1, self.place + 1 + len(events)) if places is None else places
        rows, known = self._rows(events, places, dated)
        order = _order(rows)
        rank = np.argsort(order).tolist() if (order[1:] < order[:-1]).any() else None
        user_ids = [event.user_id for event in events]
        at = self._users(user_ids).tolist()
        groups: dict[tuple[int, str | None], list[int]] = {}
        for i, event in enumerate(events):
            if known[i]:
                key = user_ids[i], event.experiment
                group = groups.pop(key, None) or []  # groups are in the order of their last events
                group.append(i)
                groups[key] = group
        with self._lock:
            if self._fits(groups, len(events)):
                for (user_id, experiment), group in groups.items():
                    last = group[-1]
                    if rank is not None:
                        group.sort(key=rank.__getitem__)
                    new = rows[group] if len(group) > 1 else rows[last : last + 1]
                    self._add(user_id, experiment, new, places[last], at[last])
            else:  # which event makes which state go depends on the order, and not on how the events are cut into calls
                for i, event in enumerate(events):
                    if known[i]:
                        self._add(user_ids[i], event.experiment, rows[i : i + 1], places[i], at[i])
                        self._evict()
            if self.counts is not None:
                self.counts.add(*self._counted(rows))
            self.place = places[-1]
            self.events += len(events)
            self.latest_ms = max(self.latest_ms or _OLDEST, int(rows[:, _MS].max()))

    def _fits(self, groups: Mapping[tuple[int, str | None], object], events: int) -> bool:
        """Return whether no state can have to go for these events."""
        if self.cost + events + len(groups) * (self._published_max + _WINDOW_COST) > self._events_max:
            return False
        added: dict[int, int] = {}
        for user, experiment in groups:
            if experiment is not None:
                windows = self._user(user).windows
                if experiment not in windows:  # room for the state outside of experiments, which may be new too
                    added[user] = added.get(user, len(windows) + 1) + 1
        return not added or max(added.values()) <= EXPERIMENTS_MAX

    def _add(self, user_id: int, experiment: str | None, new: Rows, place: int, at: int) -> None:
        """Add rows, which are sorted, to a user's state. `at` is the user's published position."""
        windows = dict(self._user(user_id).windows)  # other threads may be reading that of before
        old = windows.pop(experiment, None)
        if old is None:
            old = self._published_rows(at)
            self.cost += len(old) + _WINDOW_COST
        rows = _merged(old, new)
        if len(rows) > self._keep:
            rows = rows[-self._keep :]
        windows[experiment] = rows
        self.cost += len(rows) - len(old)
        while len(windows) > EXPERIMENTS_MAX:
            self.cost -= _cost(windows.pop(next(iter(windows))))
        self._bucket(user_id)[user_id] = KeptUser(place, windows)
        self._recent[user_id] = None
        self._recent.move_to_end(user_id)

    def _evict(self) -> None:
        while self.cost > self._events_max and len(self._recent) > 1:
            self._drop(next(iter(self._recent)))

    def forget(self, users: Collection[int]) -> None:
        """Drop all events that were applied for these users, and take those that are still kept out of the counts of all users.
        Their published history remains."""
        with self._lock:
            for user in users:
                if user in self._recent:
                    if self.counts is not None:
                        for rows in self._user(user).windows.values():
                            self.counts.remove(*self._counted(logged_rows(rows, 0)))
                    self._drop(user)

    def _drop(self, user_id: int) -> None:
        self.cost -= self._bucket(user_id).pop(user_id).cost
        del self._recent[user_id]

    def _user(self, user_id: int) -> KeptUser:
        return self._kept[user_id % _BUCKETS].get(user_id, _NOBODY)

    def _bucket(self, user_id: int) -> dict[int, KeptUser]:
        """Return the part that holds a user, which may be changed."""
        at = user_id % _BUCKETS
        if self._copies is not None and self._copies[at] is None:
            self._copies[at] = self._kept[at].copy()
        return self._kept[at]

    def copies(self) -> Iterator[dict[int, KeptUser]]:
        """Return an iterator over all that is kept now, part by part, whatever is applied meanwhile.

        A part takes microseconds. Only one iterator may be in use; close it when it is not run to its end.
        """
        with self._lock:
            copies = self._copies = [None] * _BUCKETS
        return self._parts(copies)

    def _parts(self, copies: list[dict[int, KeptUser] | None]) -> Iterator[dict[int, KeptUser]]:
        try:
            for at in range(_BUCKETS):
                with self._lock:
                    part = copies[at]
                    if part is None:
                        part = self._kept[at].copy()
                    copies[at] = {}
                yield part
        finally:
            self._copies = None

    def restore(self, users: Mapping[int, KeptUser], place: int, events: int, counts: Sequence[SavedCounts] = ()) -> None:
        """Replace all states by those of `users`, which are as of `place` and made of so many `events`. Their rows are without
        published ones, which are added. `counts` are those of all users.
        """
        with self._lock:
            if self.counts is not None:
                self.counts.restore(counts)
            self._kept, self._copies = [{} for _ in range(_BUCKETS)], None
            self._recent = OrderedDict.fromkeys(sorted(users, key=lambda user: users[user].place))
            self.cost, self.place, self.events = 0, place, events
            dates = [int(rows[-1, _MS]) for user in users.values() for rows in user.windows.values() if len(rows)]
            self.latest_ms = max(dates, default=None)
            for (user_id, user), at in zip(users.items(), self._users(list(users)).tolist(), strict=True):
                if len(published := self._published_rows(at)):
                    windows = {name: _merged(published, rows)[-self._keep :] for name, rows in user.windows.items()}
                    user = KeptUser(user.place, windows)
                self._kept[user_id % _BUCKETS][user_id] = user
                self.cost += user.cost

    @property
    def items(self) -> int:
        """Number of items that events may be of, the unknown one included."""
        return self._items.count

    def fingerprint(self, items: int | None = None) -> bytes:
        """Return a digest of all that rows depend on beside the events: the first `items` of the catalogue, by default all, the
        ends of published histories, the limits and the rules.
        """
        rules = (
            self.row_words,
            (*HISTORY_FEEDBACK, *self.actions),
            EFFECTIVE_VIEW_MS,
            LONG_VIEW_MS,
            EXPERIMENTS_MAX,
            _WINDOW_COST,
        )
        limits = (self._keep, self._history_max, self._events_max)
        digest = blake2b(repr((*rules, *limits)).encode(), digest_size=16)
        if self.counts is not None:
            digest.update(self.counts.fingerprint())
        known, columns = slice(items), self._items.columns
        for column in (columns["id"][known], columns["item_float"][known, self._duration], self._history_until_ms):
            digest.update(np.ascontiguousarray(column).data)
        return digest.digest()

    def _rows(self, events: Sequence[FeedbackEvent], places: Sequence[int], dated: bool) -> tuple[Rows, list[bool]]:
        """Return a row for each event, and whether its item is published."""
        item_id, watch_ms, like, click, impression_ms, position = zip(*map(_columns, events), strict=True)
        item = self._items.positions(item_id)
        watch = np.maximum(np.array(watch_ms, np.float64), 0)
        duration = self._items.columns["item_float"][item, self._duration].astype(np.float64)
        duration[~(duration > 0)] = np.inf  # with an unknown duration the fixed thresholds hold
        effective = watch >= np.minimum(duration, EFFECTIVE_VIEW_MS)
        columns: dict[str, NDArray[np.float64] | NDArray[np.bool_] | float] = {
            "long_view": watch >= np.minimum(duration, LONG_VIEW_MS),
            "like": np.array(like, np.bool_),
            "watch_log": np.log1p(watch / 1000),
            "engaged": np.array(click, np.bool_) | effective,
            "logged": 1.0,
        }
        rows = np.zeros((len(events), self.row_words), np.int64)
        rest = rows[:, _REST:]
        rest.view(np.int32)[:, 0] = item
        feedback = rest.view(np.float32)[:, self._feedback]
        for i, name in enumerate(HISTORY_FEEDBACK):
            feedback[:, i] = columns[name]
        for i, name in enumerate(self.actions, len(HISTORY_FEEDBACK)):
            feedback[:, i] = [bool(getattr(event, name, False)) or name in (event.actions or ()) for event in events]
        ms = np.array(impression_ms, np.int64)
        ms += np.array([getattr(event, "correction_ms", 0) for event in events], np.int64)
        if not dated:
            ms[ms > 1e3 * time()] = _OLDEST
        rows[:, _MS], rows[:, _POSITION], rows[:, _PLACE] = ms, position, places
        return rows, (item > 0).tolist()

    def _published_rows(self, at: int) -> Rows:
        """Return the published history of the user at a position."""
        events = self._history_counts[at]
        if not events:
            return self._no_rows
        rows = np.zeros((events, self.row_words), np.int64)
        rows[:, _MS], rows[:, _PLACE] = self._history_until_ms[at], _PUBLISHED
        rows[:, _POSITION] = _LAST_POSITION - np.arange(events, 0, -1)  # after what else happened in that millisecond
        rest = rows[:, _REST:]
        rest.view(np.int32)[:, 0] = self._history_item[at, -events:]
        rest.view(np.float32)[:, self._feedback] = self._history_feedback[at, -events:]
        return rows


def logged_rows(rows: Rows, first: int) -> Rows:
    """Return the rows of events that are in the log from the place `first` on: neither published ones nor expired ones."""
    kept = rows[:, _PLACE] >= max(first, 0)
    return rows if kept.all() else rows[kept]


def _items(rows: Rows) -> Int:
    """Return the positions of the items of rows."""
    return rows[:, _REST:].view(np.int32)[:, 0].astype(np.int64)


def _merged(old: Rows, new: Rows) -> Rows:
    """Return the rows of both, each of which is sorted, in order."""
    rows = np.concatenate((old, new))
    return rows[_order(rows)] if len(old) and len(new) and old[-1, _MS] >= new[0, _MS] else rows


def _cost(rows: Rows) -> int:
    return len(rows) + _WINDOW_COST


def _order(rows: Rows) -> Int:
    """Return the order of rows by time."""
    return np.lexsort((rows[:, _PLACE], rows[:, _POSITION], rows[:, _MS]))
