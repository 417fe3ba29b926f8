import gc
import threading
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.ranking.ranker import Moment, Ranker, Ranking
from pocketrank.device.ranking.watchdog import Watchdog, WatchdogConfig
from pocketrank.device.runtimes import INPUT_NAMES, Runtime, RuntimeRunError
from tests.device.worlds import SPEC, SPLIT, T0, make_page

SOON = WatchdogConfig(budget_ms=1, trust_after=None, overruns_max=100)
NEVER = 60.0
"""Seconds that no test waits for unless it fails."""


class Hanging(Runtime):
    """A model that answers when it is told to; at first it does."""

    input_names = INPUT_NAMES["self_contained"]
    list_sizes = None
    events = None

    def __init__(self) -> None:
        self.free, self.begun = threading.Event(), threading.Event()
        self.free.set()
        self.running = self.most = self.runs = 0

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        self.running += 1
        self.runs += 1
        self.most = max(self.most, self.running)
        self.begun.set()
        assert self.free.wait(NEVER)
        self.running -= 1
        return [np.arange(2 * inputs["candidate_float"].shape[1], dtype=np.float32).reshape(1, -1, 2)]

    def hang(self) -> None:
        self.free.clear()
        self.begun.clear()


class World:
    """A ranker whose model can hang, and what it orders."""

    def __init__(self) -> None:
        self.model = Hanging()
        self._ranker = Ranker(SPEC, SPLIT, {"self_contained": {"whole": self.model}})
        self._held = Remaining(FeatureBuilder(SPEC).page(make_page([1, 2, 3])), self._ranker.rows)
        self._history = EventHistory(SPEC)

    def order(self) -> Ranking | None:
        return self._ranker.order("self_contained", Moment(self._held, self._history, np.zeros((1, 2), np.float32), T0, 0))


class Ticks:
    """A clock that tells what is put into it, in ms."""

    def __init__(self) -> None:
        self.ms: list[float] = []

    def __call__(self) -> int:
        return int(self.ms.pop(0) * 1e6)


def let_go(world: World, watchdog: Watchdog) -> None:
    """End a late run, and wait until the watchdog answers again."""
    world.model.free.set()
    while watchdog(int)[1] is not None:
        pass


def test_a_result_in_time_is_returned() -> None:
    world, watchdog = World(), Watchdog(WatchdogConfig(budget_ms=NEVER * 1e3))
    order, why = watchdog(world.order)
    assert why is None
    assert order is not None
    assert order.order.tolist() == [2, 1, 0]
    assert watchdog(lambda: None) == (None, None)  # a run may have no answer of its own


def test_a_model_that_hangs_holds_no_swipe() -> None:
    world, watchdog = World(), Watchdog(SOON)
    world.model.hang()
    assert watchdog(world.order) == (None, "overran")
    assert world.model.begun.wait(NEVER)
    for _ in range(50):
        assert watchdog(world.order) == (None, "busy")
    assert asdict(watchdog.counters) == {"watchdog_overran": 1, "watchdog_busy": 50, "watchdog_resting": 0}
    assert not world.model.free.is_set()  # all of that while it hung
    world.model.free.set()


def test_a_trusted_model_that_was_slow_once_holds_no_swipe() -> None:
    clock, world = Ticks(), World()
    watchdog = Watchdog(WatchdogConfig(budget_ms=200, trust_after=1, overruns_max=100), clock)
    let_go(world, watchdog)
    assert watchdog.trusts
    clock.ms = [0, 201]
    assert watchdog(world.order)[1] is None
    world.model.hang()
    assert watchdog(world.order) == (None, "overran")
    assert not world.model.free.is_set()
    world.model.free.set()


def test_no_run_starts_before_a_late_one_ended_and_its_result_is_dropped() -> None:
    world, watchdog = World(), Watchdog(SOON)
    runs = world.model.runs
    for _ in range(20):
        world.model.hang()
        assert watchdog(world.order) == (None, "overran")
        assert watchdog(lambda: "other") == (None, "busy")
        let_go(world, watchdog)
    assert (world.model.runs - runs, world.model.most) == (20, 1)


