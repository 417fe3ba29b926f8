import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.model.history import GAP_POSITIONS_MAX, GAP_SECONDS_MAX, EventHistory
from tests.device.worlds import SPEC, T0, make_page

BUILD = FeatureBuilder(SPEC)
PAGE = BUILD.page(make_page(list(range(30))))
E = SPEC.events_max


def _row(value: float) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    return np.full(len(SPEC.feedback_floats), value, np.float32)


@given(st.lists(st.integers(-50, 50), max_size=60), st.integers(1, E))
def test_the_window_holds_the_last_events_in_time_order(times: list[int], least: int) -> None:
    history = EventHistory(SPEC)
    kept: list[tuple[int, int]] = []
    for i, t in enumerate(times):
        late = len(kept) == E and t < kept[0][0]
        assert history.append(T0 + t * 1000, i, _row(i), PAGE, i % 30) is not late
        if not late:
            # A stable sort puts an event behind those of the same instant.
            kept = sorted([*kept, (t, i)], key=lambda event: event[0])[-E:]
    length = max(least, len(kept))
    inputs = history.inputs(length, T0 + 100_000, 70)
    pad, order = length - len(kept), [i for _, i in kept]
    assert inputs["event_mask"].tolist() == [[0.0] * pad + [1.0] * len(kept)]
    assert inputs["event_feedback"][0, :, 0].tolist() == [0.0] * pad + [float(i) for i in order]
    np.testing.assert_array_equal(inputs["event_float"][0, pad:], PAGE.floats[[i % 30 for i in order]])
    np.testing.assert_array_equal(inputs["event_category"][0, pad:], PAGE.categories[[i % 30 for i in order]])
    assert PAGE.vector is not None
    np.testing.assert_array_equal(inputs["event_vector"][0, pad:], PAGE.vector[[i % 30 for i in order]])
    gaps = [[0.0, 0.0]] * pad + [[100.0 - t, 70.0 - i] for t, i in kept]
    np.testing.assert_allclose(inputs["event_gap"][0], np.array(gaps).reshape(length, 2), rtol=1e-6)
    for name, array in inputs.items():
        assert array.flags.c_contiguous, name
        assert array.shape[:2] == (1, length), name


def test_gaps_are_limited_and_never_negative() -> None:
    history = EventHistory(SPEC)
    history.append(-(2**63), -(2**63), _row(0), PAGE, 0)
    history.append(T0 + 5_000, 9, _row(0), PAGE, 0)
    history.append(2**63, 2**63, _row(0), PAGE, 0)
    gap = history.inputs(3, T0, 4)["event_gap"][0].tolist()
    assert gap == [[GAP_SECONDS_MAX, GAP_POSITIONS_MAX], [0.0, 0.0], [0.0, 0.0]]


def test_gaps_grow_with_the_clock_without_new_events() -> None:
    history = EventHistory(SPEC)
    history.append(T0, 0, _row(0), PAGE, 0)
    assert history.inputs(1, T0 + 1_500, 1)["event_gap"].tolist() == [[[1.5, 1.0]]]
    assert history.inputs(1, T0 + 9_000, 3)["event_gap"].tolist() == [[[9.0, 3.0]]]


def test_an_event_of_a_page_without_vectors_has_a_zero_vector_even_in_a_used_buffer() -> None:
    history = EventHistory(SPEC)
    for i in range(5 * E):
        history.append(T0 + i, i, _row(i), PAGE, 0)
    history.append(T0 + 10**6, 0, _row(0), PAGE.without_vectors(), 0)
    vectors = history.inputs(E, T0 + 10**6, 0)["event_vector"][0]
    assert not vectors[-1].any()
    assert vectors[-2].any()


def test_specs_without_some_groups() -> None:
    spec = msgspec.structs.replace(SPEC, vector_width=0, feedback_floats=(), candidate_categories=())
    page = FeatureBuilder(spec).page(make_page([1], split=None))
    history = EventHistory(spec)
    history.append(T0, 0, np.zeros(0, np.float32), page, 0)
    assert history.inputs(2, T0, 0)["event_vector"].shape == (1, 2, 0)
