import time

import pytest

from pocketrank.cloud.pages.arrival import OFF_MAX_MS, TOLERANCE_MS, ArrivalClock

NOW_S = 1_780_000_000
NOW_MS = 1000 * NOW_S
YEAR_MS = 365 * 86_400_000


class Clocks:
    """A wall clock and a steady one, in seconds."""

    def __init__(self) -> None:
        self.wall_s, self.steady_s = float(NOW_S), 5.0

    def arrival(self, latest_ms: int | None = None) -> ArrivalClock:
        return ArrivalClock(latest_ms, lambda: self.wall_s, lambda: self.steady_s)


def test_it_goes_on_whatever_the_wall_clock_is_set_to() -> None:
    clocks = Clocks()
    arrival = clocks.arrival()
    for step_s in (0, -3 * YEAR_MS / 1e3, 6 * YEAR_MS / 1e3):
        clocks.wall_s += step_s
        clocks.steady_s += 10
        arrival()
    assert (arrival(), arrival.wall_ms()) == (NOW_MS + 30_000, NOW_MS + 3 * YEAR_MS)


def test_that_of_the_system_is_right() -> None:
    assert abs(ArrivalClock()() - 1e3 * time.time()) < 10_000
    assert abs(ArrivalClock(NOW_MS - YEAR_MS, lambda: NOW_S)() - (NOW_MS - YEAR_MS + OFF_MAX_MS)) < 1


@pytest.mark.parametrize(
    ("latest_ms", "begins_ms"),
    [
        (NOW_MS - OFF_MAX_MS, NOW_MS),
        (NOW_MS - YEAR_MS, NOW_MS - YEAR_MS + OFF_MAX_MS),
        (NOW_MS + YEAR_MS, NOW_MS + YEAR_MS),
    ],
)
def test_it_begins_within_30_days_of_the_last_event(latest_ms: int, begins_ms: int) -> None:
    assert Clocks().arrival(latest_ms)() == begins_ms


def test_two_clocks_that_agree_are_right_when_they_are_ahead() -> None:
    arrival = Clocks().arrival(NOW_MS - YEAR_MS)
    assert arrival.meet(NOW_MS + TOLERANCE_MS + 1) == NOW_MS - YEAR_MS + OFF_MAX_MS
    assert arrival.meet(NOW_MS - TOLERANCE_MS) == NOW_MS
    assert arrival() == NOW_MS


def test_two_clocks_that_agree_do_not_put_it_back() -> None:
    arrival = Clocks().arrival(NOW_MS + YEAR_MS)
    assert arrival.meet(NOW_MS) == NOW_MS + YEAR_MS
