from datetime import date, timedelta

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.data.schema import PAGES, DataError
from pocketrank.cloud.data.split import day_of, days, empty_days, split_by_time
from pocketrank.cloud.data.validate import validate
from tests.cloud.data.folders import DAY, NOON
from tests.cloud.data.logs import small_log

FIRST = date(2022, 4, 27)


def test_days_are_local_to_the_log() -> None:
    evening = NOON + 5 * 3_600_000  # 17:00 in UTC+8, 09:00 in UTC
    times = [evening, evening + 8 * 3_600_000, evening + 16 * 3_600_000]
    real, simulated = small_log(times), small_log(times, simulated=True)
    assert [day_of(day) for day in days(real).tolist()] == [FIRST, FIRST + timedelta(1), FIRST + timedelta(1)]
    assert [day_of(day) for day in days(simulated).tolist()] == [FIRST, FIRST, FIRST + timedelta(1)]
    assert days(simulated, utc_offset_h=8).tolist() == days(real).tolist()


def test_empty_days() -> None:
    assert empty_days(small_log([NOON, NOON + DAY, NOON + 4 * DAY])) == [FIRST + timedelta(2), FIRST + timedelta(3)]
    assert empty_days(small_log([])) == []


@given(
    times=st.lists(st.integers(NOON, NOON + 6 * DAY), min_size=1).map(sorted),
    split=st.integers(-1, 8),
    offset=st.integers(-12, 14),
)
def test_a_split_is_a_partition_by_day(times: list[int], split: int, offset: int) -> None:
    log = small_log(times)
    test_from = FIRST + timedelta(split)
    late = [day_of(day) >= test_from for day in days(log, utc_offset_h=offset).tolist()]
    if len(set(late)) == 1:
        with pytest.raises(DataError, match="side is empty"):
            split_by_time(log, test_from=test_from, utc_offset_h=offset)
        return
    train, test = split_by_time(log, test_from=test_from, utc_offset_h=offset)
    assert len(train.impressions) == np.flatnonzero(late)[0]
    assert pa.concat_tables([train.impressions, test.impressions]).equals(log.impressions)
    for side in (train, test):
        assert (side.name, side.items, side.users) == (log.name, log.items, log.users)
        validate(side)


def test_pages_go_where_their_impressions_are() -> None:
    pages = pa.table({"page_id": [1, 2, 3], "item_id": [[10, 11], [10], [11]]}, schema=PAGES)
    log = small_log([NOON, NOON + DAY, NOON + DAY + 1], page_id=[1, 1, 2], pages=pages)
    train, test = split_by_time(log, test_from=FIRST + timedelta(1))
    assert train.pages["page_id"].to_pylist() == [1]
    assert test.pages["page_id"].to_pylist() == [1, 2]


def test_a_log_without_impressions_cannot_be_split() -> None:
    with pytest.raises(DataError, match="no impressions"):
        split_by_time(small_log([]), test_from=FIRST)
