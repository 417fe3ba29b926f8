import math
import zlib
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.contract import GroupRule, PersonalConfig, TaskPrior
from pocketrank.device.model.personal import (
    CorruptStateError,
    ForeignStateError,
    PersonalError,
    PersonalLayer,
    group,
    labels,
)
from tests.device.worlds import make_event

TASKS = ("click", "like", "has_next")
CONFIG = PersonalConfig(tasks={"click": TaskPrior(user=0.3, category=0.5), "like": TaskPrior(user=0.8, category=0.0)})
NAN = float("nan")

ABSURD = st.sampled_from([0.0, 1.0, NAN, float("inf"), -float("inf"), -1.0, 2.0, 1e-45, 1e-9, 1 - 2**-24])
PROBABILITY = st.floats(0, 1, width=32) | ABSURD
LABEL = st.sampled_from([0.0, 1.0, NAN]) | ABSURD
CATEGORY = st.integers(-(2**31), 2**31 - 1) | st.integers(0, 5)
IMPRESSION = st.tuples(st.tuples(*[PROBABILITY] * 3), st.tuples(*[LABEL] * 3), CATEGORY)


def f32(*values: Any) -> np.ndarray:
    return np.array(values, np.float32)


def layer(config: PersonalConfig = CONFIG) -> PersonalLayer:
    return PersonalLayer(TASKS, bundle="feed/3", user_id=7, config=config)


def learned(steps: list[tuple[tuple[float, ...], tuple[float, ...], int]], config: PersonalConfig = CONFIG) -> PersonalLayer:
    made = layer(config)
    for probabilities, known, category in steps:
        made.learn(f32(*probabilities), f32(*known), category)
    return made


def restore(data: bytes, **changes: Any) -> PersonalLayer:
    wanted = {"tasks": TASKS, "bundle": "feed/3", "user_id": 7, "config": CONFIG} | changes
    return PersonalLayer.restore(data, wanted.pop("tasks"), **wanted)


def log_odds(p: np.ndarray) -> np.ndarray:
    p = p.astype(np.float64)
    return np.log(p) - np.log1p(-p)


@given(st.lists(st.tuples(*[PROBABILITY] * 3), min_size=1, max_size=8))
def test_a_new_layer_returns_the_shipped_probabilities_bit_for_bit(rows: list[tuple[float, ...]]) -> None:
    shipped = f32(*rows)
    for categories in (None, np.arange(len(rows), dtype=np.int32)):
        assert layer().adjust(shipped, categories).tobytes() == shipped.tobytes()


@given(st.lists(IMPRESSION, max_size=20))
def test_by_default_nothing_adapts(steps: list[Any]) -> None:
    shipped = f32([0.1, 0.5, 0.9], [0.3, 1e-9, 1.0])
    made = learned(steps, PersonalConfig())
    assert made.drift == 0
    assert made.adjust(shipped, np.array([1, 2])).tobytes() == shipped.tobytes()


def test_feedback_moves_its_tasks_and_its_category_most() -> None:
    made = layer()
    assert made.learn(f32(0.5, 0.1, 0.9), f32(1, 0, 0), 4)
    assert made.events == 1
    shipped = f32([0.5, 0.1, 0.9])
    same, other, unknown = (made.adjust(shipped, np.array([code]))[0] for code in (4, 5, 0))
    assert same[0] > other[0] > 0.5
    assert same[1] < 0.1
    assert same[2] == shipped[0, 2]  # has_next does not adapt
    assert np.array_equal(other, unknown)
    assert np.array_equal(made.adjust(shipped)[0], other)


def test_a_step_is_the_filters() -> None:
    """By hand for one task: after a first impression of another category, so that both weights have moved."""
    config = PersonalConfig(tasks={"click": TaskPrior(user=0.3, category=0.5)}, forget=0.1)
    made = learned([((0.4, 0.5, 0.5), (1, NAN, NAN), 1), ((0.7, 0.5, 0.5), (0, NAN, NAN), 2)], config)
    keep, prior = math.exp(-0.1), {"user": 0.09, "1": 0.25, "2": 0.25}
    mean, variance = dict.fromkeys(prior, 0.0), dict(prior)
    for p, label, category in ((0.4, 1, "1"), (0.7, 0, "2")):
        for name in prior:
            mean[name] *= keep
            variance[name] = keep**2 * variance[name] + (1 - keep**2) * prior[name]
        odds = p / (1 - p) * math.exp(mean["user"] + mean[category])
        now = odds / (1 + odds)
        q, both = now * (1 - now), variance["user"] + variance[category]
        for name in ("user", category):
            gain = variance[name] / (1 + q * both)
            mean[name] += gain * (label - now)
            variance[name] -= gain * q * variance[name]
    answers = made.adjust(np.full((3, 3), 0.5, np.float32), np.array([0, 1, 2]))[:, 0]
    expected = [mean["user"], mean["user"] + mean["1"], mean["user"] + mean["2"]]
    np.testing.assert_allclose(log_odds(answers), expected, atol=1e-6)


