"""What the model remembers of a session: the last events, ready to be read in place, and what it made of them.

Each group of event inputs is one buffer several windows long. An event is one row written behind the last; the window the
model sees is a slice that ends there, padded at the front by the zeros that the buffer began with. When the buffer is full
the window moves back to its beginning, once in hundreds of events.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import FeatureSpec, Form
from pocketrank.device.model.features import PageArrays

__all__ = ["GAP_POSITIONS_MAX", "GAP_SECONDS_MAX", "EventHistory"]

GAP_SECONDS_MAX = 604_800
"""Longest time since an impression that the model is told, a week."""
GAP_POSITIONS_MAX = 10_000
"""Longest distance in positions that the model is told."""

_WINDOWS = 4  # buffer length in windows: 4 times 50 events of 65 numbers are 52 kB
_GAP_MAX = np.array([[GAP_SECONDS_MAX * 1e3], [GAP_POSITIONS_MAX]])
_GAP_SCALE = np.array([[1e-3], [1.0]])
_EVENT_ROWS = 5  # groups of rows that describe events; their states come behind
_FAR_MS = 1 << 53
_FAR_POSITION = 1 << 40


class EventHistory:
    """The last `spec.events_max` events in the order of their impressions, as f32 and i32 rows."""

    def __init__(self, spec: FeatureSpec) -> None:
        self._spec, self.max = spec, spec.events_max
        rows = self.max * _WINDOWS
        self._end = self.max  # a full window of zeros lies before the first event
        self.count = 0
        self.floats = np.zeros((1, rows, len(spec.candidate_floats)), np.float32)
        self.categories = np.zeros((1, rows, len(spec.candidate_categories)), np.int32)
        self.vector = np.zeros((1, rows, spec.vector_width), np.float32)
        self.feedback = np.zeros((1, rows, len(spec.feedback_floats)), np.float32)
        self._gap = np.zeros((1, rows, 2), np.float32)
        self._shown = np.zeros((2, rows))  # impression_ms and position, exact as f64
        self._rows: tuple[NDArray[Any], ...] = (
            self.floats[0], self.categories[0], self.vector[0], self.feedback[0], self._shown.T,
        )  # fmt: skip
        self._states = np.zeros((1, rows, 0), np.float32)
        self._state_of: Form | None = None
        self._fresh = 0  # newest events whose state is not known
        self._gap_columns = self._gap[0].T
        self._mask = np.repeat(np.array([[0, 1]], np.float32), self.max, axis=1)
        self._now = np.zeros((2, 1))
        self._scratch = np.zeros((2, self.max))

    def copy(self) -> EventHistory:
        """The same in memory of its own; states are made anew."""
        new = EventHistory(self._spec)
        new._end, new.count = self._end, self.count
        for own, theirs in zip(new._rows[:_EVENT_ROWS], self._rows[:_EVENT_ROWS], strict=True):
            own[:] = theirs
        return new

    def append(self, impression_ms: int, position: int, feedback: NDArray[np.float32], page: PageArrays, row: int) -> bool:
        """Remember that `row` of `page` was shown, with its `feedback` [Fb]; copies, nothing of the page is kept.

        An event that comes late is put before those of later impressions; one older than a full window is not kept (False).
        The vector of a page without vectors is 0.
        """
        if self._end == self._shown.shape[1]:
            for rows in self._rows:
                rows[: self.max] = rows[self._end - self.max : self._end]
            self._end = self.max
        impression_ms = max(-_FAR_MS, min(_FAR_MS, impression_ms))
        end = at = self._end
        start = end - self.count
        if self.count and impression_ms < self._shown[0, end - 1]:
            at = start + int(np.searchsorted(self._shown[0, start:end], impression_ms, side="right"))
            if at == start and self.count == self.max:
                return False
            for rows in self._rows:
                rows[at + 1 : end + 1] = rows[at:end]
        self._fresh = min(max(self._fresh, end - at) + 1, self.max)
        floats, categories, vector, own, *_ = self._rows
        floats[at] = page.floats[row]
        categories[at] = page.categories[row]
        vector[at] = 0 if page.vector is None else page.vector[row]
        own[at] = feedback
        self._shown[0, at] = impression_ms
        self._shown[1, at] = max(-_FAR_POSITION, min(_FAR_POSITION, position))
        self._end = end + 1
        self.count = min(self.count + 1, self.max)
        return True

    def encode(
        self,
        form: Form,
        width: int,
        lengths: tuple[int, ...] | None,
        stage: Callable[[dict[str, NDArray[Any]]], NDArray[np.float32]],
    ) -> None:
        """Have `stage` make states [1, n, width] of the events that have none yet in this `form`.

        One event between two swipes is the usual case; all of them are made again when the form changes. `lengths` are the
        counts that the stage takes, ascending, None for any. What it raises leaves the history as it was.
        """
        if form != self._state_of:
            self._states = np.zeros((1, self._shown.shape[1], width), np.float32)
            self._rows = (*self._rows[:_EVENT_ROWS], self._states[0])
            self._state_of, self._fresh = form, self.count
        end, fresh = self._end, self._fresh
        while fresh:
            length = fresh if lengths is None else next((n for n in lengths if n >= fresh), lengths[-1])
            rows = slice(end - length, end)
            inputs = {
                "event_float": self.floats[:, rows],
                "event_category": self.categories[:, rows],
                "event_vector": self.vector[:, rows],
                "event_feedback": self.feedback[:, rows],
            }
            done = min(fresh, length)
            self._states[:, end - done : end] = stage(inputs)[:, length - done :]
            end, fresh = end - done, fresh - done
        self._fresh = 0

    def states(self, length: int) -> NDArray[np.float32]:
        """`event_state` [1, length, E] of the last events, as `encode` made it."""
        return self._states[:, self._end - length : self._end]

    def inputs(self, length: int, now_ms: int, position: int) -> dict[str, NDArray[Any]]:
        """The event inputs of the whole model as slices of `length` rows (count <= length <= max), gaps counted from `now_ms`
        and `position`.

        They are views: valid until the next `append`. An impression from the future has a gap of 0.
        """
        window = slice(self._end - length, self._end)
        return {
            "event_float": self.floats[:, window],
            "event_category": self.categories[:, window],
            "event_vector": self.vector[:, window],
            "event_feedback": self.feedback[:, window],
            **self.moment(length, now_ms, position),
        }

    def moment(self, length: int, now_ms: int, position: int) -> dict[str, NDArray[Any]]:
        """The part of `inputs` that changes with the moment: gaps and mask."""
        count, end = self.count, self._end
        if count:
            start, gap = end - count, self._scratch[:, :count]
            self._now[0, 0], self._now[1, 0] = now_ms, position
            np.subtract(self._now, self._shown[:, start:end], out=gap)
            np.maximum(gap, 0, out=gap)
            np.minimum(gap, _GAP_MAX, out=gap)
            np.multiply(gap, _GAP_SCALE, out=self._gap_columns[:, start:end], casting="same_kind")
        return {
            "event_gap": self._gap[:, end - length : end],
            "event_mask": self._mask[:, self.max + count - length : self.max + count],
        }
