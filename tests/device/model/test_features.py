import math
import re
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.codec import to_block
from pocketrank.device.contract import BlockError, CategoryFeature, Columns, DecodeError, FeatureSpec, FloatFeature, Page
from pocketrank.device.model.features import FeatureBuilder, check_spec
from tests.device.worlds import SPEC, T0, make_event, make_page

BUILD = FeatureBuilder(SPEC)


def _with(page: Page, **changes: Any) -> Page:
    return msgspec.structs.replace(page, candidates=msgspec.structs.replace(page.candidates, **changes))


def _floats(names: tuple[str, ...], values: list[list[float]]) -> Columns:
    return Columns(names=names, values=to_block(np.array(values), "f4"))


def test_columns_are_found_by_name_scaled_clipped_and_filled_in() -> None:
    rows = [[3.0, 9.0, 30_000.0], [math.nan, 9.0, -1.0], [math.inf, 9.0, math.nan], [-math.inf, 9.0, 1e38]]
    page = _with(make_page([1, 2, 3, 4]), floats=_floats(("age", "unheard_of", "duration_ms"), rows))
    arrays = BUILD.page(page)
    # pxtr_like is missing: its default everywhere
    expected = [[0.5, 30.0, 3.0], [0.5, 0.0, 0.0], [0.5, 15.0, 5.0], [0.5, 1800.0, -5.0]]
    np.testing.assert_allclose(arrays.floats, expected, rtol=1e-6)
    assert arrays.floats.dtype == np.float32
    assert (arrays.missing_columns, arrays.problem, arrays.vector_problem) == (1, None, None)


