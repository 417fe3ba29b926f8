"""The module that every format converts: one form of a run's upper half, whole and in stages, with the contract's names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import embedding

from pocketrank.cloud.models.reranker import UpperHalf
from pocketrank.cloud.training.run import Run
from pocketrank.device.contract import FeatureSpec, Form, Stage
from pocketrank.device.runtimes import INPUT_NAMES, OUTPUT_NAMES, STAGES, stage_inputs
from pocketrank.export.errors import ConversionError, UnsupportedError
from pocketrank.export.search_graph import ListSearch

__all__ = [
    "FIRST",
    "FREE",
    "GOING",
    "LINKS",
    "NEXT",
    "OUTPUT",
    "RAW",
    "Graph",
    "Inputs",
    "Stages",
    "input_shapes",
    "stage_output",
]

OUTPUT = "scores"
"""Name of the only output of the whole model."""
FIRST, NEXT = "first.", "next."
"""Prefixes of the names of a search's state: before the loop, and after one more step."""
GOING = "going"
"""Name of the flag whether a search goes on, next to those of its state."""

RAW = "raw_"
"""Prefix of a count of raw candidates or events, where it is distinguished from the count of their encoded states."""
FREE: dict[str, dict[int, str]] = {
    name: axes
    for names, axes in (
        (("candidate_float", "candidate_category", "candidate_vector"), {1: f"{RAW}candidates"}),
        (("candidate_mask", "page_state", "ready", OUTPUT), {1: "candidates"}),
        (("event_float", "event_category", "event_vector", "event_feedback"), {1: f"{RAW}events"}),
        (("event_state", "event_gap", "event_mask"), {1: "events"}),
        (("chosen", "chosen_mask"), {0: "lists", 1: "items"}),
    )
    for name in names
}
"""Free axes of the inputs by name: axis → what it counts."""

Inputs = Mapping[str, NDArray[Any]]
"""The contract's inputs by name, batch 1."""


def input_shapes(spec: FeatureSpec, form: Form, candidates: int, events: int) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the inputs of `form` by name, in the contract's order."""
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


def stage_output(stage: Stage, name: str) -> str:
    """Return the name in `Stages` of an output of a stage."""
    return f"{'watch' if name == OUTPUT and stage in ('whole', 'search') else stage}.{name}"


LINKS = {name: stage_output(stage, name) for stage in STAGES for name in OUTPUT_NAMES[stage]}
"""Inputs of `Stages` that another stage computes: input → the output that it stands for."""


