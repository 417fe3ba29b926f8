"""The measurement behind `latency`: everything in turn, round after round, so that all meet the machine's same moods."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch

from benchmarks.matmul import SIZES, MatmulRate
from benchmarks.memory import measure_memory
from benchmarks.subject import FORMATS, Subject
from benchmarks.swipe import SwipeBench
from device.contract import Form
from device.runtimes import open_runtime

__all__ = ["Repetitions", "measure"]

HEADLINE: Form = "split"
"""The form whose figures stand at the top of the report."""


@dataclass(frozen=True)
class Repetitions:
    """How often everything is done."""

    rounds: int = 60
    """Turns of: each runtime, torch, swipes with each runtime, products of matrices."""
    runs: int = 25
    """Runs and swipes of each kind in a round; a hundredth of all is what p99 rests on."""
    warm_up: int = 3
    """Rounds before, which do not count."""
    sizes: tuple[int, ...] = SIZES
    """Of the matrices."""
    memory_swipes: int = 200
    """In the process whose memory is measured."""


class _Timed:
    """Something to call, and how long each call took."""

    def __init__(self, call: Callable[[], object]) -> None:
        self._call = call
        self.ns: list[int] = []

    def step(self) -> None:
        start = time.perf_counter_ns()
        self._call()
        self.ns.append(time.perf_counter_ns() - start)

    def figures(self) -> dict[str, float]:
        return {"p50_ms": float(np.median(self.ns)) / 1e6, "p99_ms": float(np.percentile(self.ns, 99)) / 1e6}


def measure(subject: Subject, repetitions: Repetitions, progress: Callable[[float], None]) -> dict[str, Any]:
    """The report of `benchmarks.latency`. `progress` gets the share done.

    Raises `BenchmarkError`, and what opening a bundle's models raises.
    """
    torch.set_num_threads(1)
    rate = MatmulRate(repetitions.sizes)
    timed: dict[Form, dict[str, _Timed]] = {form: _timed(subject, form) for form in subject.peers}
    swipes = {form: {format: SwipeBench(subject.bundle, form, format) for format in FORMATS} for form in subject.peers}
    turns = [x for kind in (timed, swipes) for by_name in kind.values() for x in by_name.values()]
    total = repetitions.warm_up + repetitions.rounds
    for number in range(total):
        if number == repetitions.warm_up:
            _forget(turns)
            rate = MatmulRate(repetitions.sizes)
        for turn in turns:
            for _ in range(repetitions.runs):
                turn.step()
        rate.step()
        progress((number + 1) / total)
    forms = {}
    for form in subject.peers:
        limit_ms = subject.flop(form) / rate.best() / 1e6
        forms[form] = _figures(timed[form], swipes[form], limit_ms) | {"flop": subject.flop(form)}
    spec = subject.bundle.spec
    return {
        **forms[HEADLINE],
        "form": HEADLINE,
        "forms": forms,
        "candidates": spec.candidates_max,
        "events": spec.events_max,
        "matmul_gflop_s": {"best": rate.best(), **rate.gflop_s()},
        "memory": measure_memory(subject.folder, FORMATS, repetitions.memory_swipes),
        "repetitions": repetitions.rounds * repetitions.runs,
        "machine": {
            "processor": platform.machine(),
            "threads": 1,
            **{name: version(name) for name in ("numpy", "torch", "onnxruntime", "ai-edge-litert")},
        },
    }


def _timed(subject: Subject, form: Form) -> dict[str, _Timed]:
    """The model of a form in each runtime and in torch, on the same inputs."""
    calls: dict[str, _Timed] = {}
    inputs = subject.inputs(form)
    for format in FORMATS:
        runtime = open_runtime(subject.bundle.model(form, format), format)
        calls[format] = _Timed(lambda run=runtime.run: run(inputs))  # type: ignore[misc]
    model, tensors = subject.peers[form], subject.tensors(form)

    @torch.inference_mode()
    def eager() -> object:
        return model(**tensors)

    calls["torch_eager"] = _Timed(eager)
    return calls


def _figures(timed: dict[str, _Timed], swipes: dict[Any, SwipeBench], limit_ms: float) -> dict[str, Any]:
    rerank: dict[str, dict[str, float]] = {format: timed[format].figures() for format in FORMATS}
    for row in rerank.values():
        row["ratio_to_limit"] = row["p50_ms"] / limit_ms
    eager = timed["torch_eager"].figures()
    swipe = {format: bench.figures() for format, bench in swipes.items()}
    fastest = min(FORMATS, key=lambda format: swipe[format]["p50_ms"])
    return {
        "rerank": rerank,
        "torch_eager": eager | {"ratio_to_limit": eager["p50_ms"] / limit_ms},
        "swipe": swipe,
        "limit_ms": limit_ms,
        "fastest": fastest,
        "ratio_to_limit": rerank[fastest]["ratio_to_limit"],
        "sdk_overhead_share": swipe[fastest]["sdk_overhead_share"],
    }


def _forget(turns: list[Any]) -> None:
    for turn in turns:
        for times in (turn.ns,) if isinstance(turn, _Timed) else (turn.swipe_ns, turn.run_ns):
            times.clear()
