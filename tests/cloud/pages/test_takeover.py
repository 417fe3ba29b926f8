"""A new run takes over the users of the one before: what its history ends with is counted once, and nothing later is lost."""

from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.state_snapshot import StateSnapshot
from pocketrank.cloud.pages.user_state import UserState, UserStates
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.contract import FeedbackEvent
from tests.cloud.events import accept, event
from tests.cloud.small_published import SmallRun, small_run

UNTIL = 1_700_000_000_000
LATE = 1_750_000_000_000
ITEMS = [1000 + 3 * number for number in range(60)]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[SmallRun, SmallRun]:
    """Run a, and b, which was trained on later data and knows other items, so that items have other positions."""
    folder = tmp_path_factory.mktemp("runs")
    return small_run(folder / "a", until_ms=UNTIL), small_run(folder / "b", seed=1, first_item=1030, until_ms=LATE)


def states(run: SmallRun) -> UserStates:
    return UserStates(run.published, run.record)


def applied(run: SmallRun, events: Sequence[FeedbackEvent]) -> UserStates:
    made = states(run)
    made.apply(events, dated=True)
    return made


def ids(run: SmallRun, positions: Sequence[int]) -> list[int]:
    return run.published.item_id[np.asarray(positions, np.int64)].tolist()


def same(a: UserState, b: UserState) -> bool:
    return (
        np.array_equal(a.seen, b.seen)
        and np.array_equal(a.history.item, b.history.item)
        and np.array_equal(a.history.feedback, b.history.feedback)
    )


@pytest.mark.parametrize("user", [1, 3, 7])
def test_events_up_to_the_end_of_the_published_history_are_not_counted_again(
    runs: tuple[SmallRun, SmallRun], user: int
) -> None:
    run, _ = runs
    published = states(run)(user).history.item.tolist()
    before = [event(user, 1030 + 3 * n, ms=UNTIL - 10 + n, position=n) for n in range(11)]  # the last one at the end itself
    state = applied(run, before)(user)
    assert state.history.item.tolist() == published
    after = event(user, 1090, ms=UNTIL + 1)
    for order in ([*before, after], [after, *reversed(before)]):
        state = applied(run, order)(user)
        assert ids(run, state.history.item.tolist()) == [*ids(run, published), 1090][-run.record.history_max :]
        assert ids(run, state.seen.tolist()) == [*(one.item_id for one in before), *ids(run, published), 1090]


def test_a_user_without_published_history_starts_from_the_log(runs: tuple[SmallRun, SmallRun]) -> None:
    run, _ = runs
    for user in (8, 50):  # one without history, and one that the run does not know
        state = applied(run, [event(user, 1000, ms=UNTIL - 5), event(user, 1003, ms=UNTIL + 5)])(user)
        assert ids(run, state.history.item.tolist()) == ids(run, state.seen.tolist()) == [1000, 1003]


def test_where_the_end_is_unknown_all_feedback_is_later(tmp_path: Path) -> None:
    run = small_run(tmp_path)
    for name in ("history_until_ms", "history_ms"):  # a run from before there were such times
        (tmp_path / "published" / f"{name}.npy").unlink()
    published, record = Published.open(tmp_path / "published")
    made = UserStates(published, record)
    made.apply([event(3, 1090, ms=5)], dated=True)
    assert made(3).history.item.tolist() == [*states(run)(3).history.item.tolist(), 31]


def test_experiments_start_from_the_published_history_as_well(runs: tuple[SmallRun, SmallRun]) -> None:
    run, _ = runs
    made = applied(run, [event(3, 1090, ms=UNTIL - 1, experiment="x"), event(3, 1093, ms=UNTIL + 1, experiment="x")])
    assert ids(run, made(3, "x").history.item.tolist()) == [*ids(run, states(run)(3).history.item.tolist()), 1093]
    assert same(made(3), states(run)(3))


