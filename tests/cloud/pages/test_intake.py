from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.feedback_log import LogWriteError
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.device.contract import EVENT_ID_MAX, EXPERIMENT_MAX, WATCH_MS_MAX, FeedbackReceipt
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


@pytest.mark.parametrize(
    ("bad", "path"),
    [
        ({"event_id": ""}, "event_id"),
        ({"event_id": "x" * (EVENT_ID_MAX + 1)}, "event_id"),
        ({"experiment": ""}, "experiment"),
        ({"experiment": "x" * (EXPERIMENT_MAX + 1)}, "experiment"),
        ({"ms": -1}, "impression_ms"),
        ({"ms": 2**63 - 1}, "impression_ms"),
        ({"watch_ms": -1}, "watch_ms"),
        ({"watch_ms": WATCH_MS_MAX + 1}, "watch_ms"),
    ],
)
def test_an_event_that_the_contract_refuses_stops_no_other(
    run: SmallRun, log: SqliteFeedbackLog, bad: dict[str, Any], path: str
) -> None:
    states = UserStates(run.published, run.record)
    receipt = accept(FeedbackIntake(log, states), [event(2, 1003), event(2, 1006, **bad), event(2, 1009)])
    assert (receipt.accepted, receipt.duplicates) == (2, 0)
    (refused,) = receipt.refused
    assert refused.index == 1
    assert f"[1].{path}" in refused.reason
    assert len(refused.reason) <= 300
    assert [kept.item_id for kept in log.replay()] == [1003, 1009]
    assert states(2).seen.tolist()[2:] == [2, 4]


NOW = 1_780_000_000_000
DAY = 86_400_000


@pytest.mark.parametrize("ms", [NOW + 1, NOW + 9 * 365 * DAY, 253_402_300_799_999, 0, 1_780_000_000, 946_684_799_999])
def test_an_event_from_a_wrong_clock_counts_as_of_its_arrival(run: SmallRun, log: SqliteFeedbackLog, ms: int) -> None:
    now = [NOW]
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states, clock=lambda: now[0] / 1e3)
    accept(intake, [event(2, 1003, ms=NOW - 5)])
    accept(intake, [event(2, 1006, ms=ms)])
    now[0] += 10
    accept(intake, [event(2, 1009, ms=NOW + 10), event(2, 1012, ms=NOW - 1)])
    assert states(2).seen.tolist()[2:] == [2, 5, 3, 4]
    assert intake.dated == 1
    again = UserStates(run.published, run.record)
    FeedbackIntake(log, again, clock=lambda: now[0] / 1e3 + 10**6)
    assert again(2).seen.tolist() == states(2).seen.tolist()
    assert [kept.impression_ms for kept in log.replay()][1] == ms, "as the device sent it"


def test_events_from_ahead_do_not_displace_those_of_the_month_after(run: SmallRun, log: SqliteFeedbackLog) -> None:
    now = [NOW]
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states, clock=lambda: now[0] / 1e3)
    accept(intake, [event(2, 1000 + 3 * i, ms=NOW + 9 * 365 * DAY + i, position=i) for i in range(9)])
    for day in range(1, 31):
        now[0] = NOW + day * DAY
        accept(intake, [event(2, 1030 + 3 * (day % 5), ms=now[0] - 1000)])
    length = run.record.history_max
    assert states(2).history.item.tolist() == [11 + day % 5 for day in range(31 - length, 31)]


