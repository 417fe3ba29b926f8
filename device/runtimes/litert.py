"""LiteRT (TFLite) models on one CPU thread with XNNPACK.

Shapes are static: the file has one signature `n<size>` per candidate count of the feature spec's `list_sizes`, all with the
same event count. A signature names its inputs as the contract does, or `args_0`, `args_1`, … in the contract's order.

Signature runners are used because they are public API: 18 µs around the graph for twelve inputs, against 6 µs through the
interpreter's private wrapper. `CompiledModel` took as long as a runner: what its run saves, twelve buffer writes cost.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from device.runtimes.base import INPUT_NAMES, Runtime, RuntimeLoadError, RuntimeRunError, first_line

__all__ = ["LiteRtRuntime"]

_SIGNATURE = re.compile(r"^n([1-9]\d*)$")


class _Signature(NamedTuple):
    runner: Any
    names: dict[str, str]
    """contract's name → signature's name"""
    shapes: dict[str, tuple[int, ...]]
    """by the contract's name"""
    dtypes: dict[str, np.dtype[Any]]
    output: str


class LiteRtRuntime(Runtime):
    """A .tflite file with one signature per candidate count."""

    def __init__(self, path: Path) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as err:
            raise RuntimeLoadError(str(path), "the package ai-edge-litert (pip install ai-edge-litert)", str(err)) from err
        if not path.is_file():
            raise RuntimeLoadError(str(path), "a file", "none")
        # The interpreter is not thread-safe, not even across signatures.
        self._lock = threading.Lock()
        self._path = path
        self._signatures: dict[int, _Signature] = {}
        try:
            # From memory: the file may be replaced by the next bundle while this model is in use.
            self._interpreter = Interpreter(model_content=path.read_bytes(), num_threads=1)
            keys = list(self._interpreter.get_signature_list())
        except Exception as err:
            raise RuntimeLoadError(str(path), "a LiteRT model", first_line(err)) from err
        for key in keys:
            if found := _SIGNATURE.match(key):
                self._signatures[int(found[1])] = self._open(key)
        if not self._signatures:
            raise RuntimeLoadError(str(path), "signatures n<size>", ", ".join(keys) or "none")
        first = next(iter(self._signatures.values()))
        self.list_sizes = tuple(sorted(self._signatures))
        self.input_names = tuple(first.names)
        shape = first.shapes.get("event_float", ())
        self.events = shape[1] if len(shape) > 1 else None
        self._warm_up()

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """See `Runtime.run`; the candidate count must be one of `list_sizes`."""
        count = next((inputs[n].shape[1] for n in ("candidate_float", "candidate_mask") if n in inputs), -1)
        signature = self._signatures.get(count)
        if signature is None:
            raise RuntimeRunError(str(self._path), f"a candidate count among {self.list_sizes}", str(count))
        # The runner would silently resize the graph to whatever it is given.
        for name, shape in signature.shapes.items():
            if name not in inputs:
                raise RuntimeRunError(name, "an input", "none")
            if inputs[name].shape != shape or inputs[name].dtype != signature.dtypes[name]:
                got = f"{inputs[name].dtype} {list(inputs[name].shape)}"
                raise RuntimeRunError(name, f"{signature.dtypes[name]} {list(shape)}", got)
        with self._lock:
            try:
                answer = signature.runner(**{own: inputs[name] for name, own in signature.names.items()})
            except Exception as err:
                raise RuntimeRunError(str(self._path), "a run", first_line(err)) from err
        return cast("NDArray[np.float32]", answer[signature.output])

    def _open(self, key: str) -> _Signature:
        runner = self._interpreter.get_signature_runner(key)
        details, outputs = runner.get_input_details(), list(runner.get_output_details())
        names = self._names(key, list(details))
        if len(outputs) != 1:
            raise RuntimeLoadError(f"{self._path} {key}", "one output", str(len(outputs)))
        shapes = {name: tuple(int(d) for d in details[own]["shape"]) for name, own in names.items()}
        dtypes = {name: np.dtype(details[own]["dtype"]) for name, own in names.items()}
        return _Signature(runner, names, shapes, dtypes, outputs[0])

    def _names(self, key: str, own: list[str]) -> dict[str, str]:
        split = INPUT_NAMES["split"]
        if set(own) <= set(split):
            return {name: name for name in split if name in own}
        for names in INPUT_NAMES.values():
            positional = {name: f"args_{i}" for i, name in enumerate(names)}
            if set(own) == set(positional.values()):
                return positional
        raise RuntimeLoadError(
            f"{self._path} {key}", "inputs named as in the contract, or args_0.. for all of them", ", ".join(own)
        )

    def _warm_up(self) -> None:
        # The first run of a signature allocates and prepares; that must not happen during a swipe.
        for signature in self._signatures.values():
            self.run({name: np.zeros(shape, signature.dtypes[name]) for name, shape in signature.shapes.items()})
