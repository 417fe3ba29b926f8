import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cloud.models.reranker import UpperHalf
from export.parity import draw_inputs
from tests.export.small_run import CONFIG, SPEC, random_upper

Inputs = dict[str, torch.Tensor]


def draw(form: str, n: int, t: int, seed: int = 0) -> Inputs:
    return {k: torch.from_numpy(v) for k, v in draw_inputs(SPEC, form, n, t, seed).items()}  # type: ignore[arg-type]


def scores(model: UpperHalf, inputs: Inputs) -> np.ndarray:
    with torch.no_grad():
        return model(**inputs).numpy()


@pytest.mark.parametrize("form", ["split", "self_contained"])
@given(seed=st.integers(0, 50), n=st.integers(1, 12), t=st.integers(0, 10))
@settings(max_examples=15, deadline=None)
def test_the_order_of_candidates_and_what_is_masked_do_not_matter(form: str, seed: int, n: int, t: int) -> None:
    model = random_upper(split=form == "split")
    inputs = draw(form, n, max(t, 1), seed)
    inputs["candidate_mask"][:] = 1
    inputs["event_mask"][:] = float(t > 0)
    expected = scores(model, inputs)
    assert np.isfinite(expected).all()

    order = torch.randperm(n)
    moved = {k: v[:, order] if k.startswith("candidate") else v for k, v in inputs.items()}
    np.testing.assert_allclose(scores(model, moved), expected[:, order.numpy()], atol=1e-6)

    other = draw(form, 3, 4, seed + 1)
    padded = {
        k: torch.cat([v, other[k] * 0 if k.endswith("mask") else other[k]], 1) if k.startswith(("candidate", "event")) else v
        for k, v in inputs.items()
    }
    np.testing.assert_allclose(scores(model, padded)[:, :n], expected, atol=1e-6)


def test_a_split_form_that_starts_from_the_self_contained_one_scores_alike() -> None:
    own, split = random_upper(split=False), UpperHalf(CONFIG, SPEC, split=True).eval()
    split.start_from(own)
    inputs = draw("split", 12, 10)
    alone = {k: v for k, v in inputs.items() if "vector" not in k}
    np.testing.assert_allclose(scores(split, inputs), scores(own, alone), atol=1e-6)


def test_scores_of_exactly_zero_and_one_and_absurd_values_stay_finite() -> None:
    model, inputs = random_upper(split=True), draw("split", 6, 5)
    for value in (0.0, 1.0):
        inputs["candidate_float"][..., : len(SPEC.tasks)] = value
        inputs["event_float"][..., : len(SPEC.tasks)] = value
        inputs["event_gap"][:] = 604_800
        assert np.isfinite(scores(model, inputs)).all()


def test_feedback_changes_the_scores() -> None:
    model, inputs = random_upper(split=False), draw("self_contained", 6, 5)
    inputs["event_mask"][:] = 1
    before = scores(model, inputs)
    inputs["event_feedback"][:, -1, 1] = 1 - inputs["event_feedback"][:, -1, 1]
    assert np.abs(scores(model, inputs) - before).max() > 1e-4
