"""LiteRT (TFLite) models on the CPU with XNNPACK, one thread unless asked for more.

Shapes are static. The file has one signature `n<size>` for each candidate count in the feature spec's `list_sizes`, all with
the same event count. Signatures of a stage are named `<stage>_n<size>`; those of the stage `event`, which counts events,
`event_t<size>`. A signature names its inputs as the contract does, or `args_0`, `args_1`, … in the contract's order. The stages
of a file share one interpreter, which holds their weights once.

Signature runners are used because they are public API. They take 18 µs around the graph for twelve inputs, against 6 µs through
the interpreter's private wrapper. `CompiledModel` took as long as a runner: its run is faster, but twelve buffer writes cost
what it saves.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import Form, Stage
from pocketrank.device.runtimes.base import (
    OUTPUT_NAMES,
    ModelFile,
    Runtime,
    RuntimeLoadError,
    RuntimeRunError,
    first_line,
    stage_inputs,
)

__all__ = ["LiteRtFile", "LiteRtRuntime"]

_FORMS: tuple[Form, ...] = ("split", "self_contained")


class _Signature(NamedTuple):
    runner: Any
    names: dict[str, str]
    """Contract's name → signature's name."""
    shapes: dict[str, tuple[int, ...]]
    """By the contract's name."""
    dtypes: dict[str, np.dtype[Any]]
    outputs: list[str]
    """Signature's names, in the contract's order."""


class LiteRtFile:
    """An open .tflite file, which the runtimes of its stages share."""

    def __init__(self, path: Path, threads: int = 1, file: ModelFile | None = None) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as err:
            raise RuntimeLoadError(str(path), "the package ai-edge-litert (pip install ai-edge-litert)", str(err)) from err
        if file is None and not path.is_file():
            raise RuntimeLoadError(str(path), "a file", "none")
        self.path = path
        # The interpreter is not thread-safe, not even across signatures.
        self.lock = threading.Lock()
        try:
            # From memory: the file may be replaced by the next bundle while this model is in use.
            self.interpreter = Interpreter(model_content=path.read_bytes() if file is None else file.data, num_threads=threads)
            self.keys = list(self.interpreter.get_signature_list())
        except Exception as err:
            raise RuntimeLoadError(str(path), "a LiteRT model", first_line(err)) from err


class LiteRtRuntime(Runtime):
    """One stage of a file, with a signature for each candidate count."""

    def __init__(self, file: LiteRtFile, stage: Stage = "whole") -> None:
        self._file, self._stage, self._path = file, stage, file.path
        self._signatures: dict[int, _Signature] = {}
        prefix = {"whole": "n", "event": "event_t"}.get(stage, f"{stage}_n")
        for key in file.keys:
            if found := re.match(rf"^{prefix}([1-9]\d*)$", key):
                self._signatures[int(found[1])] = self._open(key)
        if not self._signatures:
            raise RuntimeLoadError(str(file.path), f"signatures {prefix}<size>", ", ".join(file.keys) or "none")
        first = next(iter(self._signatures.values()))
        self.list_sizes = tuple(sorted(self._signatures))
        self.input_names = tuple(first.names)
        shape = () if stage == "event" else first.shapes.get("event_float", first.shapes.get("event_state", ()))
        self.events = shape[1] if len(shape) > 1 else None
        self._axis = next(
            (n for n in ("candidate_float", "page_state", "candidate_mask", "event_float") if n in first.names), ""
        )
        self._warm_up()

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """See `Runtime.run_all`. The candidate count must be one of `list_sizes`."""
        count = inputs[self._axis].shape[1] if self._axis in inputs else -1
        signature = self._signatures.get(count)
        if signature is None:
            counted = "an event" if self._stage == "event" else "a candidate"
            raise RuntimeRunError(str(self._path), f"{counted} count among {self.list_sizes}", str(count))
        # Checked here, since a runner silently resizes the graph to the shapes that it is given.
        for name, shape in signature.shapes.items():
            if name not in inputs:
                raise RuntimeRunError(name, "an input", "none")
            if inputs[name].shape != shape or inputs[name].dtype != signature.dtypes[name]:
                got = f"{inputs[name].dtype} {list(inputs[name].shape)}"
                raise RuntimeRunError(name, f"{signature.dtypes[name]} {list(shape)}", got)
        with self._file.lock:
            try:
                answer = signature.runner(**{own: inputs[name] for name, own in signature.names.items()})
            except Exception as err:
                raise RuntimeRunError(str(self._path), "a run", first_line(err)) from err
        return [answer[name] for name in signature.outputs]

    def _open(self, key: str) -> _Signature:
        runner = self._file.interpreter.get_signature_runner(key)
        details, outputs = runner.get_input_details(), list(runner.get_output_details())
        names = self._names(key, list(details))
        expected = OUTPUT_NAMES[self._stage]
        if len(outputs) != len(expected) or (len(outputs) > 1 and set(outputs) != set(expected)):
            raise RuntimeLoadError(f"{self._path} {key}", f"the outputs {', '.join(expected)}", ", ".join(outputs))
        shapes = {name: tuple(int(d) for d in details[own]["shape"]) for name, own in names.items()}
        dtypes = {name: np.dtype(details[own]["dtype"]) for name, own in names.items()}
        return _Signature(runner, names, shapes, dtypes, list(expected) if len(outputs) > 1 else outputs)

    def _names(self, key: str, own: list[str]) -> dict[str, str]:
        known = stage_inputs("split", self._stage)
        if set(own) <= set(known):
            return {name: name for name in known if name in own}
        for form in _FORMS:
            positional = {name: f"args_{i}" for i, name in enumerate(stage_inputs(form, self._stage))}
            if set(own) == set(positional.values()):
                return positional
        raise RuntimeLoadError(
            f"{self._path} {key}", "inputs named as in the contract, or args_0.. for all of them", ", ".join(own)
        )

    def _warm_up(self) -> None:
        # The first run of a signature allocates memory, which must not happen during a swipe.
        for signature in self._signatures.values():
            self.run_all({name: np.zeros(shape, signature.dtypes[name]) for name, shape in signature.shapes.items()})
