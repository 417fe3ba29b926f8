"""Conversion of pages, events and moments into the model's inputs, by the feature spec.

A page becomes arrays once, when it arrives; a swipe only slices them. Columns are found by name, never by place: a page may
carry more columns than the model reads, in any order. A feature whose column is missing takes its default.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from msgspec import UNSET
from numpy.typing import NDArray

from pocketrank.device.codec import from_block, from_columns
from pocketrank.device.contract import BlockError, DecodeError, FeatureSpec, FeedbackEvent, FloatFeature, Page, is_action

__all__ = ["CONTEXT_FLOATS", "FeatureBuilder", "PageArrays", "check_spec"]

CONTEXT_FLOATS = ("position", "hour")
"""Context features that a device can compute. Both are whole numbers before they are scaled.

`position` counts the impressions so far in the session. `hour` is the hour of the day in UTC by the device's clock, 0..23:
floor(now_ms / 3,600,000) mod 24, without a fraction and without the user's time zone.
"""

_NUMERIC_FEEDBACK = frozenset(FeedbackEvent.__struct_fields__) - {
    "version", "event_id", "user_id", "session_id", "item_id", "page_id", "experiment", "impression_ms", "age_ms", "actions",
}  # fmt: skip
_LARGEST = 1e30  # far beyond the values of any feature, and below the largest f4


def check_spec(spec: FeatureSpec) -> None:
    """Raise `DecodeError` (with the path) unless a device can build every input that `spec` asks for."""

    def need(holds: bool, path: str, expected: str, got: object) -> None:
        if not holds:
            raise DecodeError(path, expected, repr(got))

    need(len(set(spec.tasks)) == len(spec.tasks) > 0, "$.tasks", "unique names, at least one", spec.tasks)
    for task, weight in spec.task_weights.items():
        valid = task in spec.tasks and abs(weight) <= _LARGEST
        need(valid, f"$.task_weights.{task}", "a finite weight of a known task", weight)
    survival = spec.survival_task
    need(survival is None or survival in spec.tasks, "$.survival_task", "a known task", survival)
    need(1 <= spec.candidates_max <= 10_000, "$.candidates_max", "1..10000", spec.candidates_max)
    need(1 <= spec.events_max <= 10_000, "$.events_max", "1..10000", spec.events_max)
    need(0 <= spec.vector_width <= 4096, "$.vector_width", "0..4096", spec.vector_width)
    sizes = spec.list_sizes
    need(all(1 <= s <= 10_000 for s in sizes) and list(sizes) == sorted(set(sizes)), "$.list_sizes", "ascending sizes", sizes)
    # Candidate floats are columns of a page, which may have any name; the others are computed here, by name.
    known: dict[str, Callable[[str], bool]] = {
        "candidate_floats": lambda name: True,
        "feedback_floats": lambda name: name in _NUMERIC_FEEDBACK or is_action(name),
        "context_floats": CONTEXT_FLOATS.__contains__,
    }
    for group, is_known in known.items():
        features: tuple[FloatFeature, ...] = getattr(spec, group)
        need(len({f.name for f in features}) == len(features), f"$.{group}", "unique names", [f.name for f in features])
        for i, f in enumerate(features):
            need(is_known(f.name), f"$.{group}[{i}].name", "a feature that a device knows", f.name)
            limits = (f.min, f.default, f.max)
            need(-_LARGEST <= f.min <= f.default <= f.max <= _LARGEST, f"$.{group}[{i}]", "min <= default <= max", limits)
            need(math.isfinite(f.scale), f"$.{group}[{i}].scale", "a finite number", f.scale)
    categories = spec.candidate_categories
    need(len({f.name for f in categories}) == len(categories), "$.candidate_categories", "unique names", categories)
    for i, c in enumerate(categories):
        need(1 <= c.size <= 2**31 - 1, f"$.candidate_categories[{i}].size", "1..2147483647", c.size)


@dataclass(frozen=True, slots=True)
class PageArrays:
    """A page as the model reads it: n candidates in cloud order, each item once."""

    item_id: NDArray[np.int64]
    """[n]"""
    floats: NDArray[np.float32]
    """[n, Fc], scaled, clipped, with defaults in place of missing values"""
    categories: NDArray[np.int32]
    """[n, C], 0 is unknown"""
    vector: NDArray[np.float32] | None
    """[n, D], 0 where the page had no finite number"""
    user_vector: NDArray[np.float32] | None
    """[1, D]"""
    problem: str | None = None
    """Why the features could not be read. The arrays then hold defaults, and the page can only be shown in cloud order."""
    vector_problem: str | None = None
    """Why `vector` and `user_vector` are None."""
    duplicates: int = 0
    """Candidates that were dropped because an earlier one has the same item id."""
    missing_columns: int = 0
    """Features of the spec that the page does not carry, or whose codes are of another numbering."""

    def select(self, rows: NDArray[np.intp]) -> PageArrays:
        """Return the page with these rows only."""
        vector = None if self.vector is None else self.vector[rows]
        return replace(
            self, item_id=self.item_id[rows], floats=self.floats[rows], categories=self.categories[rows], vector=vector
        )

    def without_vectors(self) -> PageArrays:
        """Return the page for the self-contained form, or for a history that must not mix split versions."""
        return replace(self, vector=None, user_vector=None)


class _Scaler:
    """Scales raw values [..., F] of one group of float features to inputs."""

    def __init__(self, features: tuple[FloatFeature, ...]) -> None:
        rows = np.array(_limits(features), np.float64).reshape(-1, 4)
        self.scale, self.min, self.max, self.default = np.ascontiguousarray(rows.T)

    def __call__(self, raw: NDArray[np.float64], out: NDArray[np.float32]) -> None:
        """Write the inputs into `out`, overwriting `raw`. Infinities become the limits, NaN the default."""
        np.multiply(raw, self.scale, out=raw)
        missing = np.isnan(raw)
        np.maximum(raw, self.min, out=raw)
        np.minimum(raw, self.max, out=raw)
        np.copyto(raw, self.default, where=missing)
        np.copyto(out, raw, casting="same_kind")


class FeatureBuilder:
    """Builder of inputs by one `FeatureSpec`. It is stateless, and all sessions share it."""

    def __init__(self, spec: FeatureSpec) -> None:
        """Raises `DecodeError` for a spec whose inputs no device can build (`check_spec`)."""
        check_spec(spec)
        self.spec = spec
        self._candidate = _Scaler(spec.candidate_floats)
        self._feedback = _limits(spec.feedback_floats)
        self._context = _limits(spec.context_floats)
        self._fields = [f.name for f in spec.feedback_floats]
        self._actions = frozenset(self._fields) - _NUMERIC_FEEDBACK
        self._sizes = np.array([f.size for f in spec.candidate_categories], np.int32)

    def page(self, page: Page) -> PageArrays:
        """Return all of a page's arrays. Raises `BlockError` when the item ids cannot be read.

        Any other defect is reported in the result, and the affected arrays hold defaults.
        """
        spec, c = self.spec, page.candidates
        item_id: NDArray[np.int64] = from_block(c.item_id, "$.candidates.item_id", dtype="i8", ndim=1)
        rows = len(item_id)
        raw = np.full((rows, len(spec.candidate_floats)), np.nan)
        categories = np.zeros((rows, len(spec.candidate_categories)), np.int32)
        problem, missing = None, 0
        # A page with unreadable features still has an order: the cloud's.
        try:
            values = from_columns(c.floats, "$.candidates.floats", dtype="f4", rows=rows)
            codes = from_columns(c.categories, "$.candidates.categories", dtype="i4", rows=rows)
        except BlockError as err:
            problem = str(err)
        else:
            missing += _gather(values, c.floats.names, [f.name for f in spec.candidate_floats], raw)
            if spec.numbering is UNSET or c.numbering in (UNSET, spec.numbering):
                missing += _gather(codes, c.categories.names, [f.name for f in spec.candidate_categories], categories)
            else:
                missing += len(spec.candidate_categories)
            categories[(categories < 0) | (categories >= self._sizes)] = 0
        floats = np.empty(raw.shape, np.float32)
        with np.errstate(invalid="ignore"):  # infinity times a scale of 0
            self._candidate(raw, floats)
        vector, user, vector_problem = self._vectors(page, rows)
        # An item that appears twice keeps its first row, so the order stays the cloud's.
        first = np.sort(np.unique(item_id, return_index=True)[1])
        repeats = rows - len(first)
        arrays = PageArrays(item_id, floats, categories, vector, user, problem, vector_problem, repeats, missing)
        return arrays.select(first) if repeats else arrays

    def _vectors(self, page: Page, rows: int) -> tuple[NDArray[np.float32] | None, NDArray[np.float32] | None, str | None]:
        block, user_block = page.candidates.vector, page.user_vector
        if block is None or user_block is None:
            return None, None, page.split_reason or "the page carries no vectors"
        width = self.spec.vector_width
        try:
            vector = from_block(block, "$.candidates.vector", dtype="f2", ndim=2)
            user = from_block(user_block, "$.user_vector", dtype="f2", ndim=1)
            if vector.shape != (rows, width):
                raise BlockError("$.candidates.vector.shape", f"[{rows}, {width}]", str(list(vector.shape)))
            if user.shape != (width,):
                raise BlockError("$.user_vector.shape", f"[{width}]", str(list(user.shape)))
        except BlockError as err:
            return None, None, str(err)
        return _finite(vector), _finite(user[None, :]), None

    def feedback(self, event: FeedbackEvent, out: NDArray[np.float32]) -> None:
        """Write the event's `feedback_floats` into `out` [Fb]: its fields, and 1 or 0 for each custom action.

        Raises TypeError or ValueError for a field without a number.
        """
        done = event.actions or ()
        values = (name in done if name in self._actions else getattr(event, name) for name in self._fields)
        out[:] = _scaled(values, self._feedback)

    def context(self, position: int, now_ms: int, out: NDArray[np.float32]) -> None:
        """Write the `context_floats` of a moment into `out` [Fx] (`CONTEXT_FLOATS`)."""
        values = {"position": position, "hour": now_ms // 3_600_000 % 24}
        out[:] = _scaled([values[f.name] for f in self.spec.context_floats], self._context)


def _limits(features: tuple[FloatFeature, ...]) -> list[tuple[float, float, float, float]]:
    return [(f.scale, f.min, f.max, f.default) for f in features]


def _scaled(values: Iterable[Any], limits: list[tuple[float, float, float, float]]) -> list[float]:
    """Return one row scaled as by `_Scaler`. None is missing too. For some 20 numbers Python takes half as long as numpy."""
    scaled = []
    for value, (scale, low, high, default) in zip(values, limits, strict=True):
        x = math.nan if value is None else value * scale
        scaled.append(low if x < low else high if x > high else x if x == x else default)
    return scaled


def _gather(values: NDArray[Any], have: tuple[str, ...], want: list[str], out: NDArray[Any]) -> int:
    """Copy the wanted columns into `out` and return how many of them are missing."""
    place = {name: i for i, name in enumerate(have)}
    found = [(i, place[name]) for i, name in enumerate(want) if name in place]
    if found:
        to, source = zip(*found, strict=True)
        out[:, to] = values[:, source]
    return len(want) - len(found)


def _finite(vector: NDArray[np.float16]) -> NDArray[np.float32]:
    return np.nan_to_num(vector.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
