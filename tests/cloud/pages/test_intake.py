from collections.abc import Iterator
from pathlib import Path

import pytest

from pocketrank.cloud.pages.intake import EVENT_ID_MAX, EXPERIMENT_MAX, FeedbackIntake
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.feedback_log import LogWriteError
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.contract import ContractError, FeedbackReceipt
from tests.cloud.events import event
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
    assert intake([first, first]) == FeedbackReceipt(accepted=1, duplicates=1)
    assert intake([first, second]) == FeedbackReceipt(accepted=1, duplicates=1)
    assert states(2).seen.tolist()[2:] == [2, 3]
    assert intake([]) == FeedbackReceipt(accepted=0, duplicates=0)


def test_a_restart_knows_what_the_process_before_knew(run: SmallRun, log: SqliteFeedbackLog, tmp_path: Path) -> None:
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states)
    for ms in (5, 3, 9, 1):
        intake([event(2, 1000 + 3 * ms, ms=ms, watch_ms=1000 * ms, like=ms > 4), event(50, 1009, ms=ms)])
    log.close()
    log = SqliteFeedbackLog(tmp_path / "feedback.db")
    again = UserStates(run.published, run.record)
    assert FeedbackIntake(log, again).replayed == 8
    log.close()
    for user in (1, 2, 50):
        assert again(user).seen.tolist() == states(user).seen.tolist()
        assert again(user).history.feedback.tolist() == states(user).history.feedback.tolist()


@pytest.mark.parametrize("event_id", ["", "x" * (EVENT_ID_MAX + 1)])
def test_an_id_that_tells_nothing_apart_is_refused_with_the_whole_batch(
    run: SmallRun, log: SqliteFeedbackLog, event_id: str
) -> None:
    states = UserStates(run.published, run.record)
    with pytest.raises(ContractError) as caught:
        FeedbackIntake(log, states)([event(), event(event_id=event_id)], "$.feedback")
    assert caught.value.path == "$.feedback[1].event_id"
    assert list(log.replay()) == []
    assert len(states(1).seen) == 1


def test_what_the_log_refuses_has_no_effect(run: SmallRun, log: SqliteFeedbackLog) -> None:
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states)
    log.close()
    with pytest.raises(LogWriteError):
        intake([event(1, 1003)])
    assert len(states(1).seen) == 1


@pytest.mark.parametrize("name", ["", "x" * (EXPERIMENT_MAX + 1)])
def test_an_experiment_without_a_usable_name_is_refused(run: SmallRun, log: SqliteFeedbackLog, name: str) -> None:
    with pytest.raises(ContractError) as caught:
        FeedbackIntake(log, UserStates(run.published, run.record))([event(), event(experiment=name)])
    assert caught.value.path == "$.events[1].experiment"
    assert list(log.replay()) == []


def test_a_restart_keeps_experiments_apart(run: SmallRun, log: SqliteFeedbackLog) -> None:
    FeedbackIntake(log, UserStates(run.published, run.record))([event(2, 1003, experiment="a"), event(2, 1006)])
    again = UserStates(run.published, run.record)
    assert FeedbackIntake(log, again).replayed == 2
    assert again(2, "a").seen.tolist()[2:] == [2]
    assert again(2).seen.tolist()[2:] == [3]


def test_each_process_knows_what_all_were_told_once(run: SmallRun, log: SqliteFeedbackLog, tmp_path: Path) -> None:
    """Two opened logs of one file stand for two processes; nothing but the file is between them."""
    other_log = SqliteFeedbackLog(tmp_path / "feedback.db")
    states, other_states = UserStates(run.published, run.record), UserStates(run.published, run.record)
    intake, other = FeedbackIntake(log, states), FeedbackIntake(other_log, other_states)
    first, second = event(2, 1003, ms=1), event(2, 1006, ms=2)
    assert intake([first]).accepted == 1
    assert other([first, second]) == FeedbackReceipt(accepted=1, duplicates=1)
    assert (other.follow(), intake.follow()) == (1, 1)
    assert (other.follow(), intake.follow()) == (0, 0)
    for known in (states, other_states):
        assert known(2).seen.tolist()[2:] == [2, 3]
    other_log.close()


def test_a_duplicate_that_another_process_accepted_is_known_with_the_receipt(
    run: SmallRun, log: SqliteFeedbackLog, tmp_path: Path
) -> None:
    """The device is told that its event is taken; a page from here must show it, though it was sent elsewhere first."""
    other_log = SqliteFeedbackLog(tmp_path / "feedback.db")
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states)
    other_log.append([sent := event(2, 1003)])
    assert intake([sent]) == FeedbackReceipt(accepted=0, duplicates=1)
    assert intake.follow() == 1
    assert states(2).seen.tolist()[2:] == [2]
    other_log.close()
