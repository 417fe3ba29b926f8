"""The seam between the SDK and whatever runs a model.

A runtime takes the contract's inputs by name (`FeatureSpec`) and answers scores. It never changes an input and keeps none.

Errors::

    ModelRuntimeError          a model cannot be used; says expected, got, and where
    ├── RuntimeLoadError       at opening: no file, not a model, runtime not installed, inputs that the contract does not have
    └── RuntimeRunError        at a run: shapes that the model was not made for, or the runtime itself failed
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from device.contract import Form

__all__ = ["INPUT_NAMES", "ModelRuntimeError", "Runtime", "RuntimeLoadError", "RuntimeRunError", "first_line"]

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
    """One opened model. `run` may be called from several threads."""

    input_names: tuple[str, ...]
    """The contract's names of the inputs that the model takes, a subset of those of its form."""

    list_sizes: tuple[int, ...] | None
    """Candidate counts that the model was compiled for, ascending; None when any count goes."""

    events: int | None
    """Event count that the model was compiled for; None when any count from 1 goes."""

    @abstractmethod
    def run(self, inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Scores f32 [1, N, tasks] of the contract's inputs, which must be C-contiguous; exactly `input_names` must be there.

        The answer is new memory. Raises `RuntimeRunError`.
        """


def first_line(err: Exception) -> str:
    """Kind and first line of a runtime's own error; the rest is often a page of stack."""
    lines = str(err).strip().splitlines()
    return f"{type(err).__name__} {lines[0]}" if lines else type(err).__name__