@pytest.mark.parametrize("trust_after", [0, None])
def test_what_a_run_raises_is_raised(trust_after: int | None) -> None:
    watchdog = Watchdog(WatchdogConfig(budget_ms=NEVER * 1e3, trust_after=trust_after))

    def fail() -> None:
        raise RuntimeRunError("model", "a run", "none")

    for _ in range(2):
        with pytest.raises(RuntimeRunError):
            watchdog(fail)
    assert watchdog(lambda: 5) == (5, None)
    assert watchdog.counters.watchdog_overran == 0


def test_what_a_late_run_raises_is_dropped() -> None:
    free, watchdog = threading.Event(), Watchdog(SOON)

    def fail() -> None:
        free.wait(NEVER)
        raise RuntimeRunError("model", "a run", "none")

    assert watchdog(fail) == (None, "overran")
    free.set()
    while (answer := watchdog(lambda: 5)) != (5, None):
        assert answer[0] is None


def test_trust_is_earned_and_lost() -> None:
    clock = Ticks()
    watchdog = Watchdog(WatchdogConfig(budget_ms=NEVER * 1e3, trust_after=3), clock)
    here = threading.get_ident()
    threads = [watchdog(threading.get_ident)[0] for _ in range(3)]
    assert here not in threads
    assert len(set(threads)) == 1
    assert watchdog.trusts
    clock.ms = [0, NEVER * 1e3, 0, NEVER * 1e3 + 1]
    assert watchdog(threading.get_ident) == (here, None)  # just in time
    assert watchdog(threading.get_ident) == (here, None)  # too late, but there
    assert watchdog.counters.watchdog_overran == 1
    assert not watchdog.trusts
    assert watchdog(threading.get_ident) == (threads[0], None)


@given(st.lists(st.booleans(), max_size=200), st.integers(1, 3), st.integers(1, 4), st.integers(0, 4))
def test_rests_double_until_a_run_is_in_time(slow: list[bool], overruns_max: int, rest: int, doublings: int) -> None:
    """Against a plain model of the rule, all on the caller's thread."""
    clock, most = Ticks(), rest << doublings
    watchdog = Watchdog(WatchdogConfig(trust_after=0, overruns_max=overruns_max, rest=rest, rest_max=most), clock)
    in_row, resting, length = 0, 0, rest
    for is_slow in slow:
        clock.ms = [0, 51 if is_slow else 50]
        answer = watchdog(lambda: 1)
        if resting:
            assert answer == (None, "resting")
            resting -= 1
            continue
        assert answer == (1, None)
        in_row, length = (in_row + 1, length) if is_slow else (0, rest)
        if in_row >= overruns_max:
            resting, length = length, min(2 * length, most)


def test_the_thread_ends_with_its_watchdog() -> None:
    def threads() -> set[threading.Thread]:
        return {t for t in threading.enumerate() if t.name == "pocketrank-watchdog"}

    before = threads()
    watchdog = Watchdog(WatchdogConfig(budget_ms=NEVER * 1e3))
    assert threads() == before
    watchdog(int)
    (thread,) = threads() - before
    assert thread.daemon
    del watchdog
    gc.collect()
    thread.join(NEVER)
    assert not thread.is_alive()


def test_nothing_of_a_run_is_kept_when_it_is_over() -> None:
    watchdog, read = Watchdog(WatchdogConfig(budget_ms=NEVER * 1e3, trust_after=None)), np.zeros(9)
    gone = weakref.ref(read)
    assert watchdog(read.sum) == (0, None)
    del read
    watchdog(int)  # so that the thread is done with the one before
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("wrong", [{"budget_ms": 0}, {"trust_after": -1}, {"overruns_max": 0}, {"rest": 0}, {"rest_max": 1}])
def test_configs_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected budget_ms > 0"):
        WatchdogConfig(**wrong)