def test_what_is_learned_is_near_the_true_posterior() -> None:
    """One weight, nothing forgotten, 80 impressions: its posterior mean is an integral that a grid can do."""
    rng = np.random.default_rng(3)
    shipped = rng.uniform(0.05, 0.95, 80).astype(np.float32)
    labels = (rng.random(80) < 0.75).astype(np.float32)
    config = PersonalConfig(tasks={"click": TaskPrior(user=0.5, category=0)}, forget=0, drift_max=10)
    made = learned([((p, 0.5, 0.5), (y, NAN, NAN), 0) for p, y in zip(shipped, labels, strict=True)], config)
    weight = np.linspace(-3, 3, 2001)
    signed = np.where(labels == 1, 1, -1)
    loss = np.logaddexp(0, -(log_odds(shipped)[:, None] + weight) * signed[:, None]).sum(0) + weight**2 / (2 * 0.5**2)
    posterior = np.exp(loss.min() - loss)
    mean = float(weight @ posterior / posterior.sum())
    answer = float(log_odds(made.adjust(f32([0.5, 0.5, 0.5])))[0, 0])
    assert abs(answer) > 0.1
    assert answer == pytest.approx(mean, abs=0.03)


def test_it_predicts_a_user_who_differs_better_than_the_shipped_model() -> None:
    rng = np.random.default_rng(0)
    taste = np.array([0.0, 1.0, -1.0, 0.0])
    made, lost = layer(), np.zeros(2)
    for _ in range(600):
        category = int(rng.integers(1, 5))
        shipped = f32(*rng.uniform(0.1, 0.9, 3))
        truth = 1 / (1 + np.exp(-(log_odds(shipped[0]) + 0.3 + taste[category - 1])))
        label = float(rng.random() < truth)
        for i, p in enumerate((shipped[0], made.adjust(shipped[None], np.array([category]))[0, 0])):
            lost[i] -= math.log(p if label else 1 - p)
        made.learn(shipped, f32(label, NAN, NAN), category)
    assert lost[1] < 0.97 * lost[0]


@given(st.lists(IMPRESSION, max_size=60))
def test_the_drift_is_bounded_and_everything_stays_finite(steps: list[Any]) -> None:
    made = learned(steps)
    assert 0 <= made.drift <= CONFIG.drift_max * 1.001
    shipped = np.full((6, 3), 0.5, np.float32)
    shift = log_odds(made.adjust(shipped, np.arange(6)))
    for k, prior in enumerate((CONFIG.tasks["click"], CONFIG.tasks["like"], TaskPrior(user=0, category=0))):
        assert (np.abs(shift[:, k]) <= CONFIG.drift_max * math.hypot(prior.user, prior.category) * 1.001 + 1e-6).all()
    assert restore(made.state()).state() == made.state()  # which holds all of its numbers to their bounds


@pytest.mark.parametrize("shipped", [0.0, 1e-6, 0.5, 1.0])
@pytest.mark.parametrize("label", [0, 1])
def test_thousands_of_equal_labels_end_within_the_bound(shipped: float, label: int) -> None:
    made = learned([((shipped,) * 3, (label,) * 3, 1)] * 5000)
    assert made.events == 5000
    assert made.drift <= CONFIG.drift_max * 1.001
    answers = made.adjust(f32([shipped, 0.5, 0.5]), np.array([1]))[0]
    assert answers[0] == shipped if shipped in (0, 1) else 0 < answers[0] < 1
    assert (answers[1] > 0.5) == (label == 1) or label == shipped


@given(st.lists(IMPRESSION, max_size=20), st.lists(st.floats(0, 1, width=32), min_size=2, max_size=8), CATEGORY)
def test_within_a_category_the_order_stays(steps: list[Any], scores: list[float], category: int) -> None:
    shipped = np.repeat(np.sort(f32(*scores))[:, None], 3, axis=1)
    adjusted = learned(steps).adjust(shipped, np.full(len(scores), category))
    slack = 1e-6 * adjusted[1:]  # of rounding
    assert (np.diff(adjusted, axis=0) >= -slack).all()


