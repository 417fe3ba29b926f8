"""The cases are what they say, and a wrong model does not pass."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.contract import Form
from pocketrank.export.errors import ParityError
from pocketrank.export.graphs import Graph, input_shapes
from pocketrank.export.parity import compare, draw_inputs, parity_cases, resize
from tests.export.small_run import SPEC, random_upper

GRAPH = Graph("split", SPEC, random_upper(split=True))


@given(st.sampled_from(["split", "self_contained"]), st.integers(1, 12), st.integers(1, 10), st.integers(0, 99))
def test_inputs_have_the_contracts_shapes_and_stay_in_the_specs_ranges(form: Form, n: int, t: int, seed: int) -> None:
    inputs = draw_inputs(SPEC, form, n, t, seed)
    assert {name: value.shape for name, value in inputs.items()} == input_shapes(SPEC, form, n, t)
    for name, value in inputs.items():
        assert value.dtype == (np.int32 if name.endswith("category") else np.float32)
        assert value.flags.c_contiguous
    for name, features in (("candidate_float", SPEC.candidate_floats), ("event_feedback", SPEC.feedback_floats)):
        low, high = np.float32([f.min for f in features]), np.float32([f.max for f in features])
        assert (inputs[name] >= low).all()
        assert (inputs[name] <= high).all()
    assert (inputs["candidate_category"] < SPEC.candidate_categories[0].size).all()


def test_cases_mask_what_their_names_say() -> None:
    cases = parity_cases(SPEC, "split")
    assert cases["full"]["candidate_mask"].all()
    assert cases["full"]["event_mask"].all()
    assert 0 < cases["padded"]["candidate_mask"].sum() < SPEC.candidates_max
    assert 0 < cases["padded"]["event_mask"].sum() < SPEC.events_max
    assert not cases["empty_feedback"]["event_mask"].any()
    assert cases["one_candidate"]["candidate_mask"].shape == (1, 1)
    assert 0 < cases["random_mask"]["candidate_mask"].sum() < SPEC.candidates_max


@given(st.integers(1, 12), st.integers(1, 10), st.integers(0, 99))
def test_padding_changes_no_score(n: int, t: int, seed: int) -> None:
    inputs = draw_inputs(SPEC, "split", n, t, seed)
    padded = resize(inputs, SPEC.candidates_max, SPEC.events_max)
    np.testing.assert_allclose(GRAPH.scores(padded)[:, :n], GRAPH.scores(inputs), atol=1e-6)


def test_torch_itself_passes() -> None:
    assert max(compare(GRAPH, GRAPH.scores, where="torch", tolerance=0.0).values()) == 0.0


def test_a_difference_a_wrong_shape_and_nan_are_parity_errors() -> None:
    with pytest.raises(
        ParityError, match=r"Expected torch's scores within 1e-05, got a difference of 0\.001 - at model, case full"
    ):
        compare(GRAPH, lambda inputs: GRAPH.scores(inputs) + np.float32(1e-3), where="model", tolerance=1e-5)
    with pytest.raises(ParityError, match=r"scores \[1, 12, 2\], got \[1, 12, 1\]"):
        compare(GRAPH, lambda inputs: GRAPH.scores(inputs)[..., :1], where="model")
    with pytest.raises(ParityError, match="finite"):
        compare(GRAPH, lambda inputs: GRAPH.scores(inputs) * np.float32("nan"), where="model")


def test_a_model_that_ignores_the_mask_fails() -> None:
    def unmasked(inputs):  # type: ignore[no-untyped-def]
        return GRAPH.scores({**inputs, "event_mask": np.ones_like(inputs["event_mask"])})

    with pytest.raises(ParityError, match="case padded"):
        compare(GRAPH, unmasked, where="model", tolerance=1e-5)
