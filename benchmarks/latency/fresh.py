"""Peak memory of a device in a fresh process, and time of its imports, above bare Python, numpy and onnxruntime."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.processes import fresh_processes
from pocketrank.device.contract import Format

__all__ = ["measure_import", "measure_memory"]

_BARE = "import numpy, onnxruntime"
_DEVICE = f"{_BARE}; from pocketrank import device"
_SESSION = (
    f"{_DEVICE}; import pocketrank.device.runtimes.onnx; device.FeedSession, device.Ranker, device.Bundle, device.CloudClient"
)
_ALL = f"{_DEVICE}; [getattr(device, name) for name in device.__all__]"


def measure_import(rounds: int) -> dict[str, float]:
    """Medians in milliseconds of fresh processes that take turns: `bare_ms`, and what importing all that a swiping app needs
    (`session_above_ms`) or every public name (`all_above_ms`) takes beyond that. Raises `BenchmarkError`.
    """
    taken: dict[str, list[float]] = {code: [] for code in (_BARE, _SESSION, _ALL)}
    with fresh_processes() as run:
        for code in taken:
            run("-c", code)  # compiles
        for _ in range(rounds):
            for code, times in taken.items():
                start = time.perf_counter()
                run("-c", code)
                times.append((time.perf_counter() - start) * 1e3)
    bare = median(taken[_BARE])
    above = {code: median(a - b for a, b in zip(taken[code], taken[_BARE], strict=True)) for code in (_SESSION, _ALL)}
    return {"bare_ms": bare, "session_above_ms": above[_SESSION], "all_above_ms": above[_ALL]}


def measure_memory(bundle: Path, formats: tuple[Format, ...], swipes: int) -> dict[str, Any]:
    """Peaks in MiB of a bare process and, by format, of one that opens `bundle` and swipes; the first format's on top.

    Raises `BenchmarkError` when a process fails.
    """
    with fresh_processes() as run:
        bare = _peak_mib(run)
        by_format: dict[str, dict[str, float]] = {}
        for format in formats:
            peak = _peak_mib(run, str(bundle.resolve()), format, str(swipes))
            by_format[format] = {"device_process_mib": peak, "above_bare_mib": peak - bare}
    return {"bare_mib": bare, **by_format[formats[0]], **by_format}


def _peak_mib(run: Callable[..., str], *arguments: str) -> float:
    """That of the second process: the first one compiles, which takes memory too."""
    return int([run("-m", "benchmarks.latency.device_process", *arguments) for _ in range(2)][1]) / 2**20
