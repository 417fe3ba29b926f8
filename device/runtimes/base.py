"""The seam between the SDK and the library that runs a model.

A runtime runs one graph, the whole model or a stage of it (`FeatureSpec`). It takes the contract's inputs by name and returns
the stage's outputs. It never changes an input and keeps no reference to one.

Errors::

    ModelRuntimeError          a model cannot be used
    ├── RuntimeLoadError       at opening: no file, not a model, runtime not installed, inputs that the contract does not have
    └── RuntimeRunError        at a run: shapes that the model was not made for, or the runtime itself failed
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import Form, MismatchError, Stage

__all__ = [
    "INPUT_NAMES",
    "OUTPUT_NAMES",
    "STAGES",
    "ModelFile",
    "ModelRuntimeError",
    "ReadModel",
    "Runtime",
    "RuntimeLoadError",
    "RuntimeRunError",
    "first_line",
    "stage_inputs",
]

_SPLIT_NAMES = (
    "candidate_float", "candidate_category", "candidate_vector", "candidate_mask",
    "event_float", "event_category", "event_vector", "event_feedback", "event_gap", "event_mask",
    "context", "user_vector",
)  # fmt: skip

INPUT_NAMES: dict[Form, tuple[str, ...]] = {
    "split": _SPLIT_NAMES,
    "self_contained": tuple(name for name in _SPLIT_NAMES if not name.endswith("_vector")),
}
"""The contract's inputs of each form, in the contract's order."""

OUTPUT_NAMES: dict[Stage, tuple[str, ...]] = {
    "whole": ("scores",),
    "page": ("page_state",),
    "event": ("event_state",),
    "watch": ("scores", "ready"),
    "choose": ("scores",),
    "search": ("order", "scores"),
}
"""The contract's outputs of each stage."""

STAGES: tuple[Stage, ...] = ("page", "event", "watch")
"""Stages that together replace the whole model."""

_WATCH = ("page_state", "event_state", "event_gap", "event_mask", "context", "user_vector")
_STAGE_NAMES: dict[Stage, tuple[str, ...]] = {
    "page": ("candidate_float", "candidate_category", "candidate_vector", "user_vector"),
    "event": ("event_float", "event_category", "event_vector", "event_feedback"),
    "watch": _WATCH,
    "choose": ("ready", "page_state", "chosen", "chosen_mask"),
    "search": (*_WATCH, "candidate_mask"),
}


def stage_inputs(form: Form, stage: Stage) -> tuple[str, ...]:
    """Return the names of a stage's inputs in the contract's order."""
    names = _STAGE_NAMES.get(stage, INPUT_NAMES[form])
    return names if form == "split" else tuple(name for name in names if not name.endswith("_vector"))


class ModelFile(NamedTuple):
    """A model as bytes, which a runtime opens in place of a file on the disk."""

    data: bytes
    beside: Mapping[str, bytes]
    """Files that the model may refer to, such as external data of ONNX, by their paths relative to the model's folder."""


ReadModel = Callable[[Path], ModelFile]
"""Reads the model in a file (`Bundle.read_model`)."""


class ModelRuntimeError(MismatchError, RuntimeError):
    """A model cannot be used. `where` is the model's path or the input."""


class RuntimeLoadError(ModelRuntimeError):
    """The model cannot be opened."""


class RuntimeRunError(ModelRuntimeError):
    """The model cannot be run on these inputs."""


class Runtime(ABC):
    """One opened graph. `run` may be called from several threads."""

    input_names: tuple[str, ...]
    """The contract's names of the inputs that the graph takes, a subset of those of its form and stage."""

    list_sizes: tuple[int, ...] | None
    """Candidate counts that the graph was compiled for, ascending; event counts for the stage `event`. None is any count."""

    events: int | None
    """Event count that the graph was compiled for. None is any count from 1."""

    def size_for(self, count: int) -> int:
        """Return the smallest of `list_sizes` that holds `count`, else the largest; `count` itself where any will do."""
        return count if self.list_sizes is None else next((s for s in self.list_sizes if s >= count), self.list_sizes[-1])

    @abstractmethod
    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """Return the stage's outputs (`OUTPUT_NAMES`), in new memory.

        `inputs` must hold exactly `input_names`, as C-contiguous arrays. Raises `RuntimeRunError`.
        """

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return the first output; see `run_all`."""
        return self.run_all(inputs)[0]


def first_line(err: Exception) -> str:
    """Return the type and first line of a runtime's own error. The rest is often a page of stack."""
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__} {lines[0]}" if lines else type(err).__name__
