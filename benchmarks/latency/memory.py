"""How much memory a device process takes above bare Python, numpy and onnxruntime: peaks of processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.processes import fresh_processes
from pocketrank.device.contract import Format

__all__ = ["measure_memory"]


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
    """Of the second process: the first one compiles, which takes memory too."""
    return int([run("-m", "benchmarks.latency.device_process", *arguments) for _ in range(2)][1]) / 2**20
