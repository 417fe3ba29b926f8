from datetime import date

import numpy as np
import pyarrow as pa
import pytest

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import HISTORY, ITEMS, PAGES, USERS, DataError, ImpressionLog
from tests.cloud.data.logs import columns, small_log
from tests.sdk_demo.world.worlds import small

HOUR, DAY = 3_600_000, 86_400_000
FIRST = 19_000 * DAY
TASKS = ("long_view", "like")


def two_users() -> ImpressionLog:
    """User 1 has two events before the log and five in it over three days, user 2 two in it."""
    rows = [
        (1, 10, 0, True),
        (1, 11, 1, False),
        (2, 10, 2, True),
        (1, 12, 25, True),
        (2, 11, 26, False),
        (1, 10, 49, False),
        (1, 11, 50, True),
    ]
    base = small_log([FIRST + hour * HOUR for _, _, hour, _ in rows])
    log = small_log(
        [FIRST + hour * HOUR for _, _, hour, _ in rows],
        user_id=[r[0] for r in rows],
        item_id=[r[1] for r in rows],
        long_view=[r[3] for r in rows],
        like=[False] * 6 + [True],
        scene=[0, 1, 2, 3, 4, 5, 6],
    )
    return ImpressionLog(
        name=base.name,
        simulated=False,
        time_zone=base.time_zone,
        tasks=base.tasks,
        impressions=log.impressions,
        items=columns(ITEMS, 3, item_id=[10, 11, 12], duration_ms=[9000, 20_000, 0], author_id=[7, 7, None]),
        users=columns(USERS, 2, user_id=[1, 2], categories=[[1], [2]], floats=[[0.5], [0.0]]),
        history=columns(HISTORY, 1, user_id=[1], item_id=[[12, 10]], long_view=[[True, False]], like=[[False, True]]),
    )


def cut(**config: object) -> Samples:
    return build_samples(two_users(), SampleConfig(tasks=TASKS, **config))  # type: ignore[arg-type]


def test_events_are_sorted_by_user_and_time_with_the_history_first() -> None:
    s = cut()
    first, end = s.user_start[1], s.user_start[2]
    assert s.item_ids[s.event_item[first:end]].tolist() == [12, 10, 10, 11, 12, 10, 11]
    assert s.event_day[first:end].tolist() == [-1, -1, 0, 0, 1, 2, 2]
    assert np.isnan(s.event_labels).sum() == 0
    assert s.event_history[first, HISTORY_FEEDBACK.index("logged")] == 0
    assert s.event_history[first + 1, HISTORY_FEEDBACK.index("like")] == 1
    assert s.days == 3


def test_a_pseudo_list_ends_with_its_days_and_at_the_test_day() -> None:
    def lists(**config: object) -> list[list[int]]:
        s = cut(**config)
        mine = np.flatnonzero((s.list_user == 1) & (s.list_day >= 0))
        return [s.item_ids[row[row > 0]].tolist() for row in s.list_item[mine]]

    assert lists(list_days=2) == [[10, 11, 12], [10, 11]]
    assert lists(list_days=2, test_from=date(1970, 1, 1)) == [[10, 11, 12], [10, 11]]
    day = date.fromordinal(date(1970, 1, 1).toordinal() + 19_001)
    assert lists(list_days=2, test_from=day) == [[10, 11], [12, 10, 11]]
    assert lists(list_days=3, list_max=2) == [[10, 11], [12, 10], [11]]


def test_a_row_sees_only_earlier_events_of_the_log() -> None:
    s = cut(events_max=2)
    for row, event in enumerate(s.row_event):
        assert s.row_events_from[row] <= event
        assert event - s.row_events_from[row] <= 2
        assert (s.event_day[s.row_events_from[row] : event] >= 0).all()
        assert s.list_event[s.row_list[row]] <= event
        assert s.list_item[s.row_list[row], s.row_slot[row]] == s.event_item[event]
        np.testing.assert_array_equal(s.list_labels[s.row_list[row], s.row_slot[row]], s.event_labels[event])


def test_a_pseudo_list_has_no_candidates_that_were_not_shown() -> None:
    assert (cut().list_shown == -1).all()


def test_pages_keep_candidates_that_were_never_shown() -> None:
    log = small_log(
        [FIRST, FIRST + 1],
        item_id=[11, 10],
        page_id=[5, 5],
        session_id=[3, 3],
        position=[0, 1],
        long_view=[True, False],
        like=[False, False],
        pages=pa.table([[5], [[10, 77, 11]]], schema=PAGES),
    )
    s = build_samples(log, SampleConfig(tasks=TASKS, list_max=4))
    page = s.row_list[0]
    assert s.item_ids[s.list_item[page][[0, 2]]].tolist() == [10, 11]
    assert s.row_slot.tolist() == [2, 0]
    assert np.isnan(s.list_labels[page, 1]).all()
    first, second = s.row_event
    assert s.list_shown[page, [2, 0]].tolist() == [first, second]


def test_rates_do_not_depend_on_their_day_or_later_ones() -> None:
    log = two_users()
    s = build_samples(log, SampleConfig(tasks=TASKS))
    before = ItemStatistics(s).as_of(1)
    changed = s.event_labels.copy()
    changed[s.event_day >= 1] = 1 - changed[s.event_day >= 1]
    s.event_labels[:] = changed
    np.testing.assert_array_equal(before, ItemStatistics(s).as_of(1))
    assert not np.array_equal(ItemStatistics(s).as_of(2), before)
    assert before.shape == (4, ItemStatistics(s).width)


def test_the_simulated_world_is_cut_into_its_pages() -> None:
    from pocketrank.sdk_demo.world import World

    log = World(small(users=40, items=300)).simulate_log(seed=1)
    s = build_samples(log, SampleConfig(tasks=("effective_view", "like", "follow", "has_next")))
    assert len(s.row_event) == len(log.impressions)
    assert len(s.list_user) == len(log.pages)
    assert (s.event_item[s.row_event] == s.list_item[s.row_list, s.row_slot]).all()
    session_start = s.event_position[s.row_events_from] == 0
    assert session_start[s.row_event - s.row_events_from < s.config.events_max].all()


def test_a_task_without_labels_is_rejected() -> None:
    with pytest.raises(DataError, match="labels of task `follow`"):
        build_samples(two_users(), SampleConfig(tasks=("follow",)))
