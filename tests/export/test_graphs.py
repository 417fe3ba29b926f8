"""The graph that is converted is the model that was trained, whole and in stages."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pocketrank.device.contract import Form, SearchSpec
from pocketrank.device.runtimes import OUTPUT_NAMES, STAGES
from pocketrank.export.errors import UnsupportedError
from pocketrank.export.graphs import FIRST, GOING, LINKS, NEXT, Graph, input_shapes, stage_output
from pocketrank.export.parity import draw_inputs
from tests.export.small_run import FULL, LIST_SPEC, SPEC, random_upper, small_run


def test_inputs_are_the_contracts_by_form() -> None:
    split, alone = input_shapes(SPEC, "split", 12, 10), input_shapes(SPEC, "self_contained", 12, 10)
    assert list(split)[:4] == ["candidate_float", "candidate_category", "candidate_vector", "candidate_mask"]
    assert set(split) - set(alone) == {"candidate_vector", "event_vector", "user_vector"}
    assert (split["event_feedback"], split["event_gap"], split["user_vector"]) == ((1, 10, 4), (1, 10, 2), (1, 8))


@settings(max_examples=20)
@given(st.sampled_from(["split", "self_contained"]), st.integers(1, 12), st.integers(1, 10), st.integers(0, 99))
def test_the_stages_one_after_the_other_are_the_whole_model(form: Form, n: int, t: int, seed: int) -> None:
    graph = Graph(form, LIST_SPEC, random_upper(split=form == "split", seed=seed, config=FULL))
    inputs = draw_inputs(SPEC, form, n, t, seed)
    known = dict(inputs)
    for stage in STAGES:
        made_here = graph.run(stage, known)
        assert tuple(made_here) == OUTPUT_NAMES[stage]
        known |= made_here
    np.testing.assert_allclose(known["scores"], graph.scores(inputs), atol=1e-6)
    nothing_chosen = {"chosen": np.zeros((1, 2), np.int32), "chosen_mask": np.zeros((1, 2), np.float32)}
    np.testing.assert_allclose(graph.run("choose", known | nothing_chosen)["scores"], known["scores"], atol=1e-6)


def test_a_search_makes_two_stages_more() -> None:
    plain, listing = Graph("split", SPEC, random_upper(split=True)), Graph("split", LIST_SPEC, random_upper(split=True))
    assert plain.stages == ("whole", "page", "event", "watch")
    assert listing.stages == (*plain.stages, "choose", "search")


def test_a_search_for_longer_lists_than_the_model_tells_apart_is_refused() -> None:
    spec = replace(SPEC, search=SearchSpec(steps_max=9))
    with pytest.raises(UnsupportedError, match=r"Expected at most 8, the model's chosen_max, got 9 - at search.steps_max"):
        Graph("split", spec, random_upper(split=True)).modules  # noqa: B018


def test_the_traced_graph_takes_every_list_size(tmp_path: Path) -> None:
    graph = Graph.of(small_run(tmp_path), "split")
    program = graph.traced().module()
    for n, t in ((1, 1), (5, 3), (12, 10)):
        inputs = draw_inputs(SPEC, "split", n, t, seed=n)
        traced = program(*(torch.from_numpy(inputs[name]) for name in graph.names))
        np.testing.assert_allclose(traced.detach().numpy(), graph.scores(inputs), atol=1e-6)


@pytest.mark.parametrize("spec", [SPEC, LIST_SPEC], ids=["ranking", "searching"])
def test_what_is_handed_on_is_an_output_and_an_input_of_the_traced_stages(spec) -> None:  # type: ignore[no-untyped-def]
    graph = Graph("self_contained", spec, random_upper(split=False))
    _, inputs, outputs = graph.traced_stages()
    assert len(set(inputs) | set(outputs)) == len(inputs) + len(outputs)
    assert set(LINKS.values()) <= set(outputs)
    assert {name for stage in graph.stages for name in (stage_output(stage, n) for n in OUTPUT_NAMES[stage])} <= set(outputs)
    if spec is LIST_SPEC:
        assert {*LINKS, "chosen", "chosen_mask", "lists", "reward", "alive"} <= set(inputs)
        assert {when + name for when in (FIRST, NEXT) for name in ("lists", "reward", "alive", GOING)} <= set(outputs)
    else:
        assert not {"ready", "scores", "candidate_mask"} & set(inputs)
