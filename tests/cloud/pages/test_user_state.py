from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.pages.user_state import UserState, UserStates
from pocketrank.cloud.published.published import PublishedError
from tests.cloud.events import event
from tests.cloud.small_published import SmallRun, small_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    small = small_run(tmp_path_factory.mktemp("run"))
    duration = small.published.item_float[:, 0]
    duration[1:5] = [5_000, 60_000, np.nan, 0]  # items 1000, 1003, 1006 and 1009
    return small


def states(run: SmallRun, **config: int) -> UserStates:
    return UserStates(run.published, run.record, **config)


def same(a: UserState, b: UserState) -> bool:
    return all(np.array_equal(x, y) for x, y in [(a.seen, b.seen), (a.history.item, b.history.item)]) and np.array_equal(
        a.history.feedback, b.history.feedback
    )


def test_a_state_starts_from_the_published_history_without_its_padding(run: SmallRun) -> None:
    for user in range(1, 8):
        length = min(user, run.record.history_max)
        state = states(run)(user)
        assert state.history.item.tolist() == run.published.history_item[user, -length:].tolist()
        np.testing.assert_array_equal(state.history.feedback, run.published.history_feedback[user, -length:])
        assert state.seen.tolist() == state.history.item.tolist()


def test_nobody_knows_anything_of_an_unknown_user(run: SmallRun) -> None:
    state = states(run)(10**15)
    assert state.history.item.shape == (0,)
    assert state.history.feedback.shape == (0, len(HISTORY_FEEDBACK))
    assert state.seen.shape == (0,)


@pytest.mark.parametrize(
    ("item_id", "watch_ms", "long_view", "engaged"),
    [
        (1000, 4_999, 0, 0),  # of 5 s
        (1000, 5_000, 1, 1),
        (1003, 6_999, 0, 0),  # of 60 s
        (1003, 7_000, 0, 1),
        (1003, 17_999, 0, 1),
        (1003, 18_000, 1, 1),
        (1006, 7_000, 0, 1),  # of unknown length
        (1006, 18_000, 1, 1),
        (1000, -5, 0, 0),
        (1009, 0, 0, 0),  # of length 0, which is not known either
    ],
)
def test_what_a_watch_counts_as(run: SmallRun, item_id: int, watch_ms: int, long_view: int, engaged: int) -> None:
    known = states(run)
    known.apply([event(1, item_id, watch_ms=watch_ms, like=True)])
    got = dict(zip(HISTORY_FEEDBACK, known(1).history.feedback[-1].tolist(), strict=True))
    watch_log = np.log1p(np.float32(max(0, watch_ms) / 1000))
    assert got == pytest.approx({"long_view": long_view, "like": 1, "watch_log": watch_log, "engaged": engaged, "logged": 1})


@pytest.mark.parametrize("ms", [-5, 0])
def test_published_events_are_older_than_any_other(run: SmallRun, ms: int) -> None:
    known = states(run)
    before = known(3).seen.tolist()
    known.apply([event(3, 1003, ms=ms)])
    assert known(3).seen.tolist() == [*before, 2]


def test_a_click_engages(run: SmallRun) -> None:
    known = states(run)
    known.apply([event(1, watch_ms=0, click=True)])
    assert known(1).history.feedback[-1].tolist() == [0, 0, 0, 1, 1]


def test_actions_of_the_run_are_further_columns(tmp_path: Path) -> None:
    run = small_run(tmp_path, actions=("purchase", "add_to_cart"))
    known = states(run)
    np.testing.assert_array_equal(known(3).history.feedback, run.published.history_feedback[3, -3:])
    known.apply([event(3, actions=("gift", "add_to_cart")), event(3, actions=("purchase",)), event(3)])
    assert known(3).history.feedback[-3:, len(HISTORY_FEEDBACK) :].tolist() == [[0, 1], [1, 0], [0, 0]]
    assert known(3).history.feedback[:, : len(HISTORY_FEEDBACK)].any(0).all()
    narrow = msgspec.structs.replace(run.record, actions=("purchase",))
    with pytest.raises(PublishedError, match="Expected 6 feedback values per history event, got 7"):
        UserStates(run.published, narrow)


def test_an_unknown_item_changes_nothing(run: SmallRun) -> None:
    known = states(run)
    before = known(3)
    known.apply([event(3, 1001), event(99, 7)])
    assert same(known(3), before)
    assert len(known(99).seen) == 0


def test_history_and_seen_items_are_bounded(run: SmallRun) -> None:
    known = states(run, seen_max=10)
    known.apply([event(1, 1000 + 3 * i, ms=i) for i in range(25)])
    assert known(1).seen.tolist() == list(range(16, 26))
    assert known(1).history.item.tolist() == list(range(20, 26))


