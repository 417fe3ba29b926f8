"""The graph that every format starts from: one form of a run's upper half, frozen, with the contract's inputs by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from cloud.models.reranker import UpperHalf
from cloud.training.run import Run
from device.contract import FeatureSpec, Form
from device.runtimes import INPUT_NAMES
from export.errors import ConversionError

__all__ = ["OUTPUT", "Graph", "Inputs", "input_shapes"]

OUTPUT = "scores"
"""Name of the one output."""

Inputs = Mapping[str, NDArray[Any]]
"""The contract's inputs by name, batch 1."""


def input_shapes(spec: FeatureSpec, form: Form, candidates: int, events: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the inputs of `form` by name, in the contract's order."""
    rows = {"candidate": (1, candidates), "event": (1, events), "context": (1,), "user": (1,)}
    widths = {
        "float": (len(spec.candidate_floats),),
        "category": (len(spec.candidate_categories),),
        "vector": (spec.vector_width,),
        "feedback": (len(spec.feedback_floats),),
        "context": (len(spec.context_floats),),
        "gap": (2,),
        "mask": (),
    }
    return {name: rows[name.split("_")[0]] + widths[name.split("_")[-1]] for name in INPUT_NAMES[form]}


@dataclass(frozen=True)
class Graph:
    """One form of the device model, ready to be converted."""

    form: Form
    spec: FeatureSpec
    model: UpperHalf

    @classmethod
    def of(cls, run: Run, form: Form) -> Graph:
        """The trained upper half of `run`. Raises `cloud.training.run.RunError`."""
        return cls(form, run.spec, run.upper(form).freeze())

    @property
    def names(self) -> tuple[str, ...]:
        """Inputs in the contract's order."""
        return INPUT_NAMES[self.form]

    def example(self, candidates: int | None = None, events: int | None = None) -> dict[str, Tensor]:
        """Inputs to trace with, of the largest size by default."""
        spec = self.spec
        shapes = input_shapes(spec, self.form, candidates or spec.candidates_max, events or spec.events_max)
        return {
            name: torch.zeros(shape, dtype=torch.int32) if name.endswith("category") else torch.full(shape, 0.5)
            for name, shape in shapes.items()
        }

    def traced(self) -> torch.export.ExportedProgram:
        """The graph with free candidate and event counts, decomposed to core operations. Raises `ConversionError`."""
        spec, example = self.spec, self.example()
        counts: dict[str, Any] = {
            "candidate": torch.export.Dim("candidates", min=1, max=max(2, spec.candidates_max)),
            "event": torch.export.Dim("events", min=1, max=max(2, spec.events_max)),
        }
        dims = {name: {1: dim} if (dim := counts.get(name.split("_")[0])) is not None else {} for name in example}
        try:
            return torch.export.export(_Named(self), tuple(example.values()), dynamic_shapes=(tuple(dims.values()),))
        except Exception as error:  # torch raises many kinds
            raise ConversionError(
                f"{self.form} graph", "a graph with free list sizes", f"{type(error).__name__} {error}"
            ) from error

    def scores(self, inputs: Inputs) -> Float[NDArray[np.float32], "b n k"]:
        """What torch answers: the reference of every format."""
        with torch.no_grad():
            scores: Tensor = self.model(**{name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in self.names})
        return scores.numpy()


class _Named(torch.nn.Module):
    """The model with its inputs in the contract's order."""

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self.model, self.names = graph.model, graph.names

    def forward(self, *inputs: Tensor) -> Tensor:
        scores: Tensor = self.model(**dict(zip(self.names, inputs, strict=True)))
        return scores
