"""Holding an exported model to torch: the cases, the tolerances and the comparison (of stages: `parity_stages`).

A model is opened from disk by the runtime a device uses. Core ML has none outside Apple's systems; there the saved program's
operations are evaluated one by one (`mil_numpy`), which checks the conversion and not Apple's runtime.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import FeatureSpec, FloatFeature, Form, Format, Precision
from pocketrank.device.runtimes import ModelRuntimeError, Runtime, open_runtime
from pocketrank.export.errors import ParityError
from pocketrank.export.graphs import FREE, RAW, Graph, Inputs, input_shapes

__all__ = [
    "TOLERANCE",
    "Scorer",
    "compare",
    "counts",
    "draw_inputs",
    "fit_inputs",
    "measure_ms",
    "open_scorer",
    "parity_cases",
    "resize",
]

TOLERANCE: dict[tuple[Format, Precision], float] = {
    ("onnx", "fp32"): 5e-5,
    ("tflite", "fp32"): 5e-5,
    ("coreml", "fp32"): 1e-4,
}
"""Largest allowed difference of a score from torch. The terms of a trained model are larger than those of a random one, and
processors sum them in different orders: a model differed by 1.6e-5 on one machine and by 4e-6 on another. Reduced precisions
have no tolerance: they are gated on ranking metrics (`gate`)."""

OPERATION_LEVEL = "operations of the saved program in numpy, not Apple's runtime"
"""Runtime that a report names for Core ML."""

WIDE = 100.0
"""Range of a feature above which small values are drawn more often than large ones."""
GAP_MAX = (604_800.0, 1000.0)
"""Largest seconds and positions since an event that are drawn."""

Scorer = Callable[[Inputs], NDArray[np.float32]]


def _values(rng: np.random.Generator, features: tuple[FloatFeature, ...], rows: int) -> NDArray[np.float32]:
    """Draw values [rows, features] within their ranges; the first row has all minima, the second all maxima."""
    columns = []
    for f in features:
        share = rng.random(rows) ** (6 if f.max - f.min > WIDE else 1)
        share[:2] = [0, 1][:rows]
        columns.append(f.min + (f.max - f.min) * share)
    return np.stack(columns, -1).astype(np.float32)


def draw_inputs(spec: FeatureSpec, form: Form, candidates: int, events: int, seed: int) -> dict[str, NDArray[Any]]:
    """Draw inputs within the spec's ranges, nothing masked."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {}
    for name, shape in input_shapes(spec, form, candidates, events).items():
        if name.endswith("float"):
            value = _values(rng, spec.candidate_floats, shape[1])
        elif name.endswith("category"):
            value = np.stack([rng.integers(0, c.size, shape[1]) for c in spec.candidate_categories], -1).astype(np.int32)
        elif name == "event_feedback":
            value = _values(rng, spec.feedback_floats, shape[1])
        elif name == "context":
            value = _values(rng, spec.context_floats, 3)[2]
        elif name == "event_gap":
            value = (rng.random(shape[1:]) ** 6 * GAP_MAX).astype(np.float32)
        elif name.endswith("mask"):
            value = np.ones(shape[1], np.float32)
        else:  # vectors are sent as fp16
            value = rng.normal(size=shape[1:]).astype(np.float16).astype(np.float32)
        inputs[name] = np.ascontiguousarray(value[None])
    return inputs


