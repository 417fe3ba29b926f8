from datetime import date, timedelta

from pocketrank.cloud.data.days import day_of, days, empty_days
from tests.cloud.data.folders import DAY, NOON
from tests.cloud.data.logs import small_log

FIRST = date(2022, 4, 27)


def test_days_are_local_to_the_log() -> None:
    evening = NOON + 5 * 3_600_000  # 17:00 in UTC+8, 09:00 in UTC
    times = [evening, evening + 8 * 3_600_000, evening + 16 * 3_600_000]
    real, simulated = small_log(times), small_log(times, time_zone="UTC")
    assert [day_of(day) for day in days(real).tolist()] == [FIRST, FIRST + timedelta(1), FIRST + timedelta(1)]
    assert [day_of(day) for day in days(simulated).tolist()] == [FIRST, FIRST, FIRST + timedelta(1)]


def test_empty_days() -> None:
    present = [day_of(day) for day in days(small_log([NOON, NOON + DAY, NOON + 4 * DAY])).tolist()]
    assert empty_days(present) == [FIRST + timedelta(2), FIRST + timedelta(3)]
    assert empty_days([]) == []
