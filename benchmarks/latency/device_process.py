"""A device process with one session, alone, for its memory: `python -m benchmarks.latency.device_process BUNDLE FORMAT SWIPES`.

Prints the peak of its resident memory in bytes. With no arguments it only imports what every such process has anyway: numpy and
onnxruntime.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy  # noqa: F401 - a bare process has it
import onnxruntime  # noqa: F401 - likewise

from benchmarks.memory import peak_bytes

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Open the bundle, swipe, and print the peak; without arguments only print it."""
    if arguments:
        from benchmarks.latency.swipe import SwipeBench
        from pocketrank.device.bundle.bundle import Bundle
        from pocketrank.device.contract import Format

        folder, name, swipes = arguments
        bundle = Bundle.open(Path(folder), now_ms=0)
        format: Format = "tflite" if name == "tflite" else "onnx"
        searches = "search" in bundle.stages("split", format)
        bench = SwipeBench(bundle, "split", format, "search" if searches else "stages")
        for _ in range(int(swipes)):
            bench.step()
    print(peak_bytes())


if __name__ == "__main__":
    main(sys.argv[1:])