class Stages(nn.Module):
    """The stages of a model. Raises `UnsupportedError` for a search of longer lists than the model was trained for."""

    def __init__(self, model: UpperHalf, spec: FeatureSpec) -> None:
        super().__init__()
        self.model = model
        self.search = None if spec.search is None else ListSearch(spec, spec.search)
        longest = model.config.chosen_max
        if spec.search is not None and spec.search.steps_max > longest:
            raise UnsupportedError("search.steps_max", f"at most {longest}, the model's chosen_max", str(spec.search.steps_max))

    def run(self, stage: Stage, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Compute the outputs of a stage from its inputs, both by the contract's names."""
        model = self.model
        if stage == "whole":
            return {OUTPUT: model(**x)}
        user = x.get("user_vector")
        if stage == "page":
            vector = x.get("candidate_vector")
            return {"page_state": model.encode_candidates(x["candidate_float"], x["candidate_category"], vector, user)}
        if stage == "event":
            item = x["event_float"], x["event_category"]
            return {"event_state": model.encode_events(*item, x["event_feedback"], x.get("event_vector"))}
        page = x["page_state"]
        if stage == "choose":
            states = embedding(x["chosen"].flatten(), page.flatten(0, 1)).view(*x["chosen"].shape, -1)
            return {OUTPUT: torch.sigmoid(model.choose(x["ready"], page, states, x["chosen_mask"]))}
        ready = model.watch(page, x["event_state"], x["event_gap"], x["event_mask"], x["context"], user)
        scores = torch.sigmoid(model.choose(ready, page))
        if stage == "watch":
            return {OUTPUT: scores, "ready": ready}
        assert self.search is not None
        state = self.search.start(scores, x["candidate_mask"])
        while self.search.going(x["candidate_mask"], state):
            state = self._step({**x, "ready": ready}, state)
        return {"order": self.search.order(state), OUTPUT: scores}

    def _step(self, x: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        assert self.search is not None
        chosen, mask = self.search.chosen(state["lists"])
        scores = self.run("choose", {**x, "chosen": chosen, "chosen_mask": mask})[OUTPUT]
        return self.search.step(scores, x["candidate_mask"], **state)

    def forward(self, **x: Tensor) -> dict[str, Tensor]:
        """Compute all stages side by side, as one graph from which `cut` selects each: no stage uses the output of another.

        Inputs are those of all stages, the `scores` of `watch` and a state of the search. `stage_output` names the outputs.
        """
        out = {stage_output(stage, name): value for stage in STAGES for name, value in self.run(stage, x).items()}
        if self.search is None:
            return out
        state = {name: x[name] for name in self.search.state}
        out |= {
            stage_output("choose", OUTPUT): self.run("choose", x)[OUTPUT],
            stage_output("search", "order"): self.search.order(state),
        }
        mask = x["candidate_mask"]
        for when, then in ((FIRST, self.search.start(x[OUTPUT], mask)), (NEXT, self._step(x, state))):
            out |= {when + name: value for name, value in then.items()} | {when + GOING: self.search.going(mask, then)}
        return out


@dataclass(frozen=True)
class Graph:
    """One form of the device model, ready for conversion."""

    form: Form
    spec: FeatureSpec
    model: UpperHalf

    @classmethod
    def of(cls, run: Run, form: Form) -> Graph:
        """Return the graph of the trained upper half of `run`. Raises `pocketrank.cloud.training.run.RunError`."""
        return cls(form, run.spec, run.upper(form))

    @cached_property
    def modules(self) -> Stages:
        """The model's stages. Raises `UnsupportedError`."""
        return Stages(self.model, self.spec).eval()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the whole model's inputs, in the contract's order."""
        return INPUT_NAMES[self.form]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The stages that are exported: the whole model, its parts, and those of the search if there is one."""
        return ("whole", *STAGES, *(() if self.spec.search is None else ("choose", "search")))

    def run(self, stage: Stage, inputs: Inputs) -> dict[str, NDArray[Any]]:
        """Compute the outputs of a stage in torch, the reference for every format."""
        with torch.no_grad():
            tensors = {name: torch.from_numpy(np.ascontiguousarray(inputs[name])) for name in stage_inputs(self.form, stage)}
            return {name: value.numpy() for name, value in self.modules.run(stage, tensors).items()}

    def scores(self, inputs: Inputs) -> Float[NDArray[np.float32], "b n k"]:
        """Compute the scores of the whole model in torch."""
        return self.run("whole", inputs)[OUTPUT]

    def example(self, candidates: int | None = None, events: int | None = None) -> dict[str, Tensor]:
        """Return example inputs of the whole model for tracing, by default of the largest size."""
        spec = self.spec
        shapes = input_shapes(spec, self.form, candidates or spec.candidates_max, events or spec.events_max)
        return {name: _example(name, shape) for name, shape in shapes.items()}

    def stages_example(self, candidates: int, events: int, at_least: int = 1) -> dict[str, Tensor]:
        """Return example inputs of `Stages` for tracing. Number and length of lists are those of the search, or `at_least`."""
        x = self.example(candidates, events)
        with torch.no_grad():
            for stage in STAGES:
                x |= self.modules.run(stage, x)
            if (search := self.modules.search) is None:
                return {name: value for name, value in x.items() if name not in ("candidate_mask", "ready", OUTPUT)}
            lists = max(at_least, search.search.beam), max(at_least, search.search.steps_max)
            x |= {"chosen": torch.zeros(lists, dtype=torch.int32), "chosen_mask": torch.ones(lists)}
            return x | search.start(x[OUTPUT], x["candidate_mask"])

    def traced(self) -> torch.export.ExportedProgram:
        """Trace the whole model with free candidate and event counts. Raises `ConversionError`."""
        spec = self.spec
        example = self.example(max(2, spec.candidates_max), max(2, spec.events_max))
        return self._trace(self.model, example, apart=False)

    def traced_stages(self) -> tuple[torch.export.ExportedProgram, list[str], list[str]]:
        """Trace `Stages` with free counts of candidates, events, lists and items of a list.

        Returns the program and the names of its inputs and outputs.

        Raises `ConversionError`, `UnsupportedError`.
        """
        spec = self.spec
        example = self.stages_example(max(2, spec.candidates_max), max(2, spec.events_max), at_least=2)
        with torch.no_grad():
            outputs = list(self.modules(**example))
        return self._trace(self.modules, example, apart=True), list(example), outputs

    def _trace(self, module: nn.Module, example: Mapping[str, Tensor], *, apart: bool) -> torch.export.ExportedProgram:
        spec = self.spec
        counts = {"candidates": spec.candidates_max, "events": spec.events_max}
        if spec.search is not None:
            counts |= {"lists": spec.search.beam, "items": spec.search.steps_max}
        # The example has at least 2 of everything, since torch takes a dimension of size 1 for a constant.
        dims = {
            prefix + name: torch.export.Dim(prefix + name, min=1, max=max(2, count))
            for prefix in ("", RAW)
            for name, count in counts.items()
        }
        free = [FREE.get(name, {}) for name in example]
        shapes = [{axis: dims[what if apart else what.removeprefix(RAW)] for axis, what in axes.items()} for axes in free]
        try:
            return torch.export.export(_Named(module, example), tuple(example.values()), dynamic_shapes=(tuple(shapes),))
        except Exception as error:  # torch raises many kinds
            raise ConversionError(
                f"{self.form} graph", "a graph with free list sizes", f"{type(error).__name__} {error}"
            ) from error


def _example(name: str, shape: tuple[int, ...]) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32) if name.endswith("category") else torch.full(shape, 0.5)


class _Named(nn.Module):
    """Module that takes its inputs by position, as `torch.export` needs them."""

    def __init__(self, module: nn.Module, names: Iterable[str]) -> None:
        super().__init__()
        self.module, self.names = module, tuple(names)

    def forward(self, *inputs: Tensor) -> Any:
        return self.module(**dict(zip(self.names, inputs, strict=True)))
