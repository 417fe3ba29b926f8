"""ONNX models in onnxruntime on the CPU, one thread unless asked for more.

A plain `run` reads contiguous numpy arrays in place. For the twelve small inputs of a swipe it took 12 µs around the graph;
re-binding an IOBinding at each run took 19 µs. A binding made once takes 6 µs, but it needs inputs of one address and shape,
which sliding windows over the events do not have.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from numpy.typing import NDArray

from pocketrank.device.contract import Stage
from pocketrank.device.runtimes.base import (
    OUTPUT_NAMES,
    ModelFile,
    Runtime,
    RuntimeLoadError,
    RuntimeRunError,
    first_line,
    stage_inputs,
)

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # for privacy; onnxruntime reads it when it is imported
import onnxruntime

__all__ = ["OnnxRuntime"]


class OnnxRuntime(Runtime):
    """An open ONNX file with the contract's input names. The axes of candidates and events may be dynamic or fixed."""

    def __init__(self, path: Path, stage: Stage = "whole", threads: int = 1, file: ModelFile | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        # A spinning thread would drain the battery between two swipes.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        options.log_severity_level = 3
        if file is not None:
            _refer_to(options, file.beside)
        elif not path.is_file():
            raise RuntimeLoadError(str(path), "a file", "none")
        try:
            model = str(path) if file is None else file.data
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as err:  # onnxruntime raises many kinds, some of them bare
            raise RuntimeLoadError(str(path), "an ONNX model", first_line(err)) from err
        inputs = {node.name: node.shape for node in self._session.get_inputs()}
        known = stage_inputs("split", stage)
        for name in inputs:
            if name not in known:
                raise RuntimeLoadError(str(path), "inputs of the contract", f"`{name}`")
        outputs = [node.name for node in self._session.get_outputs()]
        # Several outputs are found by name; a single one may have any name.
        self._outputs = list(OUTPUT_NAMES[stage]) if len(outputs) > 1 else outputs
        if len(outputs) != len(OUTPUT_NAMES[stage]) or set(self._outputs) != set(outputs):
            raise RuntimeLoadError(str(path), f"the outputs {', '.join(OUTPUT_NAMES[stage])}", ", ".join(outputs))
        self._path = path
        self.input_names = tuple(name for name in known if name in inputs)
        listed = next((name for name in ("candidate_float", "page_state") if name in inputs), "event_float")
        size = _fixed(inputs, listed)
        self.list_sizes = None if size is None else (size,)
        self.events = _fixed(inputs, "event_float") or _fixed(inputs, "event_state")

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See `Runtime.run_all`."""
        try:
            return cast("list[NDArray[Any]]", self._session.run(self._outputs, inputs))
        except Exception as err:
            raise RuntimeRunError(str(self._path), "inputs that the model takes", first_line(err)) from err


def _refer_to(options: Any, files: Mapping[str, bytes]) -> None:
    """Let a model's external data be that of `files`, and of no file on the disk."""
    if hasattr(options, "add_external_initializers_from_files_in_memory"):
        given = {"": b"", **files}  # without any, onnxruntime would look on the disk
        options.add_external_initializers_from_files_in_memory(
            list(given), list(given.values()), list(map(len, given.values()))
        )
    else:  # an older onnxruntime looks in this folder, which cannot exist, so such a model does not open
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", f"{os.devnull}/none")


def _fixed(shapes: dict[str, list[Any]], name: str) -> int | None:
    shape = shapes.get(name, [])
    return shape[1] if len(shape) > 1 and isinstance(shape[1], int) else None