def test_more_history_than_seen_items_is_not_lost(run: SmallRun) -> None:
    known = states(run, seen_max=1)
    known.apply([event(1, 1000 + 3 * i, ms=i) for i in range(9)])
    assert known(1).history.item.tolist() == list(range(4, 10))


def test_a_snapshot_stays_as_it_was(run: SmallRun) -> None:
    known = states(run)
    before = known(2)
    was = before.seen.tolist()
    known.apply([event(2, 1030)])
    assert before.seen.tolist() == was
    assert len(known(2).seen) == len(before.seen) + 1


@given(data=st.data())
def test_the_state_does_not_depend_on_the_order_of_arrival(run: SmallRun, data: st.DataObject) -> None:
    moments = data.draw(st.lists(st.tuples(st.integers(-5, 5), st.integers(0, 5)), unique=True, max_size=25))
    events = [event(data.draw(st.integers(1, 3)), 1000 + 3 * i, ms=ms, position=p) for i, (ms, p) in enumerate(moments)]
    one, other = states(run, seen_max=12), states(run, seen_max=12)
    one.apply(events)
    shuffled = data.draw(st.permutations(events))
    cut = data.draw(st.integers(0, len(events)))
    other.apply(shuffled[:cut])
    other.apply(shuffled[cut:])
    assert all(same(one(user), other(user)) for user in (1, 2, 3))


def test_threads_lose_no_event(run: SmallRun) -> None:
    known = states(run)
    batches = [[event(1, 1000 + 3 * i, ms=100 * j + i) for i in range(5)] for j in range(60)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(known.apply, batches))
    assert len(known(1).seen) == 1 + 300


def test_a_run_without_durations_or_with_other_feedback_is_refused(run: SmallRun) -> None:
    with pytest.raises(PublishedError, match="duration_ms"):
        UserStates(run.published, msgspec.structs.replace(run.record, float_names=("length", "age_days")))
    narrow = replace(run.published, history_feedback=run.published.history_feedback[:, :, :3])
    with pytest.raises(PublishedError, match="5 feedback values per history event"):
        UserStates(narrow, run.record)


def test_an_empty_batch_is_nothing(run: SmallRun, tmp_path: Path) -> None:
    known = states(run)
    known.apply([])
    assert len(known(1).seen) == 1


def test_what_happens_in_an_experiment_is_known_in_it_alone(run: SmallRun) -> None:
    known = states(run)
    known.apply([event(2, 1003), event(2, 1006, experiment="a"), event(2, 1009, experiment="b")])
    published = states(run)(2).seen.tolist()
    assert known(2).seen.tolist() == [*published, 2]
    assert known(2, "a").seen.tolist() == [*published, 3]
    assert known(2, "b").seen.tolist() == [*published, 4]
    assert same(known(2, "c"), states(run)(2))


def test_events_from_ahead_in_an_old_log_count_as_the_oldest(run: SmallRun) -> None:
    known = states(run)
    known.apply([event(3, 1003, ms=253_402_300_799_999)])
    known.apply([event(3, 1006)])
    assert known(3).seen.tolist()[-1] == 3
    assert 2 in known(3).seen


def test_the_events_of_all_users_are_bounded_and_the_longest_silent_go_first(run: SmallRun) -> None:
    known = UserStates(run.published, run.record, events_max=200)
    for user in range(100, 120):
        known.apply([event(user, 1003), event(user, 1006)])
    known.apply([event(115, 1009)])
    held = [user for user in range(100, 120) if len(known(user).seen)]
    assert held == list(range(115, 120))  # 34 each, 32 of them for the state itself
    known.apply([event(user, 1003) for user in (200, 201)])
    assert len(known(115).seen) == 3
    assert len(known(116).seen) == 0


def test_the_experiments_of_a_user_are_bounded_and_others_keep_theirs(run: SmallRun) -> None:
    known = states(run)
    known.apply([event(2, 1003, experiment="a"), event(3, 1003, experiment="a")])
    known.apply([event(2, 1006, experiment=f"e{n}") for n in range(8)])
    assert same(known(2, "a"), known(2))
    assert len(known(3, "a").seen) == len(known(3).seen) + 1
    assert all(len(known(2, f"e{n}").seen) == len(known(2).seen) + 1 for n in range(8))


def test_many_experiments_and_users_take_bounded_memory(run: SmallRun) -> None:
    known = UserStates(run.published, run.record, events_max=5_000)
    for round_ in range(20):
        known.apply([event(10**6 + n % 50, 1003, experiment=f"{round_}/{n}") for n in range(1000)])
    assert known.cost <= 5_000
