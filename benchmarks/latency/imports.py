"""How long importing the SDK takes above what every device process imports anyway: numpy and onnxruntime."""

from __future__ import annotations

import time
from statistics import median

from benchmarks.processes import fresh_processes

__all__ = ["measure_import"]

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
