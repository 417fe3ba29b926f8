import itertools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketrank.device.model.search import GREEDY, Reward, SearchResult, SearchSpec, search
from pocketrank.device.runtimes import RuntimeRunError

COARSE = np.array([0, 0.25, 0.5, 1], np.float32)
"""Few and exact in float32, with both ends: most searches over them meet ties."""


class Model:
    """Random probabilities of each candidate after each prefix, the same whenever they are asked for. Those of candidates
    that the prefix has already are NaN. `runs` are the shapes of the prefixes that the search asked about."""

    def __init__(self, seed: int, candidates: int, tasks: int = 2, *, coarse: bool = False) -> None:
        self.seed, self.candidates, self.tasks, self.coarse = seed, candidates, tasks, coarse
        self.runs: list[tuple[int, ...]] = []
        self._known: dict[tuple[int, ...], NDArray[np.float32]] = {}

    def after(self, prefix: tuple[int, ...]) -> NDArray[np.float32]:
        """[N, K]"""
        if prefix not in self._known:
            rng, shape = np.random.default_rng([self.seed, *prefix]), (self.candidates, self.tasks)
            table = rng.choice(COARSE, shape) if self.coarse else rng.random(shape, np.float32)
            table[list(prefix)] = np.nan
            self._known[prefix] = table
        return self._known[prefix]

    def __call__(self, prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        assert prefixes.dtype == np.int64
        self.runs.append(prefixes.shape)
        answer = np.stack([self.after(tuple(prefix)) for prefix in prefixes.tolist()])
        answer.flags.writeable = False  # a search only reads it
        return answer


def found(result: SearchResult | None) -> SearchResult:
    assert result is not None
    return result


def list_reward(model: Model, reward: Reward, order: Sequence[int], dtype: Any = np.float64) -> Any:
    """ListReward as the paper writes it, in float64 or, rounded at each step, in float32."""
    total, alive = dtype(0), dtype(1)
    for i, item in enumerate(order):
        p = model.after(tuple(order[:i]))[item].astype(dtype)
        worth = p[0] * dtype(reward.weights[0])
        for task in range(1, model.tasks):
            worth = worth + p[task] * dtype(reward.weights[task])
        total = total + alive * worth
        if reward.survival is not None:
            alive = alive * p[reward.survival]
    return total


def ratio(rewards: Sequence[np.float32]) -> np.float32:
    """Stability, from its definition: 1 between equals, else how near in size two gains or two losses are."""
    low, high = min(rewards), max(rewards)
    if low == high:
        return np.float32(1)
    return min(abs(low), abs(high)) / max(abs(low), abs(high)) if low * high > 0 else np.float32(0)


def slow_search(model: Model, reward: Reward, config: SearchSpec) -> dict[str, Any]:
    """The search in plain loops over lists, one candidate at a time."""
    beam: list[tuple[int, ...]] = [()]
    n, steps, stability, reason = model.candidates, 0, list[float](), "exhausted"
    while steps < n:
        grown = [(*prefix, item) for prefix in beam for item in range(n) if item not in prefix]
        worth = {order: list_reward(model, reward, order, np.float32) for order in grown}
        # `sorted` keeps the order of equals, which is that of parents and then of candidates.
        best = sorted(grown, key=lambda order: -worth[order])
        beam = best[: config.beam]
        steps += 1
        close = ratio([worth[order] for order in beam])
        stability.append(float(close))
        if steps >= config.list_size and close >= np.float32(config.stability):
            reason = "stable"
            break
        if steps == config.steps_max:
            reason = "length"
            break
    return {
        "order": list(beam[0]),
        "reward": float(list_reward(model, reward, beam[0], np.float32)),
        "stability": tuple(stability),
        "steps": steps,
        "reason": reason,
    }


def as_dict(result: SearchResult | None) -> dict[str, Any]:
    r = found(result)
    return {
        "order": r.order.tolist(),
        "reward": r.reward,
        "stability": r.stability,
        "steps": r.steps,
        "reason": r.reason,
    }


def case(seed: int) -> tuple[Model, Reward, SearchSpec]:
    """A random search: any size from nothing on, weights of any sign, with and without survival, with and without ties."""
    rng = np.random.default_rng(seed)
    n = 30 if rng.random() < 0.01 else int(rng.integers(0, 8))
    tasks, coarse = int(rng.integers(1, 5)), bool(rng.integers(2))
    weights = rng.choice([-1.0, -0.5, 0.0, 0.5, 1.0, 2.0], tasks) if coarse else rng.normal(0.3, 1, tasks)
    steps_max = int(rng.integers(1, 6))
    config = SearchSpec(
        beam=int(rng.choice([1, 2, 4, 60])),
        list_size=int(rng.integers(1, steps_max + 1)),
        steps_max=steps_max,
        stability=float(rng.choice([0.5, 0.9, 0.95, 1])),
    )
    survival = None if rng.integers(3) == 0 else int(rng.integers(tasks))
    return Model(seed, n, tasks, coarse=coarse), Reward(weights, survival), config


cases = st.integers(0, 2**32).map(case)


A, B, C, D = range(4)


@pytest.mark.parametrize("list_size", [1, 2, 3])
def test_the_papers_example(list_size: int) -> None:
    """Two lists of four candidates, t = .95, nothing discounted: kept are .8 .7, then 1.4 1.3, then 1.8 1.75; C, B, A wins."""
    gains = {
        (): [0.5, 0.7, 0.8, 0.3],
        (C,): [0.4, 0.6, 0.0, 0.2],  # C, B: 1.4
        (B,): [0.5, 0.0, 0.6, 0.1],  # B, C: 1.3
        (C, B): [0.4, 0.0, 0.0, 0.3],  # C, B, A: 1.8
        (B, C): [0.45, 0.0, 0.0, 0.2],  # B, C, A: 1.75
    }
    kept: list[list[list[int]]] = []

    def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        kept.append(prefixes.tolist())
        return np.array([gains[tuple(prefix)] for prefix in prefixes.tolist()], np.float32)[..., None]

    result = found(search(step, 4, Reward([1]), SearchSpec(beam=2, list_size=list_size, steps_max=4, stability=0.95)))
    assert kept == [[[]], [[C], [B]], [[C, B], [B, C]]]
    assert [round(s, 3) for s in result.stability] == [0.875, 0.929, 0.972]
    assert result.order.tolist() == [C, B, A]
    assert result.reward == pytest.approx(1.8)
    assert (result.steps, result.reason) == (3, "stable")


def test_what_a_user_does_not_stay_for_is_discounted() -> None:
    """The item of the highest own worth ends the session: shown first it is worth .9 + .1 x .5, shown last .5 + .8 x .9."""
    worth, stays = [0.9, 0.5], [0.1, 0.8]

    def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.tile(np.array([worth, stays], np.float32).T, (len(prefixes), 1, 1))

    ahead = SearchSpec(beam=2, list_size=2, steps_max=2)
    assert found(search(step, 2, Reward([1, 0], survival=1), GREEDY)).order.tolist() == [0]
    result = found(search(step, 2, Reward([1, 0], survival=1), ahead))
    assert result.order.tolist() == [1, 0]
    assert result.reward == pytest.approx(0.5 + 0.8 * 0.9)
    undiscounted = found(search(step, 2, Reward([1, 0]), ahead))
    assert undiscounted.order.tolist() == [0, 1]
    assert undiscounted.reward == pytest.approx(1.4)


def test_results_equal_those_of_plain_loops() -> None:
    """Bit for bit, ties included."""
    reasons = set()
    for seed in range(3000):
        model, reward, config = case(seed)
        result = as_dict(search(model, model.candidates, reward, config))
        assert result == slow_search(model, reward, config), (seed, config)
        reasons.add(result["reason"])
    assert reasons == {"stable", "length", "exhausted"}


@given(st.integers(0, 2**32), st.integers(0, 5), st.integers(1, 4), st.booleans(), st.sampled_from([None, 0, 1]))
def test_a_beam_that_holds_all_lists_finds_the_best(seed: int, n: int, length: int, coarse: bool, survival: int | None) -> None:
    model, reward = Model(seed, n, coarse=coarse), Reward([1, -0.5], survival)
    config = SearchSpec(beam=120, list_size=length, steps_max=length)
    result = found(search(model, n, reward, config))
    every = list(itertools.permutations(range(n), min(n, length)))
    assert result.reward == max(list_reward(model, reward, order, np.float32) for order in every)
    assert tuple(result.order.tolist()) in every
    assert result.reward == pytest.approx(list_reward(model, reward, result.order.tolist()), abs=1e-6)


@given(cases)
def test_invariants_of_every_result(drawn: tuple[Model, Reward, SearchSpec]) -> None:
    model, reward, config = drawn
    n = model.candidates
    result = found(search(model, n, reward, config))
    order = result.order.tolist()
    assert len(order) == len(set(order)) == result.steps
    assert set(order) <= set(range(n))
    assert result.order.dtype == np.int64
    assert result.reward == pytest.approx(list_reward(model, reward, order), rel=1e-5, abs=1e-5)
    assert len(result.stability) == result.steps <= min(config.steps_max, n)
    assert all(0 <= s <= 1 for s in result.stability)
    # One run a step, of at most `beam` lists.
    assert [length for _, length in model.runs] == list(range(len(order)))
    assert all(lists <= (config.beam if length else 1) for lists, length in model.runs)


@given(cases)
def test_it_stops_at_the_first_step_that_the_rule_allows(drawn: tuple[Model, Reward, SearchSpec]) -> None:
    model, reward, config = drawn
    result = found(search(model, model.candidates, reward, config))
    enough = np.float32(config.stability)
    stable = [i + 1 >= config.list_size and s >= enough for i, s in enumerate(result.stability)]
    assert not any(stable[:-1])
    if stable and stable[-1]:
        expected = "stable"
    else:
        expected = "length" if result.steps == config.steps_max else "exhausted"
        assert result.steps == min(config.steps_max, model.candidates)
    assert result.reason == expected


@given(st.integers(0, 2**32), st.integers(1, 12), st.booleans())
def test_greedy_is_the_item_of_the_highest_reward(seed: int, n: int, coarse: bool) -> None:
    model, reward = Model(seed, n, coarse=coarse), Reward([1, -2], survival=0)
    result = found(search(model, n, reward, GREEDY))
    assert result.order.tolist() == [np.argmax(reward(model.after(())))]  # of equal ones the first
    assert (result.stability, result.reason) == ((1.0,), "stable")
    assert model.runs == [(1, 0)]


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("weights", [[0.0, 0.0], [1.0, 0.0], [-1.0, 1.0], [-1.0, -1.0]])
@pytest.mark.parametrize("survival", [None, 1])
def test_equals_keep_cloud_order(value: float, weights: list[float], survival: int | None) -> None:
    def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.full((len(prefixes), 6, 2), value, np.float32)

    config = SearchSpec(beam=3, list_size=4, steps_max=4)
    result = found(search(step, 6, Reward(weights, survival), config))
    assert result.order.tolist() == [0, 1, 2, 3]
    assert result.stability == (1.0,) * 4
    assert result.reason == "stable"
    assert np.isfinite(result.reward)


def test_ties_are_ordered_by_parent_and_then_by_candidate() -> None:
    """After 1 and after 0, which is worth less alone, the same is reached; 1's lists come first, those of 0 make room."""
    seen: list[list[list[int]]] = []

    def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        seen.append(prefixes.tolist())
        gains = {(): [0.25, 0.5, 0.0], (1,): [0.25, 0.0, 0.25], (0,): [0.0, 0.5, 0.5]}
        return np.array([gains.get(tuple(p), [0, 0, 0]) for p in prefixes.tolist()], np.float32)[..., None]

    result = found(search(step, 3, Reward([1]), SearchSpec(beam=3, list_size=3, steps_max=3)))
    assert seen == [[[]], [[1], [0], [2]], [[1, 0], [1, 2], [0, 1]]]
    assert result.order.tolist() == [1, 0, 2]


@pytest.mark.parametrize(
    ("rewards", "stability"),
    [
        ([1.0, 0.5], 0.5),
        ([1.0, 0.0], 0.0),
        ([1.0, -1.0], 0.0),
        ([0.0, 0.0], 1.0),
        ([0.0, -1.0], 0.0),
        ([-1.0, -1.0], 1.0),
        ([-1.0, -4.0], 0.25),
        ([1e-40, 1e-41], 0.1),
        ([3e38, -3e38], 0.0),
    ],
)
def test_stability_of_gains_losses_and_nothing(rewards: list[float], stability: float) -> None:
    def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.array(rewards, np.float32).reshape(1, 2, 1)

    result = found(search(step, 2, Reward([1]), SearchSpec(beam=2, steps_max=1)))
    assert result.stability == pytest.approx((stability,), rel=1e-4)
    assert result.reason == ("stable" if stability >= 0.95 else "length")
    assert result.order.tolist() == [0]


def test_the_rule_compares_in_float32() -> None:
    """In float64 the float32 quotient .95 is below .95."""

    def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.array([1, 0.95], np.float32).reshape(1, 2, 1)

    assert found(search(step, 2, Reward([1]), SearchSpec(beam=2, steps_max=1))).reason == "stable"


def test_behind_a_certain_exit_the_cloud_decides() -> None:
    """Nothing that comes after item 1 is ever seen, so all lists that begin with it are worth the same."""

    def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.tile(np.array([[0.1, 0], [0.9, 0], [0.3, 0]], np.float32), (len(prefixes), 1, 1))

    result = found(search(step, 3, Reward([1, 0], survival=1), SearchSpec(beam=2, list_size=2)))
    assert result.order.tolist() == [1, 0]
    assert result.reward == pytest.approx(0.9)
    assert result.stability == pytest.approx((1 / 3, 1.0))


def test_no_candidate() -> None:
    model = Model(0, 0)
    empty = found(search(model, 0, Reward([1, 1])))
    assert (empty.order.tolist(), empty.reward) == ([], 0.0)
    assert (empty.stability, empty.steps, empty.reason) == ((), 0, "exhausted")
    assert model.runs == []


def test_fewer_candidates_than_the_list_and_the_beam_want() -> None:
    one = found(search(Model(1, 1), 1, Reward([1, 1]), SearchSpec(list_size=1)))
    assert (one.order.tolist(), one.stability, one.reason) == ([0], (1.0,), "stable")
    three = found(search(Model(1, 3), 3, Reward([1, 1]), SearchSpec(beam=50, list_size=5)))
    assert sorted(three.order.tolist()) == [0, 1, 2]
    assert (three.steps, three.reason) == (3, "exhausted")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize(("length", "place"), [(0, 0), (0, 3), (1, 1), (2, 0), (2, 1)])
def test_one_number_that_is_not_finite_returns_none(length: int, place: int, task: int, bad: float) -> None:
    """Whatever its task weighs, at any step, and be it that of the worst candidate."""
    model, reward, config = Model(3, 4), Reward([1, 0], survival=1), SearchSpec(beam=1, list_size=3, steps_max=3)
    prefix = tuple(found(search(model, 4, reward, config)).order[:length].tolist())
    item = [item for item in range(4) if item not in prefix][place]
    model.after(prefix)[item, task] = bad
    assert search(model, 4, reward, config) is None


@pytest.mark.filterwarnings("error")
def test_rewards_beyond_float32_return_none() -> None:
    def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        return np.ones((len(prefixes), 3, 2), np.float32)

    assert search(step, 3, Reward([3e38, 3e38])) is None
    assert search(step, 3, Reward([3e38, 0]), SearchSpec(list_size=2)) is None
    assert search(step, 3, Reward([3e38, 0]), SearchSpec(list_size=1)) is not None


@pytest.mark.parametrize("layout", [np.asfortranarray, lambda p: p.astype(np.float64), lambda p: p.astype(np.float16)])
def test_any_layout_and_type_of_probabilities_is_accepted(layout: Callable[[Any], Any]) -> None:
    model, reward, config = Model(5, 6, coarse=True), Reward([1, 0.5], survival=0), SearchSpec(list_size=4)
    expected = as_dict(search(model, 6, reward, config))
    assert as_dict(search(lambda prefixes: layout(model(prefixes)), 6, reward, config)) == expected


def test_the_next_step_may_overwrite_the_probabilities() -> None:
    model, reward, config = Model(5, 6), Reward([1, 0.5], survival=0), SearchSpec(list_size=4)
    buffer = np.zeros((config.beam, 6, 2), np.float32)

    def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
        buffer[:] = np.nan
        buffer[: len(prefixes)] = model(prefixes)
        return buffer[: len(prefixes)]

    assert as_dict(search(step, 6, reward, config)) == as_dict(search(model, 6, reward, config))


@pytest.mark.parametrize("shape", [(), (1, 3), (1, 2, 2), (1, 3, 1), (2, 3, 2), (1, 4, 2)])
def test_probabilities_of_the_wrong_shape_are_rejected(shape: tuple[int, ...]) -> None:
    with pytest.raises(RuntimeRunError, match=r"Expected \[1, 3, 2\], got \[.* - at probabilities"):
        search(lambda prefixes: np.zeros(shape, np.float32), 3, Reward([1, 1]))


def test_fewer_than_no_candidates_are_refused() -> None:
    with pytest.raises(ValueError, match="expected candidates >= 0, got -1"):
        search(Model(0, 3), -1, Reward([1, 1]))


@pytest.mark.parametrize(
    "numbers",
    [
        {"beam": 0},
        {"list_size": 0},
        {"list_size": 6},
        {"steps_max": 0},
        {"stability": -0.1},
        {"stability": 1.1},
        {"stability": float("nan")},
    ],
)
def test_configs_out_of_range_are_refused(numbers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected beam >= 1"):
        SearchSpec(**numbers)


@pytest.mark.parametrize(
    ("weights", "survival", "what"),
    [
        ([], None, "finite weights"),
        (1.0, None, "finite weights"),
        ([[1.0]], None, "finite weights"),
        ([1.0, np.nan], None, "finite weights"),
        ([1e300], None, "finite weights"),
        ([1.0, 1.0], 2, r"survival in 0\.\.1 or None, got 2"),
        ([1.0, 1.0], -1, r"survival in 0\.\.1 or None, got -1"),
    ],
)
def test_rewards_that_make_no_sense_are_refused(weights: Any, survival: int | None, what: str) -> None:
    with pytest.raises(ValueError, match=what):
        Reward(weights, survival)