@pytest.mark.parametrize("off_ms", [3 * 365 * DAY, -3 * 365 * DAY, -NOW, 0])
def test_an_event_with_an_age_is_dated_by_it_whatever_the_clock_of_its_device(
    run: SmallRun, log: SqliteFeedbackLog, off_ms: int
) -> None:
    now = [NOW]
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states, clock=lambda: now[0] / 1e3)
    week = [event(2, 1000 + 3 * i, ms=max(0, NOW + off_ms - i * DAY), age_ms=i * DAY) for i in range(1, 8)]
    accept(intake, week[:3])
    accept(intake, [event(2, 1030, ms=NOW - 3 * DAY - DAY // 2)])  # of another device, whose clock is right
    now[0] += 5_000
    accept(intake, [msgspec.structs.replace(late, age_ms=int(late.age_ms or 0) + 5_000) for late in week[3:]])
    assert states(2).seen.tolist()[2:] == [8, 7, 6, 5, 11, 4, 3, 2]
    assert intake.dated == (7 if off_ms else 0)
    dates = sorted(kept.impression_ms + getattr(kept, "correction_ms", 0) for kept in log.replay() if kept.age_ms)
    assert dates == [NOW - i * DAY for i in range(7, 0, -1)]
    again = UserStates(run.published, run.record)
    FeedbackIntake(log, again, clock=lambda: (NOW - 9 * 365 * DAY) / 1e3)
    assert again(2).seen.tolist() == states(2).seen.tolist()


@pytest.mark.parametrize("back_ms", [60_000, 9 * 365 * DAY])
def test_a_server_whose_clock_is_put_back_dates_no_event_before_those_of_its_log(
    run: SmallRun, log: SqliteFeedbackLog, back_ms: int
) -> None:
    accept(
        FeedbackIntake(log, UserStates(run.published, run.record), clock=lambda: NOW / 1e3), [event(2, 1003, ms=NOW, age_ms=0)]
    )
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states, clock=lambda: (NOW - back_ms) / 1e3)
    accept(intake, [event(2, 1006, ms=NOW + DAY, age_ms=0)])
    assert states(2).seen.tolist()[2:] == [2, 3]


def test_after_a_long_time_without_events_right_clocks_are_believed(run: SmallRun, log: SqliteFeedbackLog) -> None:
    for now in (NOW, NOW + 90 * DAY):
        intake = FeedbackIntake(log, UserStates(run.published, run.record), clock=lambda now=now: now / 1e3)  # type: ignore[misc]
        accept(intake, [event(2, 1003, ms=now - DAY, age_ms=DAY), event(2, 1006, ms=now - 5, age_ms=0)])
        assert intake.dated == 0


@pytest.mark.parametrize("age_ms", [-1, 2**62])
def test_an_age_that_cannot_be_is_refused(run: SmallRun, log: SqliteFeedbackLog, age_ms: int) -> None:
    intake = FeedbackIntake(log, UserStates(run.published, run.record))
    (refused,) = accept(intake, [event(2, 1003, age_ms=age_ms)]).refused
    assert "[0].age_ms" in refused.reason


def test_what_the_log_refuses_has_no_effect(run: SmallRun, log: SqliteFeedbackLog) -> None:
    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states)
    log.close()
    with pytest.raises(LogWriteError):
        accept(intake, [event(1, 1003)])
    assert len(states(1).seen) == 1


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
    assert (other.follow(), intake.follow()) == (0, 1), "who accepts something has followed the others first"
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


def test_a_forgotten_user_is_dropped_in_every_process_with_all_experiments(
    run: SmallRun, log: SqliteFeedbackLog, tmp_path: Path
) -> None:
    other_log = SqliteFeedbackLog(tmp_path / "feedback.db")
    states, other_states = UserStates(run.published, run.record), UserStates(run.published, run.record)
    intake, other = FeedbackIntake(log, states), FeedbackIntake(other_log, other_states)
    accept(intake, [event(2, 1003), event(2, 1006, experiment="a"), event(1, 1003)])
    other.follow()
    log.forget(2)
    other_log.append([event(2, 1009)])
    assert (intake.follow(), other.follow()) == (1, 1)
    for known in (states, other_states):
        assert [known(2).seen.tolist()[2:], known(2, "a").seen.tolist()[2:], known(1).seen.tolist()[1:]] == [[4], [], [2]]
