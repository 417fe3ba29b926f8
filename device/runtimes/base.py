"""The seam between the SDK and whatever runs a model.

A runtime runs one graph, the whole model or a stage of it (`FeatureSpec`): it takes the contract's inputs by name and answers
the stage's outputs. It never changes an input and keeps none.

Errors::

    ModelRuntimeError          a model cannot be used; says expected, got, and where
    ├── RuntimeLoadError       at opening: no file, not a model, runtime not installed, inputs that the contract does not have
    └── RuntimeRunError        at a run: shapes that the model was not made for, or the runtime itself failed
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import Form, Stage

__all__ = [
    "INPUT_NAMES",
    "OUTPUT_NAMES",
    "STAGES",
    "ModelRuntimeError",
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
"""What it takes to rank without the whole model."""

_WATCH = ("page_state", "event_state", "event_gap", "event_mask", "context", "user_vector")
_STAGE_NAMES: dict[Stage, tuple[str, ...]] = {
    "page": ("candidate_float", "candidate_category", "candidate_vector", "user_vector"),
    "event": ("event_float", "event_category", "event_vector", "event_feedback"),
    "watch": _WATCH,
    "choose": ("ready", "page_state", "chosen", "chosen_mask"),
    "search": (*_WATCH, "candidate_mask"),
}


def stage_inputs(form: Form, stage: Stage) -> tuple[str, ...]:
    """The contract's inputs of a stage, in the contract's order."""
    names = _STAGE_NAMES.get(stage, INPUT_NAMES[form])
    return names if form == "split" else tuple(name for name in names if not name.endswith("_vector"))


class ModelRuntimeError(RuntimeError):
    """A model cannot be used. `where` is the model's path or input, `expected` and `got` say what."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}")
        self.where, self.expected, self.got = where, expected, got


class RuntimeLoadError(ModelRuntimeError):
    """The model cannot be opened."""


class RuntimeRunError(ModelRuntimeError):
    """The model cannot be run on these inputs."""


class Runtime(ABC):
    """One opened graph. `run` may be called from several threads."""

    input_names: tuple[str, ...]
    """The contract's names of the inputs that the graph takes, a subset of those of its form and stage."""

    list_sizes: tuple[int, ...] | None
    """Candidate counts that the graph was compiled for, ascending (of the stage `event`: event counts); None when any goes."""

    events: int | None
    """Event count that the graph was compiled for; None when any count from 1 goes."""

    @abstractmethod
    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """The stage's outputs (`OUTPUT_NAMES`) for the contract's inputs, which must be C-contiguous; exactly `input_names`
        must be there.

        The answers are new memory. Raises `RuntimeRunError`.
        """

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """The first output; see `run_all`."""
        return self.run_all(inputs)[0]


def first_line(err: Exception) -> str:
    """Kind and first line of a runtime's own error; the rest is often a page of stack."""
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__} {lines[0]}" if lines else type(err).__name__