def test_categories_out_of_range_are_unknown() -> None:
    codes = Columns(names=("author", "category"), values=to_block(np.array([[99, 9], [100, 10], [-1, -(2**31)]]), "i4"))
    arrays = BUILD.page(_with(make_page([1, 2, 3]), categories=codes))
    assert arrays.categories.tolist() == [[9, 99], [0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("spec", "page", "read"),
    [("c0de", "c0de", True), ("c0de", msgspec.UNSET, True), (msgspec.UNSET, "c0de", True), ("c0de", "c0df", False)],
)
def test_categories_of_another_numbering_are_missing(spec: Any, page: Any, read: bool) -> None:
    builder = FeatureBuilder(msgspec.structs.replace(SPEC, numbering=spec))
    arrays, plain = builder.page(_with(make_page([1, 2, 3]), numbering=page)), BUILD.page(make_page([1, 2, 3]))
    assert plain.categories.any()
    assert arrays.categories.tolist() == (plain.categories.tolist() if read else [[0, 0]] * 3)
    np.testing.assert_array_equal(arrays.floats, plain.floats)
    assert arrays.missing_columns == plain.missing_columns + (0 if read else 2)


def test_repeats_go_with_their_features_the_first_stays() -> None:
    page = make_page([5, 6, 5, 7, 6])
    arrays, whole = BUILD.page(page), BUILD.page(make_page([1, 2, 3, 4, 5]))
    assert arrays.item_id.tolist() == [5, 6, 7]
    assert arrays.duplicates == 2
    np.testing.assert_array_equal(arrays.floats, whole.floats[[0, 1, 3]])
    assert arrays.vector is not None
    assert whole.vector is not None
    np.testing.assert_array_equal(arrays.vector, whole.vector[[0, 1, 3]])


def test_items_that_repeat_stay_in_cloud_order() -> None:
    assert BUILD.page(make_page([6, 5, 6])).item_id.tolist() == [6, 5]


def test_a_page_without_vectors_has_neither_kind() -> None:
    arrays = BUILD.page(make_page([1])).without_vectors()
    assert arrays.vector is None
    assert arrays.user_vector is None


def test_vectors_become_f4_with_zero_for_values_that_are_not_finite() -> None:
    vector = to_block(np.array([[1.0, math.nan, math.inf, -2.0]]), "f2")
    arrays = BUILD.page(_with(make_page([1]), vector=vector))
    assert arrays.vector is not None
    assert arrays.vector.dtype == np.float32
    assert arrays.vector.tolist() == [[1.0, 0.0, 0.0, -2.0]]
    assert arrays.user_vector is not None
    assert arrays.user_vector.shape == (1, 4)


@pytest.mark.parametrize(
    ("page", "problem"),
    [
        (make_page([1, 2], split=None), "no vectors"),
        (msgspec.structs.replace(make_page([1, 2], split=None), split_reason="the split version is too old"), "too old"),
        (msgspec.structs.replace(make_page([1, 2]), user_vector=None), "no vectors"),
        (_with(make_page([1, 2]), vector=to_block(np.zeros((2, 5)), "f2")), r"Expected \[2, 4\], got \[2, 5\]"),
        (_with(make_page([1, 2]), vector=to_block(np.zeros((2, 4)), "f4")), "f2"),
        (_with(make_page([1, 2]), vector=to_block(np.zeros((3, 4)), "f2")), r"Expected \[2, 4\], got \[3, 4\]"),
        (msgspec.structs.replace(make_page([1, 2]), user_vector=to_block(np.zeros(3), "f2")), r"Expected \[4\], got \[3\]"),
    ],
)
def test_without_usable_vectors_the_rest_of_the_page_is_read(page: Page, problem: str) -> None:
    arrays = BUILD.page(page)
    assert arrays.vector is None
    assert arrays.user_vector is None
    assert arrays.problem is None
    assert re.search(problem, str(arrays.vector_problem))


def test_features_that_cannot_be_read_leave_items_and_a_problem() -> None:
    arrays = BUILD.page(_with(make_page([1, 2]), floats=_floats(("age",), [[1.0]])))
    assert arrays.item_id.tolist() == [1, 2]
    assert arrays.problem is not None
    assert "$.candidates.floats" in arrays.problem
    assert np.isfinite(arrays.floats).all()


def test_items_that_cannot_be_read_are_an_error() -> None:
    with pytest.raises(BlockError):
        BUILD.page(_with(make_page([1]), item_id=to_block(np.zeros((1, 1), int), "i8")))


@given(st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_inputs_stay_within_their_limits(rows: list[list[float]]) -> None:
    names = tuple(f.name for f in SPEC.candidate_floats)
    floats = BUILD.page(_with(make_page(list(range(len(rows)))), floats=_floats(names, rows))).floats
    low, high = (np.array([getattr(f, side) for f in SPEC.candidate_floats], np.float32) for side in ("min", "max"))
    assert ((floats >= low) & (floats <= high)).all()


def test_feedback_is_read_by_name_and_unknown_fields_take_defaults() -> None:
    out = np.zeros(5, np.float32)
    BUILD.feedback(make_event(1, watch_ms=2_500, like=True), out)
    assert out.tolist() == [2.5, 1.0, 0.5, 2.0, 0.0]
    BUILD.feedback(make_event(1, watch_ms=-5, volume=7.0, network=0, ended=2), out)
    assert out.tolist() == [0.0, 0.0, 1.0, 0.0, 2.0]


@pytest.mark.parametrize("names", [(), ("pauses",)])
def test_specs_with_few_feedback_features(names: tuple[str, ...]) -> None:
    features = tuple(FloatFeature(name=name, min=0, max=9, default=4) for name in names)
    out = np.zeros(len(names), np.float32)
    FeatureBuilder(msgspec.structs.replace(SPEC, feedback_floats=features)).feedback(make_event(1), out)
    assert out.tolist() == [4.0] * len(names)


def test_custom_actions_are_features_by_name() -> None:
    names = ("purchase", "watch_ms", "add_to_cart")
    features = tuple(FloatFeature(name=name, min=0, max=9, default=0) for name in names)
    build, out = FeatureBuilder(msgspec.structs.replace(SPEC, feedback_floats=features)), np.zeros(3, np.float32)
    build.feedback(make_event(1, watch_ms=4, actions=("add_to_cart", "gift")), out)
    assert out.tolist() == [0.0, 4.0, 1.0]
    build.feedback(make_event(1, watch_ms=4), out)
    assert out.tolist() == [0.0, 4.0, 0.0]


def test_context_is_position_and_whole_hour() -> None:
    out = np.zeros(2, np.float32)
    BUILD.context(12, T0, out)
    assert out.tolist() == [12.0, 22.0]
    BUILD.context(5_000, T0 + 2 * 3_600_000, out)
    assert out.tolist() == [1000.0, 0.0]


def _spec(**changes: Any) -> FeatureSpec:
    return msgspec.structs.replace(SPEC, **changes)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        (_spec(tasks=()), "$.tasks"),
        (_spec(tasks=("like", "like")), "$.tasks"),
        (_spec(task_weights={"share": 1.0}), "$.task_weights.share"),
        (_spec(task_weights={"like": math.nan}), "$.task_weights.like"),
        (_spec(task_weights={"like": -math.inf}), "$.task_weights.like"),
        (_spec(survival_task="share"), "$.survival_task"),
        (_spec(candidates_max=0), "$.candidates_max"),
        (_spec(candidates_max=10_001), "$.candidates_max"),
        (_spec(events_max=10_001), "$.events_max"),
        (_spec(list_sizes=(10_001,)), "$.list_sizes"),
        (_spec(task_weights={"like": 1.1e30}), "$.task_weights.like"),
        (_spec(candidate_categories=(CategoryFeature(name="a", size=2),) * 2), "$.candidate_categories"),
        (_spec(events_max=0), "$.events_max"),
        (_spec(vector_width=-1), "$.vector_width"),
        (_spec(vector_width=4097), "$.vector_width"),
        (_spec(list_sizes=(8, 4)), "$.list_sizes"),
        (_spec(list_sizes=(4, 4)), "$.list_sizes"),
        (_spec(list_sizes=(0,)), "$.list_sizes"),
        (_spec(context_floats=(FloatFeature(name="moon", min=0, max=1),)), "$.context_floats[0].name"),
        (_spec(feedback_floats=(FloatFeature(name="event_id", min=0, max=1),)), "$.feedback_floats[0].name"),
        (_spec(feedback_floats=(FloatFeature(name="__class__", min=0, max=1),)), "$.feedback_floats[0].name"),
        (_spec(feedback_floats=(FloatFeature(name="actions", min=0, max=1),)), "$.feedback_floats[0].name"),
        (_spec(feedback_floats=(FloatFeature(name="a" * 49, min=0, max=1),)), "$.feedback_floats[0].name"),
        (_spec(candidate_floats=(FloatFeature(name="a", min=1, max=0),)), "$.candidate_floats[0]"),
        (_spec(candidate_floats=(FloatFeature(name="a", min=0, max=1, default=2),)), "$.candidate_floats[0]"),
        (_spec(candidate_floats=(FloatFeature(name="a", min=0, max=math.inf),)), "$.candidate_floats[0]"),
        (_spec(candidate_floats=(FloatFeature(name="a", min=-math.inf, max=1),)), "$.candidate_floats[0]"),
        (_spec(candidate_floats=(FloatFeature(name="a", min=0, max=1, scale=math.nan),)), "$.candidate_floats[0].scale"),
        (_spec(candidate_floats=(FloatFeature(name="a", min=0, max=1),) * 2), "$.candidate_floats"),
        (_spec(candidate_categories=(CategoryFeature(name="a", size=0),)), "$.candidate_categories[0].size"),
        (_spec(candidate_categories=(CategoryFeature(name="a", size=2**31),)), "$.candidate_categories[0].size"),
    ],
)
def test_specs_that_a_device_cannot_follow_name_the_path(spec: FeatureSpec, path: str) -> None:
    with pytest.raises(DecodeError) as caught:
        check_spec(spec)
    assert caught.value.path == path
    assert caught.value.got != "None"
    field = path.removeprefix("$.").partition("[")[0].partition(".")[0]
    expected = (
        "a finite number" if path.endswith("scale") else "a feature that a device knows" if path.endswith("name") else None
    )
    assert caught.value.expected == (expected or EXPECTED[field, "[" in path])


