from time import perf_counter

import pytest

from pocketrank.cloud.pipeline import Deadline

HOUR_S = 3600.0
"""So long that the time a test takes does not count."""


def test_a_deadline_counts_from_now_or_from_the_instant_given() -> None:
    before = perf_counter()
    assert HOUR_S - (perf_counter() - before) - 1 < Deadline(HOUR_S).left() <= HOUR_S
    past = Deadline(HOUR_S, before - 3 * HOUR_S)
    assert -2 * HOUR_S - (perf_counter() - before) - 1 < past.left() <= -2 * HOUR_S


@pytest.mark.parametrize(("seconds", "left"), [(None, 2), (1 * HOUR_S, 1), (3 * HOUR_S, 2), (-1 * HOUR_S, -1)])
def test_the_sooner_deadline_is_the_earlier_one(seconds: float | None, left: int) -> None:
    assert round(Deadline(2 * HOUR_S).sooner(seconds).left() / HOUR_S) == left
