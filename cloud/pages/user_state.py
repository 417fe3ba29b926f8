"""The state of each user in serving: the published history and every feedback event that was accepted since.

A user's events are sorted by when they happened (impression time as corrected in the log, then position) and not by when they
arrived. So live updates, late batches and a replay of the log all end in the same state. Published events have no times and
count as older than all others.

A user has a separate state for each experiment. It starts from the published history, and only events of that experiment change
it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from threading import Lock
from time import time
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.published.ids import IdLookup
from pocketrank.cloud.published.onnx_ranker import History
from pocketrank.cloud.published.published import Published, PublishedError, PublishedRecord
from pocketrank.device.contract import EFFECTIVE_VIEW_MS, LONG_VIEW_MS, FeedbackEvent

__all__ = ["EVENTS_MAX", "EXPERIMENTS_MAX", "SEEN_MAX", "UserState", "UserStates"]

_OLDEST = np.iinfo(np.int64).min
_NO_WINDOWS: dict[str | None, Any] = {}

Int = NDArray[np.int64]
Float = NDArray[np.float32]


SEEN_MAX = 2000
"""Default number of a user's latest events that are kept."""
EVENTS_MAX = 20_000_000
"""Default number of events that are kept of all users, some 900 MB. Beyond it the users go whose feedback is oldest; what they
did since the last training is then known to the log alone."""
EXPERIMENTS_MAX = 8
"""Number of experiments that a user has states in. Beyond it the one goes that changed first."""
_WINDOW_COST = 32
"""What a state takes beside its events, in events."""


class UserState(NamedTuple):
    """Snapshot of a user; later feedback makes a new one."""

    history: History
    """The last `history_max` events, oldest first."""
    seen: Int
    """[s] item positions of all events kept, repeats possible"""


class _Window(NamedTuple):
    """The e events kept of one user, oldest first."""

    item: Int  # [e]
    feedback: Float  # [e, F]
    ms: Int  # [e]
    position: Int  # [e]

    @property
    def cost(self) -> int:
        """Size in memory, in events."""
        return len(self.item) + _WINDOW_COST

    def with_rows(self, other: _Window, rows: list[int], keep: int) -> _Window:
        """Return the last `keep` of these events and the `rows` of `other`, sorted by time."""
        item, feedback = np.concatenate([self.item, other.item[rows]]), np.concatenate([self.feedback, other.feedback[rows]])
        ms, position = np.concatenate([self.ms, other.ms[rows]]), np.concatenate([self.position, other.position[rows]])
        latest = np.lexsort((position, ms))[-keep:]
        return _Window(item[latest], feedback[latest], ms[latest], position[latest])


class UserStates:
    """States of all users, the latest `events_max` events of them. Safe to call from several threads: a window is replaced,
    never written to.
    """

    def __init__(
        self, published: Published, record: PublishedRecord, seen_max: int = SEEN_MAX, events_max: int = EVENTS_MAX
    ) -> None:
        self._history_max = record.history_max
        self._keep = max(seen_max, self._history_max)
        self._items, self._users = IdLookup(published.item_id), IdLookup(published.user_id)
        self._history_item = np.asarray(published.history_item)
        self._history_feedback = np.asarray(published.history_feedback, np.float32)
        self._history_count = (self._history_item > 0).sum(1)  # padding is at the front
        self._history_count[0] = 0  # an unknown user has no history
        if "duration_ms" not in record.float_names:
            raise PublishedError(f"Expected a published column `duration_ms`, got {', '.join(record.float_names)}")
        if published.history_feedback.shape[2] != len(HISTORY_FEEDBACK):
            got = published.history_feedback.shape[2]
            raise PublishedError(f"Expected {len(HISTORY_FEEDBACK)} feedback values per history event, got {got}")
        duration = np.array(published.item_float[:, record.float_names.index("duration_ms")], np.float64)
        self._duration_ms = np.where(duration > 0, duration, np.inf)  # with an unknown duration the fixed thresholds hold
        # By user, the one that changed last at the end, then by experiment, likewise.
        self._windows: OrderedDict[int, dict[str | None, _Window]] = OrderedDict()
        self._events_max = events_max
        self.cost = 0
        """Size of all states in memory, in events."""
        self._lock = Lock()

    def __call__(self, user_id: int, experiment: str | None = None) -> UserState:
        """Return the state of a user in an experiment, or outside of any; an unknown user's has no events."""
        window = self._windows.get(user_id, _NO_WINDOWS).get(experiment) or self._published_window(user_id)
        return UserState(History(window.item[-self._history_max :], window.feedback[-self._history_max :]), window.item)

    def apply(self, events: Sequence[FeedbackEvent]) -> None:
        """Add events that the log has just accepted. Events of items that are not published are ignored."""
        new = self._window(events)
        rows_of: dict[tuple[int, str | None], list[int]] = {}
        for i, event in enumerate(events):
            if new.item[i]:
                rows_of.setdefault((event.user_id, event.experiment), []).append(i)
        with self._lock:
            for (user_id, experiment), rows in rows_of.items():
                own = dict(self._windows.get(user_id, _NO_WINDOWS))  # other threads may be reading that of before
                old = own.pop(experiment, None)
                own[experiment] = window = (old or self._published_window(user_id)).with_rows(new, rows, self._keep)
                self.cost += window.cost - (0 if old is None else old.cost)
                while len(own) > EXPERIMENTS_MAX:
                    self.cost -= own.pop(next(iter(own))).cost
                self._windows[user_id] = own
                self._windows.move_to_end(user_id)
            while self.cost > self._events_max and len(self._windows) > 1:
                self.cost -= sum(window.cost for window in self._windows.popitem(last=False)[1].values())

    def forget(self, users: Collection[int]) -> None:
        """Drop all events that were applied for these users. Their published history remains."""
        with self._lock:
            for user in users:
                self.cost -= sum(window.cost for window in self._windows.pop(user, _NO_WINDOWS).values())

    def _window(self, events: Sequence[FeedbackEvent]) -> _Window:
        item = self._items([e.item_id for e in events])
        watch = np.array([max(0, e.watch_ms) for e in events], np.float64)
        duration = self._duration_ms[item]
        effective = watch >= np.minimum(duration, EFFECTIVE_VIEW_MS)
        columns: dict[str, Float | NDArray[np.float64] | NDArray[np.bool_]] = {
            "long_view": watch >= np.minimum(duration, LONG_VIEW_MS),
            "like": np.array([e.like for e in events], np.bool_),
            "watch_log": np.log1p(watch / 1000),
            "engaged": np.array([e.click for e in events], np.bool_) | effective,
            "logged": np.ones(len(events)),
        }
        feedback = np.stack([columns[name].astype(np.float32) for name in HISTORY_FEEDBACK], 1)
        ms = np.array([e.impression_ms + getattr(e, "correction_ms", 0) for e in events], np.int64)
        # The intake corrects such dates; in a log from before it did, these would stay the user's latest events for years.
        ms[ms > 1e3 * time()] = _OLDEST
        return _Window(item, feedback, ms, np.array([e.position for e in events], np.int64))

    def _published_window(self, user_id: int) -> _Window:
        at = self._users.one(user_id)
        count = int(self._history_count[at])
        first = self._history_max - count
        item, feedback = self._history_item[at, first:].astype(np.int64), self._history_feedback[at, first:]
        return _Window(item, feedback, np.full(count, _OLDEST), np.arange(count))
