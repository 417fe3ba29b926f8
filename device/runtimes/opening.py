"""Opening of a bundle's graphs. The runtime is selected by format, and only that one is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from pocketrank.device.contract import Format, Stage
from pocketrank.device.runtimes.base import ReadModel, Runtime, RuntimeLoadError

__all__ = ["open_runtime", "open_stages"]


def open_runtime(path: Path, format: Format, threads: int = 1) -> Runtime:
    """Open the whole model in the file `path` with the runtime for `format`. See `open_stages`."""
    return open_stages({"whole": path}, format, threads)["whole"]


def open_stages(
    paths: Mapping[Stage, Path], format: Format, threads: int = 1, read: ReadModel | None = None
) -> dict[Stage, Runtime]:
    """Open the graph of each stage with the runtime for `format`, to run on `threads` threads.

    With `read` the runtimes open the bytes that it returns, and no file on the disk. Stages in the same file share its weights.
    Raises `RuntimeLoadError` for a missing file, a file that is no model, a runtime that is not installed, and a format without
    a runtime here (Core ML runs on Apple's systems only), and whatever `read` raises.
    """
    if format == "onnx":
        from pocketrank.device.runtimes.onnx import OnnxRuntime

        return {stage: OnnxRuntime(path, stage, threads, read and read(path)) for stage, path in paths.items()}
    if format == "tflite":
        from pocketrank.device.runtimes.litert import LiteRtFile, LiteRtRuntime

        files = {path: LiteRtFile(path, threads, read and read(path)) for path in set(paths.values())}
        return {stage: LiteRtRuntime(files[path], stage) for stage, path in paths.items()}
    where = ", ".join(map(str, paths.values()))
    raise RuntimeLoadError(where, "a format with a runtime here (onnx, tflite)", f"`{format}`")
