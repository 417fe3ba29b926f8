"""How much memory a device process takes above bare Python, numpy and onnxruntime: peaks of processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from device.contract import Format

__all__ = ["measure_memory"]

_ROOT = Path(__file__).resolve().parent.parent


def measure_memory(bundle: Path, formats: tuple[Format, ...], swipes: int) -> dict[str, Any]:
    """Peaks in MiB of a bare process and, by format, of one that opens `bundle` and swipes; the first format's on top.

    Raises `BenchmarkError` when a process fails.
    """
    bare = _peak_mib()
    by_format: dict[str, dict[str, float]] = {}
    for format in formats:
        peak = _peak_mib(str(bundle.resolve()), format, str(swipes))
        by_format[format] = {"device_process_mib": peak, "above_bare_mib": peak - bare}
    return {"bare_mib": bare, **by_format[formats[0]], **by_format}


def _peak_mib(*arguments: str) -> float:
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "benchmarks.device_process", *arguments]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError("a device process", "exit code 0", f"{done.returncode}: {done.stderr.strip()[-500:]}")
    return int(done.stdout) / 2**20
