"""Model runtimes behind one seam; `open_runtime` picks one by format and imports only that one."""

from __future__ import annotations

from pathlib import Path

from device.contract import Format
from device.runtimes.base import INPUT_NAMES, ModelRuntimeError, Runtime, RuntimeLoadError, RuntimeRunError

__all__ = ["INPUT_NAMES", "Runtime", "ModelRuntimeError", "RuntimeLoadError", "RuntimeRunError", "open_runtime"]


def open_runtime(path: Path, format: Format) -> Runtime:
    """The model at `path` (a file) in the runtime for `format`, ready for its first run.

    Raises `RuntimeLoadError`: no such file, not a model, a runtime that is not installed, or a format without a runtime
    here (Core ML runs on Apple's systems only).
    """
    if format == "onnx":
        from device.runtimes.onnx import OnnxRuntime

        return OnnxRuntime(path)
    if format == "tflite":
        from device.runtimes.litert import LiteRtRuntime

        return LiteRtRuntime(path)
    raise RuntimeLoadError(str(path), "a format with a runtime here (onnx, tflite)", f"`{format}`")