def test_a_change_to_another_run_and_back_loses_nothing_and_counts_nothing_twice(
    runs: tuple[SmallRun, SmallRun], tmp_path: Path
) -> None:
    a, b = runs
    rng, sent = np.random.default_rng(0), list[FeedbackEvent]()

    def some(count: int) -> list[FeedbackEvent]:
        """Events of all users, before and after the ends of both histories."""
        return [
            event(int(user), int(item), ms=int(ms), position=int(ms) % 7)
            for user, item, ms in zip(
                rng.integers(1, 12, count),
                rng.choice(ITEMS, count),
                rng.integers(UNTIL - 10**10, LATE + 10**10, count),
                strict=True,
            )
        ]

    with closing(SqliteFeedbackLog(tmp_path / "feedback.db")) as log:
        intake = FeedbackIntake(log, states(a), clock=lambda: (LATE + 2 * 10**10) / 1e3)
        for run in (a, b, a):
            now = states(run)
            events = some(60)
            accept(intake, events)
            intake.prepare(now, lambda: True)
            late = some(5)
            accept(intake, late)  # while the switch is prepared
            intake.switch(now)
            assert now.events == len(sent) + 65
            more = some(20)
            accept(intake, more)
            sent += [*events, *late, *more]
            expected = applied(run, sent)
            replayed = states(run)
            FeedbackIntake(log, replayed)
            assert (now.place, now.events) == (replayed.place, replayed.events) == (len(sent), len(sent))
            for user in range(13):
                assert same(now(user), expected(user))
                assert same(now(user), replayed(user))
                until = int(run.published.history_until_ms[user]) if user < 9 else np.iinfo(np.int64).min
                later = sorted(
                    (one for one in sent if one.user_id == user and one.impression_ms > until),
                    key=lambda one: (one.impression_ms, one.position),
                )
                known = [one.item_id for one in later if one.item_id in run.published.item_id]
                whole = [*ids(run, states(run)(user).history.item.tolist()), *known]
                assert ids(run, now(user).history.item.tolist()) == whole[-run.record.history_max :]


def test_a_preparation_that_is_not_wanted_ends_early(runs: tuple[SmallRun, SmallRun], tmp_path: Path) -> None:
    with closing(SqliteFeedbackLog(tmp_path / "feedback.db")) as log:
        intake = FeedbackIntake(log, states(runs[0]))
        accept(intake, [event(1, item) for item in ITEMS * 4])
        other, asked = states(runs[1]), iter([True, True, False])
        intake.prepare(other, lambda: next(asked))
        assert 0 < other.place < 240


@settings(max_examples=25)
@given(st.lists(st.tuples(st.integers(1, 3), st.sampled_from(ITEMS), st.integers(-3, 3)), max_size=30), st.integers(0, 30))
def test_a_snapshot_of_events_around_the_end_equals_a_replay(
    runs: tuple[SmallRun, SmallRun], tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[int, int, int]], cut: int
) -> None:
    run = runs[0]
    events = [event(user, item, ms=UNTIL + off, position=n % 3) for n, (user, item, off) in enumerate(drawn)]
    path = tmp_path_factory.mktemp("log") / "feedback.db"
    with closing(SqliteFeedbackLog(path)) as log:
        log.append(events[:cut])
        intake = FeedbackIntake(log, states(run), snapshot=StateSnapshot(log.derived))
        intake.close()
        log.append(events[cut:])
        restored = states(run)
        FeedbackIntake(log, restored, snapshot=StateSnapshot(log.derived)).close()
        expected = applied(run, events) if events else states(run)
        assert (restored.place, restored.events) == (expected.place, expected.events)
        assert all(same(restored(user), expected(user)) for user in range(5))


def test_a_snapshot_of_a_run_with_another_end_is_ignored(runs: tuple[SmallRun, SmallRun], tmp_path: Path) -> None:
    run = runs[0]
    later = UserStates(replace(run.published, history_until_ms=run.published.history_until_ms + 1), run.record)
    with closing(SqliteFeedbackLog(tmp_path / "feedback.db")) as log:
        log.append([event(3, 1090, ms=UNTIL + 1)])
        FeedbackIntake(log, states(run), snapshot=StateSnapshot(log.derived)).close()
        assert StateSnapshot(log.derived).load(states(run), log) is not None
        assert StateSnapshot(log.derived).load(later, log) is None
