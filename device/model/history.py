"""History of a session's last events as model inputs, with the states that the model computed from them.

Each group of event inputs is one buffer several windows long. An event is one row, written behind the last. The window that
the model reads is a slice that ends there, padded at the front by the zeros that the buffer began with. When the buffer is
full the window is copied back to its beginning, once in hundreds of events.
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
"""Largest input for the time since an impression, in seconds: one week."""
GAP_POSITIONS_MAX = 10_000
"""Largest input for the number of positions since an impression."""

_WINDOWS = 4  # buffer length in windows: 4 times 50 events of 65 numbers are 52 kB
_GAP_MAX = np.array([[GAP_SECONDS_MAX * 1e3], [GAP_POSITIONS_MAX]])
_GAP_SCALE = np.array([[1e-3], [1.0]])
_EVENT_ROWS = 5  # groups of rows that describe events; the group of their states follows
_FAR_MS = 1 << 53
_FAR_POSITION = 1 << 40


class EventHistory:
    """The last `spec.events_max` events of a session in the order of their impressions, as f32 and i32 rows."""

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
        self._stateless = 0  # newest events whose states have not been computed
        self._gap_columns = self._gap[0].T
        self._mask = np.repeat(np.array([[0, 1]], np.float32), self.max, axis=1)
        self._now = np.zeros((2, 1))
        self._scratch = np.zeros((2, self.max))

    def copy(self) -> EventHistory:
        """Return a copy that shares no memory. Its states are computed again when they are needed."""
        new = EventHistory(self._spec)
        new._end, new.count = self._end, self.count
        for own, theirs in zip(new._rows[:_EVENT_ROWS], self._rows[:_EVENT_ROWS], strict=True):
            own[:] = theirs
        return new

    def append(self, impression_ms: int, position: int, feedback: NDArray[np.float32], page: PageArrays, row: int) -> bool:
        """Add the event that `row` of `page` was shown, with its `feedback` [Fb]. Everything is copied.

        A late event is inserted before those of later impressions. Returns False for an event that is older than a full window,
        which is not kept. The vector of a page without vectors is 0.
        """
        if self._end == self._shown.shape[1]:  # the buffer is full: back to its beginning
            for rows in self._rows:
                rows[: self.max] = rows[self._end - self.max : self._end]
            self._end = self.max
        # Bounded, so that an absurd time or position stays exact as f64.
        impression_ms = max(-_FAR_MS, min(_FAR_MS, impression_ms))
        end = at = self._end
        start = end - self.count
        if self.count and impression_ms < self._shown[0, end - 1]:
            at = start + int(np.searchsorted(self._shown[0, start:end], impression_ms, side="right"))
            if at == start and self.count == self.max:
                return False
            for rows in self._rows:
                rows[at + 1 : end + 1] = rows[at:end]
        # States are computed for a run of the newest events, so a late event makes those behind it stateless again.
        self._stateless = min(max(self._stateless, end - at) + 1, self.max)
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
        """Compute states [1, n, width] of the events that have none yet in this `form`, by calling `stage`.

        Usually that is one event between two swipes; after a change of form it is all of them. `lengths` are the event counts
        that the stage accepts, ascending; None is any. When `stage` raises, the events stay without states.
        """
        if form != self._state_of:
            self._states = np.zeros((1, self._shown.shape[1], width), np.float32)
            self._rows = (*self._rows[:_EVENT_ROWS], self._states[0])
            self._state_of, self._stateless = form, self.count
        end, left = self._end, self._stateless
        while left:  # from the newest backwards, in as few runs as `lengths` allows
            length = left if lengths is None else next((n for n in lengths if n >= left), lengths[-1])
            done = min(left, length)
            self._states[:, end - done : end] = stage(self._events(slice(end - length, end)))[:, length - done :]
            end, left = end - done, left - done
        self._stateless = 0

    def states(self, length: int) -> NDArray[np.float32]:
        """Return `event_state` [1, length, E] of the last events, as `encode` computed it."""
        return self._states[:, self._end - length : self._end]

    def inputs(self, length: int, now_ms: int, position: int) -> dict[str, NDArray[Any]]:
        """Return the event inputs of the whole model as slices of `length` rows (count <= length <= max).

        Gaps are counted from `now_ms` and `position`; an impression from the future has a gap of 0. The slices are views, valid
        until the next `append`.
        """
        return self._events(slice(self._end - length, self._end)) | self.moment(length, now_ms, position)

    def _events(self, rows: slice) -> dict[str, NDArray[Any]]:
        return {
            "event_float": self.floats[:, rows],
            "event_category": self.categories[:, rows],
            "event_vector": self.vector[:, rows],
            "event_feedback": self.feedback[:, rows],
        }

    def moment(self, length: int, now_ms: int, position: int) -> dict[str, NDArray[Any]]:
        """Return the part of `inputs` that depends on the moment: gaps and mask."""
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
