"""The upper half in torch behind the device's seam: what exported graphs are held to, without an export."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from numpy.typing import NDArray

from pocketrank.cloud.models.reranker import UpperHalf
from pocketrank.device.contract import Form, Stage
from pocketrank.device.runtimes import Runtime, stage_inputs


class TorchStage(Runtime):
    """One stage of a model. `sizes` and `events` are the static shapes to insist on, as a compiled graph does."""

    def __init__(
        self, model: UpperHalf, form: Form, stage: Stage, sizes: tuple[int, ...] | None = None, events: int | None = None
    ) -> None:
        self.model, self.stage = model, stage
        self.input_names, self.list_sizes, self.events = stage_inputs(form, stage), sizes, events
        self.runs = 0

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        assert set(inputs) == set(self.input_names)
        if self.list_sizes:
            assert inputs[self.input_names[0] if self.stage != "choose" else "page_state"].shape[1] in self.list_sizes
        self.runs += 1
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.no_grad():
            return [x.numpy() for x in getattr(self, f"_{self.stage}")(**given)]

    def _whole(self, **inputs: torch.Tensor) -> list[torch.Tensor]:
        return [self.model(**inputs)]

    def _page(self, **inputs: torch.Tensor) -> list[torch.Tensor]:
        return [self.model.encode_candidates(**inputs)]

    def _event(self, **inputs: torch.Tensor) -> list[torch.Tensor]:
        return [self.model.encode_events(**inputs)]

    def _watch(self, page_state: torch.Tensor, event_state: torch.Tensor, **moment: torch.Tensor) -> list[torch.Tensor]:
        ready = self.model.watch(page_state, event_state, **moment)
        return [torch.sigmoid(self.model.choose(ready, page_state)), ready]

    def _choose(
        self, ready: torch.Tensor, page_state: torch.Tensor, chosen: torch.Tensor, chosen_mask: torch.Tensor
    ) -> list[torch.Tensor]:
        lists = len(chosen)
        states = page_state[0][chosen.long()]
        ready, page_state = ready.expand(lists, -1, -1), page_state.expand(lists, -1, -1)
        return [torch.sigmoid(self.model.choose(ready, page_state, states, chosen_mask))]