@given(st.lists(IMPRESSION, max_size=10), st.tuples(*[PROBABILITY] * 3), CATEGORY)
def test_unknown_labels_and_what_is_no_probability_teach_nothing(
    steps: list[Any], probabilities: tuple[float, ...], category: int
) -> None:
    made = learned(steps)
    before = made.state()
    assert not made.learn(f32(*probabilities), f32(NAN, 0.5, 7), category)
    assert not made.learn(f32(NAN, -1, 2), f32(0, 1, 1), category)
    assert made.state() == before


@given(st.lists(IMPRESSION, max_size=10), st.sampled_from([0.0, 1.0]))
def test_tasks_do_not_touch_one_another(steps: list[Any], label: float) -> None:
    made, shipped = learned(steps), f32([0.4, 0.4, 0.4])
    before = made.adjust(shipped, np.array([3]))[0]
    made.learn(shipped[0], f32(NAN, label, NAN), 3)
    after = made.adjust(shipped, np.array([3]))[0]
    assert after[0] == before[0]
    assert after[2] == before[2]


def test_a_phase_passes() -> None:
    made = learned([((0.5, 0.5, 0.5), (1, NAN, NAN), 1)] * 20)
    drift = made.drift
    for _ in range(30):
        made.learn(f32(1, 0.5, 0.5), f32(1, NAN, NAN), 2)  # what was certain, and came: nothing to learn
    assert made.drift == pytest.approx(drift * math.exp(-CONFIG.forget * 30), rel=1e-4)


@given(st.lists(IMPRESSION, max_size=10), st.lists(IMPRESSION, max_size=5))
def test_a_restart_changes_nothing(first: list[Any], then: list[Any]) -> None:
    made = learned(first)
    again = restore(made.state())
    assert again.events == made.events
    for probabilities, known, category in then:
        made.learn(f32(*probabilities), f32(*known), category)
        again.learn(f32(*probabilities), f32(*known), category)
    assert again.state() == made.state()


STATE = learned([((0.5, 0.1, 0.9), (1, 1, 1), 4)] * 10).state()


@given(st.integers(0, len(STATE) - 1), st.integers(1, 255))
def test_a_changed_byte_is_found(at: int, change: int) -> None:
    data = bytearray(STATE)
    data[at] ^= change
    with pytest.raises(CorruptStateError):
        restore(bytes(data))


@given(st.binary(max_size=40) | st.integers(0, len(STATE) - 1).map(lambda n: STATE[:n]))
def test_other_bytes_are_a_typed_error(data: bytes) -> None:
    with pytest.raises(PersonalError, match=r"Expected .*, got .* - at the personal state"):
        restore(data)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bundle": "feed/4"}, "Expected bundle feed/4, got feed/3"),
        ({"user_id": 8}, "Expected user 8, got 7"),
        ({"tasks": ("click", "has_next", "like")}, r"Expected tasks .*'has_next', 'like'\), got"),
        ({"config": PersonalConfig(tasks=CONFIG.tasks, forget=0.5)}, "Expected config .*forget=0.5"),
    ],
)
def test_the_state_of_something_else_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ForeignStateError, match=message):
        restore(STATE, **changes)


def test_the_state_of_another_version_is_refused() -> None:
    with pytest.raises(ForeignStateError, match="Expected version 1, got 2"):
        restore(_written(lambda s: {"version": 2}))


def _written(change: Callable[[dict[str, Any]], dict[str, Any]]) -> bytes:
    fields = msgspec.msgpack.decode(STATE[4:])
    data = msgspec.msgpack.encode(fields | change(fields))
    return zlib.crc32(data).to_bytes(4, "little") + data


def _numbers(value: float) -> Callable[[bytes], bytes]:
    return lambda data: np.full(len(data) // 4, value, "<f4").tobytes()


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda s: {"version": 2}, ForeignStateError),
        (lambda s: {"events": -1}, CorruptStateError),
        (lambda s: {"mean": s["mean"][4:]}, CorruptStateError),
        (lambda s: {"mean": _numbers(NAN)(s["mean"])}, CorruptStateError),
        (lambda s: {"mean": _numbers(100)(s["mean"])}, CorruptStateError),
        (lambda s: {"variance": _numbers(-1e-9)(s["variance"])}, CorruptStateError),
        (lambda s: {"variance": _numbers(9)(s["variance"])}, CorruptStateError),
        (lambda s: {"variance": _numbers(NAN)(s["variance"])}, CorruptStateError),
        (lambda s: {"config": s["config"] | {"drift_max": 1e9}}, CorruptStateError),
        (lambda s: {"tasks": 3}, CorruptStateError),
    ],
)
def test_numbers_that_no_learning_leads_to_are_refused(change: Any, error: type[PersonalError]) -> None:
    with pytest.raises(error):
        restore(_written(change))
    assert restore(_written(lambda s: {"a field of later": 1})).state() == STATE


