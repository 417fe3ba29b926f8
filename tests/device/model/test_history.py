from typing import Any

import msgspec
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketrank.device.contract import Form
from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.model.history import EventHistory
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
    assert gap == [[604_800.0, 10_000.0], [0.0, 0.0], [0.0, 0.0]]  # a week, and what the contract says of positions


def test_times_and_positions_beyond_any_float_are_limited_too() -> None:
    history = EventHistory(SPEC)
    for far in (-(10**400), 10**400):
        history.append(far, far, _row(0), PAGE, 0)
    assert history.inputs(2, T0, 4)["event_gap"][0].tolist() == [[604_800.0, 10_000.0], [0.0, 0.0]]


class _Stage:
    """A model's stage `event` whose state is the first feedback feature, and the lengths that it was run for."""

    def __init__(self) -> None:
        self.lengths: list[int] = []

    def __call__(self, inputs: dict[str, Any]) -> NDArray[np.float32]:
        self.lengths.append(inputs["event_feedback"].shape[1])
        state: NDArray[np.float32] = inputs["event_feedback"][:, :, :1].copy()
        return state

    def runs(self, history: EventHistory, form: Form = "split", lengths: tuple[int, ...] | None = None) -> list[int]:
        """The lengths of the runs that bring all states up to date."""
        self.lengths = []
        history.encode(form, 1, lengths, self)
        count = history.count
        assert history.states(count)[0, :, 0].tolist() == history.inputs(count, 0, 0)["event_feedback"][0, :, 0].tolist()
        return self.lengths


def test_only_events_without_a_state_are_encoded() -> None:
    history, stage = EventHistory(SPEC), _Stage()
    assert stage.runs(history) == []
    for i in range(3):
        history.append(T0 + 10 * i, i, _row(i + 1), PAGE, i)
    assert stage.runs(history) == [3]
    assert stage.runs(history) == []
    history.append(T0 + 100, 3, _row(4), PAGE, 3)
    assert stage.runs(history) == [1]
    history.append(T0 + 15, 4, _row(5), PAGE, 4)  # late: it and the two behind it
    assert stage.runs(history) == [3]
    assert stage.runs(history, "self_contained") == [5]
    for i in range(3 * E):
        history.append(T0 + 1000 + i, i, _row(i), PAGE, 0)
    assert stage.runs(history, "self_contained") == [E]


def test_events_are_encoded_in_the_lengths_that_the_stage_accepts() -> None:
    history, stage = EventHistory(SPEC), _Stage()
    for i in range(3):
        history.append(T0 + i, i, _row(i + 1), PAGE, i)
    assert stage.runs(history, lengths=(1, 2)) == [2, 1]
    history.append(T0 + 9, 3, _row(4), PAGE, 3)
    assert stage.runs(history, lengths=(1, 2)) == [1]


def test_a_copy_has_the_same_events_and_states_and_shares_nothing() -> None:
    history, stage = EventHistory(SPEC), _Stage()
    for i in range(2 * E):
        history.append(T0 + i, i, _row(i), PAGE, i)
    stage.runs(history)
    copy = history.copy()
    assert stage.runs(copy) == [E]
    before = {name: array.copy() for name, array in copy.inputs(E, T0, 0).items()}
    history.append(T0 + 100, 7, _row(-1), PAGE, 3)
    for name, array in copy.inputs(E, T0, 0).items():
        np.testing.assert_array_equal(array, before[name])
    assert before["event_feedback"][0, :, 0].tolist() == list(range(E, 2 * E))


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
