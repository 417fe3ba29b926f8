"""How long importing the SDK takes above what every device process imports anyway: numpy and onnxruntime."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.errors import BenchmarkError

__all__ = ["measure_import"]

_BARE = "import numpy, onnxruntime"
_SESSION = f"{_BARE}, device, device.runtimes.onnx; device.FeedSession, device.Ranker, device.Bundle, device.CloudClient"
_ALL = f"{_BARE}, device; [getattr(device, name) for name in device.__all__]"


def measure_import(rounds: int) -> dict[str, float]:
    """Medians in milliseconds of fresh processes that take turns: `bare_ms`, and what importing all that a swiping app needs
    (`session_above_ms`) or every public name (`all_above_ms`) takes beyond that. Everything is compiled to bytecode before, as
    pip leaves what it installs. Raises `BenchmarkError`.
    """
    taken: dict[str, list[float]] = {code: [] for code in (_BARE, _SESSION, _ALL)}
    with TemporaryDirectory(prefix="pocketrank-") as compiled:
        own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        for _ in range(1 + rounds):
            for code, times in taken.items():
                start = time.perf_counter()
                done = subprocess.run(
                    [sys.executable, "-c", code],
                    env=own | {"PYTHONPYCACHEPREFIX": compiled},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                times.append((time.perf_counter() - start) * 1e3)
                if done.returncode:
                    raise BenchmarkError("an import", "exit code 0", f"{done.returncode}: {done.stderr.strip()[-500:]}")
    for times in taken.values():
        del times[0]  # which compiled
    bare = median(taken[_BARE])
    above = {code: median(a - b for a, b in zip(taken[code], taken[_BARE], strict=True)) for code in (_SESSION, _ALL)}
    return {"bare_ms": bare, "session_above_ms": above[_SESSION], "all_above_ms": above[_ALL]}
