"""The graph that is converted is the model that was trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from device.contract import Form
from export.graphs import Graph, input_shapes
from export.parity import draw_inputs
from tests.export.small_run import SPEC, random_upper, small_run


def test_inputs_are_the_contracts_by_form() -> None:
    split, alone = input_shapes(SPEC, "split", 12, 10), input_shapes(SPEC, "self_contained", 12, 10)
    assert list(split)[:4] == ["candidate_float", "candidate_category", "candidate_vector", "candidate_mask"]
    assert set(split) - set(alone) == {"candidate_vector", "event_vector", "user_vector"}
    assert (split["event_feedback"], split["event_gap"], split["user_vector"]) == ((1, 10, 4), (1, 10, 2), (1, 8))


@settings(max_examples=20)
@given(st.sampled_from(["split", "self_contained"]), st.integers(1, 12), st.integers(1, 10), st.integers(0, 99))
def test_freezing_changes_no_score(form: Form, n: int, t: int, seed: int) -> None:
    model = random_upper(split=form == "split", seed=seed)
    inputs = draw_inputs(SPEC, form, n, t, seed)
    with torch.no_grad():
        before = model(**{name: torch.from_numpy(value) for name, value in inputs.items()}).numpy()
    np.testing.assert_array_equal(Graph(form, SPEC, model.freeze()).scores(inputs), before)


def test_the_traced_graph_takes_every_list_size(tmp_path: Path) -> None:
    graph = Graph.of(small_run(tmp_path), "split")
    program = graph.traced().module()
    for n, t in ((1, 1), (5, 3), (12, 10)):
        inputs = draw_inputs(SPEC, "split", n, t, seed=n)
        traced = program(*(torch.from_numpy(inputs[name]) for name in graph.names))
        np.testing.assert_allclose(traced.detach().numpy(), graph.scores(inputs), atol=1e-6)
