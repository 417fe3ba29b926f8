"""The models of a bundle and the order they give to what a session still holds.

A `Ranker` is opened once and shared by all sessions and threads: it keeps nothing of a session. The arrays that it reads
belong to the session (`Remaining`, `EventHistory`) and are handed to the runtime in place.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device.bundle import Bundle, NoSuchModelError
from device.contract import FeatureSpec, Form, Format, Precision
from device.features import FeatureBuilder, PageArrays
from device.feedback import EventHistory
from device.remaining import Remaining
from device.runtimes import INPUT_NAMES, Runtime, RuntimeLoadError, RuntimeRunError, open_runtime

__all__ = ["Ranker"]


class Ranker:
    """Scores candidates with the model of a form and orders them. Thread-safe as its runtimes are."""

    def __init__(self, spec: FeatureSpec, split_version: str, runtimes: Mapping[Form, Runtime]) -> None:
        """Raises `DecodeError` for a spec, `RuntimeLoadError` for a model, that a device cannot follow."""
        self.spec, self.split_version, self.runtimes = spec, split_version, dict(runtimes)
        self.builder = FeatureBuilder(spec)
        for form, runtime in self.runtimes.items():
            if unknown := set(runtime.input_names) - set(INPUT_NAMES[form]):
                raise RuntimeLoadError(form, f"inputs of the {form} form", ", ".join(sorted(unknown)))
            if runtime.events is not None and runtime.events != spec.events_max:
                raise RuntimeLoadError(form, f"{spec.events_max} events, the spec's `events_max`", str(runtime.events))
        # Negative, so that the best come first in ascending order.
        self._weights = np.array([-spec.task_weights.get(task, 0.0) for task in spec.tasks], np.float32)
        largest = max([1, *(size for r in self.runtimes.values() for size in r.list_sizes or ())])
        self._mask = np.repeat(np.array([[1, 0]], np.float32), max(largest, spec.candidates_max), axis=1)
        self.rows = largest
        """Rows that a `Remaining` must have at least, for models of static shapes."""
        for form in self.runtimes:
            self._try(form)

    @classmethod
    def open(cls, bundle: Bundle, format: Format = "onnx", precision: Precision = "fp32") -> Ranker:
        """The bundle's models of one format and precision. Raises `NoSuchModelError`, `RuntimeLoadError`."""
        forms = bundle.forms(format, precision)
        if not forms:
            raise NoSuchModelError(str(bundle.folder), f"a model {format} {precision}", "none")
        runtimes = {form: open_runtime(bundle.model(form, format, precision), format) for form in forms}
        return cls(bundle.spec, bundle.split_version, runtimes)

    def _try(self, form: Form) -> None:
        """One run on zeros: shapes that disagree with the spec show here, not at a user's first swipe."""
        n, spec = self.rows, self.spec
        zeros = PageArrays(
            item_id=np.arange(n),
            floats=np.zeros((n, len(spec.candidate_floats)), np.float32),
            categories=np.zeros((n, len(spec.candidate_categories)), np.int32),
            vector=np.zeros((n, spec.vector_width), np.float32),
            user_vector=np.zeros((1, spec.vector_width), np.float32),
        )
        context = np.zeros((1, len(spec.context_floats)), np.float32)
        try:
            order = self.order(form, Remaining(zeros, n), EventHistory(spec), context, 0, 0)
        except RuntimeRunError as err:
            raise RuntimeLoadError(form, "a model that runs on the spec's inputs", str(err)) from err
        if order is None:
            raise RuntimeLoadError(form, "finite scores for inputs of zeros", "NaN or infinity")

    def inputs(
        self, form: Form, remaining: Remaining, history: EventHistory, context: NDArray[np.float32], now_ms: int, position: int
    ) -> tuple[dict[str, NDArray[Any]], int]:
        """The model's inputs, all views, and how many of the remaining they hold: the first ones in cloud order.

        That is all of them up to `candidates_max` and the largest list size the model has. `context` is f32 [1, Fx].
        """
        runtime = self.runtimes[form]
        count = min(remaining.count, self.spec.candidates_max)
        size = count
        if runtime.list_sizes is not None:
            size = next((s for s in runtime.list_sizes if s >= count), runtime.list_sizes[-1])
            count = min(count, size)
        # A dynamic axis of length 0 is something few exported graphs survive, so an empty history is one masked row.
        length = history.max if runtime.events is not None else max(1, history.count)
        start = self._mask.shape[1] // 2 - count
        inputs = history.inputs(length, now_ms, position)
        inputs["candidate_float"] = remaining.floats[:, :size]
        inputs["candidate_category"] = remaining.categories[:, :size]
        inputs["candidate_mask"] = self._mask[:, start : start + size]
        inputs["context"] = context
        if form == "split" and remaining.vector is not None and remaining.page.user_vector is not None:
            inputs["candidate_vector"] = remaining.vector[:, :size]
            inputs["user_vector"] = remaining.page.user_vector
        if len(inputs) > len(runtime.input_names):
            inputs = {name: inputs[name] for name in runtime.input_names if name in inputs}
        return inputs, count

    def order(
        self, form: Form, remaining: Remaining, history: EventHistory, context: NDArray[np.float32], now_ms: int, position: int
    ) -> NDArray[np.intp] | None:
        """Indices of the remaining, best first: by the weighted sum of scores, ties in cloud order.

        Those beyond what the model takes follow in cloud order. None when a score is not a number. Raises `RuntimeRunError`.
        """
        inputs, count = self.inputs(form, remaining, history, context, now_ms, position)
        scores = self.runtimes[form].run(inputs)
        if scores.ndim != 3 or scores.shape[0] != 1 or scores.shape[1] < count or scores.shape[2] != len(self._weights):
            raise RuntimeRunError("scores", f"[1, {count}, {len(self._weights)}]", str(list(scores.shape)))
        total = np.vecdot(scores[0, :count], self._weights)
        best = total.argsort(kind="stable")
        # The ends tell: infinities are sorted there, and NaN behind everything.
        if not (math.isfinite(total[best[0]]) and math.isfinite(total[best[-1]])):
            return None
        return best if count == remaining.count else np.concatenate([best, np.arange(count, remaining.count)])