EXPECTED = {
    ("tasks", False): "unique names, at least one",
    ("task_weights", False): "a finite weight of a known task",
    ("survival_task", False): "a known task",
    ("candidates_max", False): "1..10000",
    ("events_max", False): "1..10000",
    ("vector_width", False): "0..4096",
    ("list_sizes", False): "ascending sizes",
    ("candidate_floats", False): "unique names",
    ("candidate_floats", True): "min <= default <= max",
    ("candidate_categories", False): "unique names",
    ("candidate_categories", True): "1..2147483647",
}
"""By field, and whether the path names one of several."""


@pytest.mark.parametrize(
    "changes",
    [
        {"list_sizes": (1, 10_000)},
        {"candidates_max": 1, "events_max": 1, "vector_width": 0},
        {"candidates_max": 10_000, "events_max": 10_000, "vector_width": 4096},
        {"task_weights": {"like": 1e30}},
        {"task_weights": {"like": -1e30}},
        {"survival_task": "like"},
        {"candidate_floats": (FloatFeature(name="a", min=-1e30, max=1e30, default=-1e30),)},
        {"candidate_floats": (FloatFeature(name="a", min=1, max=1, default=1, scale=-1e30),)},
        {"candidate_categories": (CategoryFeature(name="a", size=1), CategoryFeature(name="b", size=2**31 - 1))},
    ],
)
def test_specs_at_the_limits_are_followed(changes: dict[str, Any]) -> None:
    check_spec(_spec(**changes))
