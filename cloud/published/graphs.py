"""Opens the ONNX graphs of a published run in onnxruntime, and measures how many threads should run one."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.published.published import PublishedError

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # onnxruntime reads it when it is imported
import onnxruntime as ort

__all__ = ["first", "measured_threads", "open_graph", "open_session"]

_ROUNDS = 15
_SPEEDUP_MIN = 1.5
"""Speedup that twice the threads must bring, because other pages then cannot use them."""


def open_graph(path: Path, inputs: tuple[str, ...], output: str, threads: int = 1) -> ort.InferenceSession:
    """Open the graph `inputs` → `output` in the file at `path`. Raises `PublishedError`."""
    session = open_session(path, threads)
    found = {i.name for i in session.get_inputs()}, {o.name for o in session.get_outputs()}
    if found != (set(inputs), {output}):
        raise PublishedError(f"Expected a graph {sorted(inputs)} -> {output}, got {sorted(found[0])} -> {found[1]} - at {path}")
    return session


def open_session(path: Path, threads: int = 1) -> ort.InferenceSession:
    """Open the graph in the file at `path`. Raises `PublishedError`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own errors share no base class
        raise PublishedError(f"Expected an ONNX graph, got: {error} - at {path}") from error


def first(session: ort.InferenceSession, output: str, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Run a batch of one and return its only row of `output`."""
    result: NDArray[np.float32] = session.run([output], dict(inputs))[0][0]
    return result


def measured_threads(run: Callable[[int], Callable[[], object]], processes: int = 1) -> int:
    """Return how many threads a run should have, by measurement. `run(threads)` returns the function to time.

    The number doubles from 1 while that brings enough, up to the cores that each of `processes` has to itself.
    """
    share = max(1, len(os.sched_getaffinity(0)) // processes)
    threads, took = 1, 0.0
    while threads * 2 <= share:
        took = took or _median(run(threads))
        doubled = _median(run(threads * 2))
        if took < _SPEEDUP_MIN * doubled:
            break
        threads, took = threads * 2, doubled
    return threads


def _median(work: Callable[[], object]) -> float:
    times = []
    for _ in range(_ROUNDS):
        started = perf_counter()
        work()
        times.append(perf_counter() - started)
    return float(np.median(times))
