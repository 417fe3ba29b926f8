from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketrank.device.bundle.bundle import Bundle, write_manifest
from pocketrank.device.bundle.files import NoSuchModelError
from pocketrank.device.contract import FeatureSpec, Form, GroupRule, ModelEntry
from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.ranking.ranker import Moment, Ranker
from pocketrank.device.runtimes import RuntimeLoadError, open_runtime
from tests.device.worlds import SPEC, SPLIT, T0, make_bundle, make_page, onnx_model, reference

VECTORS = Path(__file__).parents[2] / "vectors"
WEIGHTS = np.array([1.0, 2.0])
CONTEXT = np.array([[3.0, 12.0]], np.float32)


@pytest.fixture(scope="module")
def dynamic(tmp_path_factory: pytest.TempPathFactory) -> Ranker:
    return Ranker.open(make_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture(scope="module")
def static() -> Ranker:
    forms: tuple[Form, ...] = ("split", "self_contained")
    return Ranker(SPEC, SPLIT, {form: {"whole": open_runtime(VECTORS / f"{form}.tflite", "tflite")} for form in forms})


def _state(ranker: Ranker, candidates: int, events: int, seed: int = 0) -> tuple[Remaining, EventHistory]:
    page = FeatureBuilder(SPEC).page(make_page(list(range(candidates)), seed))
    history, rng = EventHistory(SPEC), np.random.default_rng(seed)
    for i in range(events):
        history.append(T0 + 1000 * i, i, rng.random(5, np.float32), page, i % candidates)
    return Remaining(page, ranker.rows), history


def _expected(form: Form, remaining: Remaining, history: EventHistory, limit: int) -> NDArray[Any]:
    """Scores of the first `limit` by numpy, on inputs without any padding."""
    k = min(remaining.count, limit)
    inputs: dict[str, NDArray[Any]] = dict(history.inputs(max(1, history.count), T0 + 60_000, 9))
    inputs |= {"candidate_float": remaining.floats[:, :k], "candidate_category": remaining.categories[:, :k]}
    inputs |= {"candidate_mask": np.ones((1, k), np.float32), "context": CONTEXT}
    if form == "split":
        assert remaining.vector is not None
        assert remaining.page.user_vector is not None
        inputs |= {"candidate_vector": remaining.vector[:, :k], "user_vector": remaining.page.user_vector}
    else:
        del inputs["event_vector"]
    total: NDArray[Any] = reference(SPEC, inputs)[0] @ WEIGHTS
    return total


@given(
    st.sampled_from(["split", "self_contained"]),
    st.integers(1, 12),
    st.integers(0, 9),
    st.integers(0, 999),
    st.booleans(),
)
def test_order_is_by_weighted_scores_and_the_rest_follows_in_cloud_order(
    dynamic: Ranker, static: Ranker, form: Form, candidates: int, events: int, seed: int, padded: bool
) -> None:
    ranker = static if padded else dynamic
    remaining, history = _state(ranker, candidates, events, seed)
    ranking = ranker.order(form, Moment(remaining, history, CONTEXT, T0 + 60_000, 9))
    assert ranking is not None
    order = ranking.order
    assert sorted(order.tolist()) == list(range(candidates))
    scored = min(candidates, SPEC.candidates_max)
    assert sorted(order[:scored].tolist()) == list(range(scored))
    assert order[scored:].tolist() == list(range(scored, candidates))
    ranked = _expected(form, remaining, history, SPEC.candidates_max)[order[:scored]]
    # Scores closer than the runtimes' rounding may come in either order.
    assert (np.diff(ranked) <= 1e-4).all()
    assert ranking.scores.shape == (scored, len(SPEC.tasks))
    np.testing.assert_allclose(ranking.values, ranking.scores @ WEIGHTS, rtol=1e-5)
    assert (np.diff(ranking.values[order[:scored]]) <= 0).all()


def test_ties_keep_cloud_order(dynamic: Ranker) -> None:
    # More than 16: sorts that are not stable are so on shorter lists.
    spec = msgspec.structs.replace(SPEC, candidates_max=60)
    ranker = Ranker(spec, SPLIT, dynamic.runtimes)
    remaining, history = _state(ranker, 60, 3)
    for array in (remaining.floats, remaining.categories, remaining.vector):
        assert array is not None
        array[0, ::2], array[0, 1::2] = array[0, 0], array[0, 1]
    ranking = ranker.order("split", Moment(remaining, history, CONTEXT, T0, 0))
    assert ranking is not None
    order = ranking.order
    even, odd = list(range(0, 60, 2)), list(range(1, 60, 2))
    assert order.tolist() in (even + odd, odd + even)


def test_inputs_are_views_of_the_sessions_arrays(dynamic: Ranker) -> None:
    remaining, history = _state(dynamic, 5, 4)
    inputs, count = dynamic.inputs("split", Moment(remaining, history, CONTEXT, T0, 0))
    assert count == 5
    assert np.shares_memory(inputs["candidate_float"], remaining.floats)
    assert remaining.vector is not None
    assert np.shares_memory(inputs["candidate_vector"], remaining.vector)
    assert np.shares_memory(inputs["event_vector"], history.vector)
    assert all(array.flags.c_contiguous for array in inputs.values())


@pytest.mark.parametrize(("candidates", "size"), [(1, 4), (4, 4), (5, 8), (12, 8)])
def test_static_shapes_are_padded_to_the_next_list_size(static: Ranker, candidates: int, size: int) -> None:
    remaining, history = _state(static, candidates, 2)
    inputs, count = static.inputs("split", Moment(remaining, history, CONTEXT, T0, 0))
    real = min(candidates, 8)
    assert count == real
    assert inputs["candidate_mask"].tolist() == [[1.0] * real + [0.0] * (size - real)]
    assert inputs["event_mask"].tolist() == [[0.0] * 4 + [1.0] * 2]


def _ranker(tmp_path: Path, spec: FeatureSpec = SPEC, **keys: Any) -> Ranker:
    onnx.save(onnx_model(SPEC, "split", **keys), tmp_path / "m.onnx")
    return Ranker(spec, SPLIT, {"split": {"whole": open_runtime(tmp_path / "m.onnx", "onnx")}})


def test_scores_that_are_no_numbers_give_no_order(tmp_path: Path) -> None:
    for poison in (float("nan"), float("inf")):
        ranker = _ranker(tmp_path, poison=poison)
        assert ranker.order("split", Moment(*_state(ranker, 5, 0), CONTEXT, T0, 0)) is not None
        assert ranker.order("split", Moment(*_state(ranker, 5, 1), CONTEXT, T0, 0)) is None


def test_models_that_disagree_with_the_spec_do_not_open(tmp_path: Path) -> None:
    wider = msgspec.structs.replace(SPEC, vector_width=5)
    with pytest.raises(RuntimeLoadError, match="a model that runs on the spec's inputs"):
        _ranker(tmp_path, wider)
    with pytest.raises(RuntimeLoadError, match="Expected 6 events"):
        _ranker(tmp_path, events=5)
    tasks = msgspec.structs.replace(SPEC, tasks=("like",), task_weights={})
    with pytest.raises(RuntimeLoadError, match="scores"):
        _ranker(tmp_path, tasks)


def test_a_split_model_is_not_taken_for_a_self_contained_one(tmp_path: Path) -> None:
    onnx.save(onnx_model(SPEC, "split"), tmp_path / "m.onnx")
    with pytest.raises(RuntimeLoadError, match="candidate_vector"):
        Ranker(SPEC, SPLIT, {"self_contained": {"whole": open_runtime(tmp_path / "m.onnx", "onnx")}})


def test_opening_what_a_bundle_does_not_have(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path, forms=("self_contained",))
    assert set(Ranker.open(bundle).runtimes) == {"self_contained"}
    with pytest.raises(NoSuchModelError, match="a model tflite fp32"):
        Ranker.open(bundle, "tflite")


def test_a_group_is_ranked_by_its_own_model(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path)
    onnx.save(onnx_model(SPEC, "split", seed=5), tmp_path / "heavy.onnx")
    heavy = ModelEntry(form="split", format="onnx", precision="fp32", path="heavy.onnx", bytes=0, group="heavy")
    models = (*bundle.manifest.models, heavy)
    rule = GroupRule(casual_from=2, heavy_from=5)
    write_manifest(tmp_path, name="b", serial=2, split_version=SPLIT, spec=SPEC, models=models, created_ms=T0, groups=rule)
    bundle = Bundle.open(tmp_path)
    scores = {}
    for seen in (0, 3, 9):
        ranker = Ranker.open(bundle, group=bundle.group(seen))
        assert set(ranker.runtimes) == {"split", "self_contained"}
        inputs, _ = ranker.inputs("split", Moment(*_state(ranker, 5, 3), CONTEXT, T0 + 60_000, 9))
        scores[seen] = ranker.runtimes["split"]["whole"].run(inputs)
        np.testing.assert_allclose(scores[seen], reference(SPEC, inputs, 5 if seen == 9 else 0), atol=1e-5)
    np.testing.assert_array_equal(scores[0], scores[3])


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("candidates", [2, 5, 12])
def test_the_order_is_by_adjusted_scores(dynamic: Ranker, static: Ranker, padded: bool, candidates: int) -> None:
    ranker = static if padded else dynamic
    moment = Moment(*_state(ranker, candidates, 3), CONTEXT, T0 + 60_000, 9)
    asked = []

    def backwards(scores: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(scores.copy())
        return 1 - scores

    plain, adjusted = ranker.order("split", moment), ranker.order("split", moment, backwards)
    assert plain is not None
    assert adjusted is not None
    order, other = plain.order, adjusted.order
    (shipped,) = asked
    scored = min(candidates, SPEC.candidates_max)
    assert shipped.shape == (scored, 2)
    np.testing.assert_array_equal(order[:scored], np.argsort(-(shipped @ WEIGHTS), kind="stable"))
    np.testing.assert_array_equal(other[:scored], np.argsort(shipped @ WEIGHTS, kind="stable"))
    assert ranker.order("split", moment, lambda scores: scores * np.float32(np.nan)) is None


@given(st.integers(2, 12), st.integers(0, 9), st.lists(st.integers(0, 9), max_size=8))
def test_copies_go_on_alike_and_leave_what_they_were_made_of(
    dynamic: Ranker, candidates: int, events: int, taken: list[int]
) -> None:
    def go_on(held: Remaining, history: EventHistory) -> list[list[int]]:
        orders = []
        for number, place in enumerate(taken):
            if held.count > 1:
                feedback = np.full(len(SPEC.feedback_floats), 0.5, np.float32)
                history.append(T0 + 10**6 + number, 20 + number, feedback, held.page, held.take(place % held.count))
                ranking = dynamic.order("split", Moment(held, history, CONTEXT, T0 + 10**7, 30))
                assert ranking is not None
                orders.append(held.item_id[ranking.order].tolist())
        return orders

    held, history = _state(dynamic, candidates, events)
    before = [array.copy() for array in (held.floats, held.categories, history.floats, history.feedback)]
    orders = go_on(held.copy(), history.copy())
    for array, now in zip(before, (held.floats, held.categories, history.floats, history.feedback), strict=True):
        np.testing.assert_array_equal(array, now)
    assert orders == go_on(held, history)