def parity_cases(spec: FeatureSpec, form: Form, seed: int = 0) -> dict[str, dict[str, NDArray[Any]]]:
    """Return the inputs of each case by its name. Masked values are random, so that a leak shows."""
    n, t = spec.candidates_max, spec.events_max
    rng = np.random.default_rng(seed)
    cases = {
        name: draw_inputs(spec, form, n, t, seed + i)
        for i, name in enumerate(("full", "padded", "empty_feedback", "random_mask"))
    }
    cases["padded"]["candidate_mask"][:, (n + 1) // 2 :] = 0
    cases["padded"]["event_mask"][:, : t // 2] = 0
    cases["empty_feedback"]["event_mask"][:] = 0
    for name in ("candidate_mask", "event_mask"):
        mask = cases["random_mask"][name]
        mask[:] = rng.random(mask.shape) < 0.5
        mask[:, 0] = 1
    cases["one_candidate"] = draw_inputs(spec, form, 1, t, seed + 4)
    cases["short_lists"] = draw_inputs(spec, form, max(1, n // 4), max(1, t // 8), seed + 5)
    return cases


def counts(inputs: Inputs) -> dict[str, int]:
    """Return the sizes of the free axes of `inputs` by what they count."""
    free = {name: FREE.get(name, {}) for name in inputs}
    return {what.removeprefix(RAW): inputs[name].shape[axis] for name, axes in free.items() for axis, what in axes.items()}


def resize(inputs: Inputs, candidates: int, events: int) -> dict[str, NDArray[Any]]:
    """Return `inputs` with lists padded at the back to the given counts; the padding is masked."""
    sizes = {"candidates": candidates, "events": events}
    padded = dict(inputs)
    for name, value in inputs.items():
        more = sizes.get(FREE.get(name, {}).get(1, "").removeprefix(RAW), 0) - value.shape[-1 if value.ndim == 1 else 1]
        if more > 0:
            padded[name] = np.pad(value, [(0, 0), (0, more), *[(0, 0)] * (value.ndim - 2)])
    return padded


def open_scorer(path: Path, format: Format) -> tuple[Scorer, str]:
    """Open the model at `path` and return it as a function of the contract's inputs, and the name of its runtime.

    The function pads lists to the sizes that the model was compiled for. Raises
    `pocketrank.device.runtimes.ModelRuntimeError`, `UnsupportedError` for an unknown Core ML operation.
    """
    if format == "coreml":
        from pocketrank.export.mil_numpy import MilProgram

        return MilProgram(path).run, OPERATION_LEVEL
    runtime = open_runtime(path, format)

    def score(inputs: Inputs) -> NDArray[np.float32]:
        # A copy, because the result may be the runtime's own memory.
        return np.array(runtime.run(fit_inputs(runtime, inputs))[:, : inputs["candidate_mask"].shape[1]])

    package = {"onnx": "onnxruntime", "tflite": "ai-edge-litert"}[format]
    return score, f"{package} {version(package)}"


def compare(graph: Graph, score: Scorer, *, where: str, tolerance: float | None = None, seed: int = 0) -> dict[str, float]:
    """Return the largest difference from torch of any unmasked candidate's score, by case.

    Raises `ParityError` for a difference above `tolerance`, a wrong shape, a score that is not finite, or a failed run.
    """
    differences: dict[str, float] = {}
    for name, inputs in parity_cases(graph.spec, graph.form, seed).items():
        expected = graph.scores(inputs)
        try:
            got = score(inputs)
        except ModelRuntimeError as error:
            raise ParityError(f"{where}, case {name}", "scores", str(error)) from error
        if got.shape != expected.shape:
            raise ParityError(f"{where}, case {name}", f"scores {list(expected.shape)}", f"{list(got.shape)}")
        real = inputs["candidate_mask"][0] > 0
        if not np.isfinite(got[0, real]).all():
            raise ParityError(f"{where}, case {name}", "finite scores", "NaN or infinity")
        difference = float(np.abs(got[0, real] - expected[0, real]).max())
        if tolerance is not None and difference > tolerance:
            raise ParityError(
                f"{where}, case {name}", f"torch's scores within {tolerance:g}", f"a difference of {difference:.3g}"
            )
        differences[name] = difference
    return differences


def fit_inputs(runtime: Runtime, inputs: Inputs) -> dict[str, NDArray[Any]]:
    """Return those of `inputs` that a graph takes, padded to the sizes that it was compiled for."""
    taken = {name: inputs[name] for name in runtime.input_names}
    sizes = {"candidates": 0, "events": 0} | counts(taken)
    if runtime.list_sizes is not None:
        listed = "candidates" if sizes["candidates"] else "events"
        sizes[listed] = next(s for s in runtime.list_sizes if s >= sizes[listed])
    return resize(taken, sizes["candidates"], runtime.events or sizes["events"])


def measure_ms(runtime: Runtime, inputs: Inputs, runs: int) -> float:
    """Return the median milliseconds of `runs` runs, after a fifth as many to warm up. Raises `ModelRuntimeError`."""
    taken = fit_inputs(runtime, inputs)
    times = []
    for i in range(runs + runs // 5):
        start = time.perf_counter_ns()
        runtime.run_all(taken)
        if i >= runs // 5:
            times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6
