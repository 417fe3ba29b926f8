"""Torch's own stages pass; a wrong state, a wrong list and a broken stage do not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank.device.contract import Stage
from pocketrank.device.runtimes import RuntimeRunError
from pocketrank.export.errors import ParityError
from pocketrank.export.graphs import Graph, Inputs
from pocketrank.export.parity import draw_inputs
from pocketrank.export.parity_stages import Answer, compare_stages, draw_lists, list_reward
from tests.export.small_run import LIST_SPEC, SPEC, random_upper

GRAPH = Graph("split", LIST_SPEC, random_upper(split=True))
LISTS = LIST_SPEC.search
assert LISTS is not None


def torch_answers(**changed: Callable[[dict[str, NDArray[Any]]], object]) -> dict[Stage, Answer]:
    """Torch's stages; `changed` may change what one answers."""

    def answer(stage: Stage, inputs: Inputs) -> dict[str, NDArray[Any]]:
        outputs = {name: value.copy() for name, value in GRAPH.run(stage, inputs).items()}
        changed.get(stage, lambda _: None)(outputs)
        return outputs

    return {stage: partial(answer, stage) for stage in GRAPH.stages if stage != "whole"}


def compared(answers: Mapping[Stage, Answer], tolerance: float | None = 1e-5) -> Any:
    return compare_stages(GRAPH, answers, where="model", tolerance=tolerance)


def test_torch_itself_passes() -> None:
    parity = compared(torch_answers(), 0.0)
    assert list(parity.cases) == ["page", "event", "watch", "choose", "search"]
    assert {difference for cases in parity.cases.values() for difference in cases.values()} == {0.0}
    assert {"full", "padded", "empty_feedback", "one_candidate"} <= set(parity.cases["watch"])
    assert (parity.searches, parity.others) == (len(parity.cases["search"]), 0)
    assert parity.searches > 30


def test_without_a_search_there_is_none_to_compare() -> None:
    plain = Graph("split", SPEC, random_upper(split=True))
    answers: dict[Stage, Answer] = {stage: partial(plain.run, stage) for stage in ("page", "event", "watch")}
    parity = compare_stages(plain, answers, where="model", tolerance=0.0)
    assert (list(parity.cases), parity.searches) == (["page", "event", "watch"], 0)


def _shift(name: str, by: float) -> Callable[[dict[str, NDArray[Any]]], object]:
    return lambda outputs: outputs[name].__iadd__(np.float32(by))


@pytest.mark.parametrize(
    ("stage", "change", "message"),
    [
        (
            "page",
            _shift("page_state", 0.1),
            "Expected torch's `page_state` within 0.0001, got a difference .* - at model, page, case full",
        ),
        ("event", _shift("event_state", np.nan), "Expected a finite `event_state`, got .* - at model, event, case full"),
        ("watch", lambda x: x.update(ready=x["ready"][:, :1]), r"Expected `ready` \[1, 12, .* - at model, watch, case full"),
        ("choose", _shift("scores", 1e-3), "Expected torch's `scores` within 1e-05, got .* - at model, choose, case full"),
        ("search", lambda x: x["order"].__iadd__(1), "Expected .* - at model, search, case full"),
        ("search", lambda x: x["order"].fill(0), "Expected a list of distinct candidates"),
        ("search", lambda x: x["order"][:, ::-1].sort(), "model, search, case"),
    ],
)
def test_what_differs_is_named(stage: str, change: Any, message: str) -> None:
    with pytest.raises(ParityError, match=message):
        compared(torch_answers(**{stage: change}))


def test_each_stage_takes_what_the_exported_ones_before_it_made() -> None:
    answers, taken = torch_answers(page=_shift("page_state", 1e-6)), []

    def watch(inputs: Inputs) -> dict[str, NDArray[Any]]:
        taken.append(inputs["page_state"] - GRAPH.run("page", inputs)["page_state"])
        return answers["watch"](inputs)

    compared({**answers, "watch": watch})
    assert min(difference.max() for difference in taken) > 0


def test_a_stage_that_fails_is_a_parity_error() -> None:
    def broken(inputs: Inputs) -> dict[str, NDArray[Any]]:
        raise RuntimeRunError("order", "a run", "none")

    with pytest.raises(ParityError, match=r"Expected an answer, got .* - at model, search, case full"):
        compared({**torch_answers(), "search": broken})


def test_another_list_counts_and_passes_where_it_is_worth_the_same_or_nothing_is_promised() -> None:
    def swapped(outputs: dict[str, NDArray[Any]]) -> None:
        outputs["order"][:, :2] = outputs["order"][:, 1::-1].copy() if outputs["order"][0, 1] >= 0 else outputs["order"][:, :2]

    with pytest.raises(ParityError, match="Expected the list"):
        compared(torch_answers(search=swapped))
    assert compared(torch_answers(search=swapped), None).others > 30
    free = replace(LIST_SPEC, task_weights={"like": 0.0})
    graph = Graph("split", free, GRAPH.model)
    answers = {**torch_answers(), "search": lambda inputs: _swap(graph.run("search", inputs))}
    parity = compare_stages(graph, answers, where="model", tolerance=1e-5)
    assert parity.others > 30


def _swap(outputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    order = outputs["order"].copy()
    if order[0, 1] >= 0:
        order[:, :2] = order[:, 1::-1].copy()
    return outputs | {"order": order}


@given(st.integers(1, 12), st.integers(0, 99))
def test_drawn_lists_are_distinct_candidates_padded_at_the_front(n: int, seed: int) -> None:
    drawn = draw_lists(LIST_SPEC, n, seed)
    chosen, mask = drawn["chosen"], drawn["chosen_mask"]
    assert chosen.shape == mask.shape == (LISTS.beam, LISTS.steps_max)
    assert (np.diff(mask, axis=1) >= 0).all()
    for row, real in zip(chosen, mask > 0, strict=True):
        assert len(set(row[real].tolist())) == real.sum() <= n
        assert ((row >= 0) & (row < n)).all()
    assert draw_lists(SPEC, n, seed) == {}


def test_the_worth_of_a_list_is_that_of_its_items_one_after_the_other() -> None:
    inputs: dict[str, NDArray[Any]] = draw_inputs(LIST_SPEC, "split", 5, 4, seed=1)
    for stage in ("page", "event", "watch"):
        inputs |= GRAPH.run(stage, inputs)
    first = inputs["scores"][0, 3]
    lists = {"chosen": np.array([[3]], np.int32), "chosen_mask": np.ones((1, 1), np.float32)}
    second = GRAPH.run("choose", inputs | lists)["scores"][0, 0]
    weights = np.array([1.0, 2.0])
    alone = float(first @ weights)
    assert list_reward(GRAPH, inputs, np.array([3, -1, -1, -1], np.int32)) == pytest.approx(alone)
    both = alone + float(first[0]) * float(second @ weights)
    assert list_reward(GRAPH, inputs, np.array([3, 0, -1, -1], np.int32)) == pytest.approx(both)
    assert list_reward(GRAPH, inputs, np.array([-1], np.int32)) == 0