def test_a_weight_of_a_task_that_does_not_adapt_is_refused() -> None:
    def change(state: dict[str, Any]) -> dict[str, Any]:
        mean = np.frombuffer(state["mean"], "<f4").reshape(-1, len(TASKS)).copy()
        mean[0, TASKS.index("has_next")] = 0.1
        return {"mean": mean.tobytes()}

    with pytest.raises(CorruptStateError):
        restore(_written(change))


def test_an_impression_of_an_unknown_category_changes_no_category() -> None:
    config = PersonalConfig(tasks={"click": TaskPrior(user=0.0, category=0.5)}, buckets=4)
    made, shipped = layer(config), f32(*[[0.3, 0.2, 0.1]] * 6)
    made.learn(shipped[0], f32(1, NAN, NAN), 0)
    np.testing.assert_array_equal(made.adjust(shipped, np.arange(6)), shipped)


@pytest.mark.parametrize(
    "numbers",
    [
        {"forget": -0.1},
        {"forget": NAN},
        {"drift_max": float("inf")},
        {"buckets": 0},
        {"tasks": {"click": TaskPrior(user=-1)}},
        {"tasks": {"click": TaskPrior(user=NAN)}},
        {"tasks": {"click": TaskPrior(category=50.0)}},
    ],
)
def test_numbers_out_of_range_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        PersonalConfig(**numbers)


def test_a_task_that_the_model_has_not_is_refused() -> None:
    with pytest.raises(ValueError, match="expected tasks among click, like, has_next, got follow"):
        layer(PersonalConfig(tasks={"follow": TaskPrior()}))


def test_other_shapes_are_refused() -> None:
    made = layer()
    with pytest.raises(ValueError, match=r"expected probabilities \[N, 3\], got \[3\]"):
        made.adjust(f32(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match=r"expected categories \[1\], got \[2\]"):
        made.adjust(f32([0.1, 0.2, 0.3]), np.array([1, 2]))
    with pytest.raises(ValueError, match=r"expected probabilities and labels \[3\], got \[3\] and \[2\]"):
        made.learn(f32(0.1, 0.2, 0.3), f32(1, 0))
    assert made.adjust(np.zeros((0, 3), np.float32), np.zeros(0, np.int32)).shape == (0, 3)


@pytest.mark.parametrize(("seen", "expected"), [(0, "new"), (19, "new"), (20, "casual"), (59, "casual"), (60, "heavy")])
def test_groups_part_at_their_thresholds(seen: int, expected: str) -> None:
    assert group(seen, GroupRule()) == expected


@pytest.mark.parametrize("rule", [(-1, 5), (6, 5)])
def test_a_rule_that_makes_no_sense_is_refused(rule: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="expected 0 <= casual_from <= heavy_from"):
        GroupRule(casual_from=rule[0], heavy_from=rule[1])


def test_actions_are_labels_by_name_and_later_events_are_unknown() -> None:
    tasks = ("like", "click", "has_next", "dislike", "follow", "comment", "share", "profile_enter", "watch_ms")
    event = make_event(1, like=True, follow=True, profile_enter=True)
    np.testing.assert_array_equal(labels(event, tasks, 9_000), f32(1, 0, NAN, 0, 1, 0, 0, 1, NAN))


@pytest.mark.parametrize(
    ("watch_ms", "duration_ms", "effective", "long"),
    [
        (6_999, 60_000, 0, 0),
        (7_000, 60_000, 1, 0),
        (17_999, 60_000, 1, 0),
        (18_000, 60_000, 1, 1),
        (4_000, 4_000, 1, 1),
        (3_999, 4_000, 0, 0),
        (12_345, float(np.float32(12.345)) * 1000, 1, 1),  # watched to the end, the duration read back from a feature
        (-5, 10_000, 0, 0),
        (-5, 0, 1, 1),
        (2**63 - 1, float("inf"), 1, 1),
        (9_000, None, NAN, NAN),
        (9_000, NAN, NAN, NAN),
    ],
)
def test_views_are_labels_by_watch_and_duration(
    watch_ms: int, duration_ms: float | None, effective: float, long: float
) -> None:
    views = labels(make_event(1, watch_ms=watch_ms), ("effective_view", "long_view"), duration_ms)
    np.testing.assert_array_equal(views, f32(effective, long))
