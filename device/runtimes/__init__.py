"""Model runtimes behind one seam; `open_runtime` picks one by format and imports only that one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pocketrank.device.contract import Format, Stage
from pocketrank.device.runtimes.base import (
    INPUT_NAMES,
    OUTPUT_NAMES,
    STAGES,
    ModelRuntimeError,
    Runtime,
    RuntimeLoadError,
    RuntimeRunError,
    stage_inputs,
)

__all__ = [
    "INPUT_NAMES",
    "OUTPUT_NAMES",
    "STAGES",
    "Runtime",
    "ModelRuntimeError",
    "RuntimeLoadError",
    "RuntimeRunError",
    "open_runtime",
    "open_stages",
    "stage_inputs",
]


def open_runtime(path: Path, format: Format, threads: int = 1) -> Runtime:
    """The whole model at `path` (a file) in the runtime for `format`, ready for its first run. See `open_stages`."""
    return open_stages({"whole": path}, format, threads)["whole"]


def open_stages(paths: Mapping[Stage, Path], format: Format, threads: int = 1) -> dict[Stage, Runtime]:
    """The graph of each stage in the runtime for `format`, run on so many `threads`; those in one file share what it holds.

    Raises `RuntimeLoadError`: no such file, not a model, a runtime that is not installed, or a format without a runtime
    here (Core ML runs on Apple's systems only).
    """
    if format == "onnx":
        from pocketrank.device.runtimes.onnx import OnnxRuntime

        return {stage: OnnxRuntime(path, stage, threads) for stage, path in paths.items()}
    if format == "tflite":
        from pocketrank.device.runtimes.litert import LiteRtFile, LiteRtRuntime

        files = {path: LiteRtFile(path, threads) for path in set(paths.values())}
        return {stage: LiteRtRuntime(files[path], stage) for stage, path in paths.items()}
    where = ", ".join(map(str, paths.values()))
    raise RuntimeLoadError(where, "a format with a runtime here (onnx, tflite)", f"`{format}`")
