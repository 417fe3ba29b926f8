from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketrank.cloud.pages.intake import EVENT_ID_MAX, EXPERIMENT_MAX, FeedbackIntake
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.feedback_log import LogWriteError
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.contract import ContractError, FeedbackReceipt
from tests.cloud.events import accept, event
from tests.cloud.small_published import SmallRun, small_run


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return small_run(tmp_path)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteFeedbackLog]:
    opened = SqliteFeedbackLog(tmp_path / "feedback.db")
    yield opened
    opened.close()


def test_an_event_has_one_effect_however_often_it_comes(run: SmallRun, log: SqliteFeedbackLog) -> None:
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states)
    first, second = event(2, 1003), event(2, 1006)
    assert accept(intake, [first, first]) == FeedbackReceipt(accepted=1, duplicates=1)
    assert accept(intake, [first, second]) == FeedbackReceipt(accepted=1, duplicates=1)
    assert states(2).seen.tolist()[2:] == [2, 3]
    assert accept(intake, []) == FeedbackReceipt(accepted=0, duplicates=0)


def test_a_restart_knows_what_the_process_before_knew(run: SmallRun, log: SqliteFeedbackLog, tmp_path: Path) -> None:
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states)
    for ms in (5, 3, 9, 1):
        accept(intake, [event(2, 1000 + 3 * ms, ms=ms, watch_ms=1000 * ms, like=ms > 4), event(50, 1009, ms=ms)])
    log.close()
    log = SqliteFeedbackLog(tmp_path / "feedback.db")
    again = UserStates(run.published, run.record)
    assert FeedbackIntake(log, again).replayed == 8
    log.close()
    for user in (1, 2, 50):
        assert again(user).seen.tolist() == states(user).seen.tolist()
        assert again(user).history.feedback.tolist() == states(user).history.feedback.tolist()


@pytest.mark.parametrize("event_id", ["", "x" * (EVENT_ID_MAX + 1)])
def test_an_id_that_is_empty_or_too_long_is_refused_with_the_whole_batch(
    run: SmallRun, log: SqliteFeedbackLog, event_id: str
) -> None:
    states = UserStates(run.published, run.record)
    with pytest.raises(ContractError) as caught:
        accept(FeedbackIntake(log, states), [event(), event(event_id=event_id)], "$.feedback")
    assert caught.value.path == "$.feedback[1].event_id"
    assert list(log.replay()) == []
    assert len(states(1).seen) == 1


def test_what_the_log_refuses_has_no_effect(run: SmallRun, log: SqliteFeedbackLog) -> None:
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states)
    log.close()
    with pytest.raises(LogWriteError):
        accept(intake, [event(1, 1003)])
    assert len(states(1).seen) == 1


@pytest.mark.parametrize("name", ["", "x" * (EXPERIMENT_MAX + 1)])
def test_an_experiment_without_a_usable_name_is_refused(run: SmallRun, log: SqliteFeedbackLog, name: str) -> None:
    with pytest.raises(ContractError) as caught:
        accept(FeedbackIntake(log, UserStates(run.published, run.record)), [event(), event(experiment=name)])
    assert caught.value.path == "$.events[1].experiment"
    assert list(log.replay()) == []


def test_a_restart_keeps_experiments_apart(run: SmallRun, log: SqliteFeedbackLog) -> None:
    intake = FeedbackIntake(log, UserStates(run.published, run.record))
    accept(intake, [event(2, 1003, experiment="a"), event(2, 1006)])
    again = UserStates(run.published, run.record)
    assert FeedbackIntake(log, again).replayed == 2
    assert again(2, "a").seen.tolist()[2:] == [2]
    assert again(2).seen.tolist()[2:] == [3]


def test_each_process_knows_once_what_all_accepted(run: SmallRun, log: SqliteFeedbackLog, tmp_path: Path) -> None:
    """Two opened logs of one file stand for two processes; nothing but the file is between them."""
    other_log = SqliteFeedbackLog(tmp_path / "feedback.db")
    states, other_states = UserStates(run.published, run.record), UserStates(run.published, run.record)
    intake, other = FeedbackIntake(log, states), FeedbackIntake(other_log, other_states)
    first, second = event(2, 1003, ms=1), event(2, 1006, ms=2)
    assert accept(intake, [first]).accepted == 1
    assert accept(other, [first, second]) == FeedbackReceipt(accepted=1, duplicates=1)
    assert (other.follow(), intake.follow()) == (1, 1)
    assert (other.follow(), intake.follow()) == (0, 0)
    for known in (states, other_states):
        assert known(2).seen.tolist()[2:] == [2, 3]
    other_log.close()


def test_a_duplicate_that_another_process_accepted_is_known_with_the_receipt(
    run: SmallRun, log: SqliteFeedbackLog, tmp_path: Path
) -> None:
    """The receipt says that the event is accepted, so a page from here must reflect it, though another process accepted it."""
    other_log = SqliteFeedbackLog(tmp_path / "feedback.db")
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states)
    other_log.append([sent := event(2, 1003)])
    assert accept(intake, [sent]) == FeedbackReceipt(accepted=0, duplicates=1)
    assert intake.follow() == 1
    assert states(2).seen.tolist()[2:] == [2]
    other_log.close()


def test_a_long_log_is_replayed_whole(run: SmallRun, log: SqliteFeedbackLog) -> None:
    log.append([event(1 + n % 2, 1003, ms=n, event_id=f"{n}") for n in range(5000)])
    states = UserStates(run.published, run.record)
    assert FeedbackIntake(log, states).replayed == 5000
    assert [len(states(user).seen) for user in (1, 2)] == [2000, 2000]
    published = UserStates(run.published, run.record, seen_max=5000)
    FeedbackIntake(log, published)
    assert [len(published(user).seen) for user in (1, 2)] == [2501, 2502]


@pytest.mark.parametrize("length", [1, EVENT_ID_MAX])
def test_the_shortest_and_the_longest_names_are_accepted(run: SmallRun, log: SqliteFeedbackLog, length: int) -> None:
    intake = FeedbackIntake(log, UserStates(run.published, run.record))
    assert accept(intake, [event(event_id="x" * length, experiment="y" * min(length, EXPERIMENT_MAX))]).accepted == 1


def test_each_batch_gets_a_receipt_of_its_own(run: SmallRun, log: SqliteFeedbackLog) -> None:
    intake = FeedbackIntake(log, UserStates(run.published, run.record))
    first, second, third = (event(2, 1003, ms=n, event_id=f"{n}") for n in range(3))
    receipts = intake.together([[first], [], [first, second], [third]])
    assert receipts == [FeedbackReceipt(accepted=n, duplicates=d) for n, d in ((1, 0), (0, 0), (1, 1), (1, 0))]
    assert intake.together([[], []]) == [FeedbackReceipt(accepted=0, duplicates=0)] * 2


def test_when_nothing_can_be_written_each_batch_gets_the_error(run: SmallRun, log: SqliteFeedbackLog) -> None:
    intake = FeedbackIntake(log, UserStates(run.published, run.record))
    log.close()
    empty, *failed = intake.together([[], [event(event_id="1")], [event(event_id="2")]])
    assert empty == FeedbackReceipt(accepted=0, duplicates=0)
    assert [type(error) for error in failed] == [LogWriteError] * 2
