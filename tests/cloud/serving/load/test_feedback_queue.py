import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from threading import Event

import pytest

from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.serving.load.feedback_queue import FeedbackQueue
from pocketrank.cloud.serving.load.page_queue import BusyError
from pocketrank.cloud.streams.feedback_log import Appended, LogBusyError, LogWriteError
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from pocketrank.device.contract import ContractError, FeedbackEvent, FeedbackReceipt
from tests.cloud.events import event
from tests.cloud.small_published import small_run

ONE = FeedbackReceipt(accepted=1, duplicates=0)


class Counted(SqliteFeedbackLog):
    """Says how many events each write was given, and that one has `begun`; it goes on once it `may`."""

    def __init__(self, path: Path, config: SqliteLogConfig) -> None:
        super().__init__(path, config)
        self.writes = list[int]()
        self.begun, self.may = Event(), Event()
        self.may.set()

    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        self.writes.append(len(events))
        self.begun.set()
        assert self.may.wait(30)
        return super().append(events)


class Counting(FeedbackIntake):
    """Lets the log go on when so many batches have come."""

    def __init__(self, log: Counted, states: UserStates) -> None:
        super().__init__(log, states)
        self.missing, self._may = 0, log.may

    def check(self, events: Sequence[FeedbackEvent], path: str = "$.events") -> None:
        super().check(events, path)
        self.missing -= 1
        if not self.missing:
            self._may.set()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Counted]:
    opened = Counted(tmp_path / "feedback.db", SqliteLogConfig(bytes_max=96 * 1024, busy_s=0.05))
    yield opened
    opened.close()


@pytest.fixture
def intake(log: Counted, tmp_path: Path) -> Counting:
    run = small_run(tmp_path / "run")
    return Counting(log, UserStates(run.published, run.record))


@pytest.fixture
def run_line(intake: Counting) -> Callable[..., None]:
    def run_it(work: Callable[[FeedbackQueue], Awaitable[None]], most: int = 100) -> None:
        line = FeedbackQueue(intake, most)
        try:
            asyncio.run(work(line))  # type: ignore[arg-type]
        finally:
            line.close()

    return run_it


def test_what_comes_while_the_disk_is_busy_is_written_at_once(
    log: Counted, intake: Counting, run_line: Callable[..., None]
) -> None:
    async def work(line: FeedbackQueue) -> None:
        log.may.clear()
        intake.missing = 6
        first = asyncio.ensure_future(line([event()], "$"))
        assert await asyncio.to_thread(log.begun.wait, 30)
        rest = [line([event()], "$") for _ in range(5)]
        assert await asyncio.gather(first, *rest) == [ONE] * 6

    run_line(work)
    assert log.writes == [1, 5]


def test_each_gets_its_own_receipt(run_line: Callable[..., None]) -> None:
    async def work(line: FeedbackQueue) -> None:
        twice, known = event(), event()
        assert await line([known], "$") == ONE
        got = await asyncio.gather(line([twice, known], "$"), line([twice, twice], "$"), line([], "$"), line([event()], "$"))
        assert [(one.accepted, one.duplicates) for one in got] == [(1, 1), (0, 2), (0, 0), (1, 0)]

    run_line(work)


def test_one_that_cannot_be_kept_fails_no_other(run_line: Callable[..., None]) -> None:
    async def work(line: FeedbackQueue) -> None:
        large = [event(session_id="x" * 1000) for _ in range(200)]
        got = await asyncio.gather(line([event()], "$"), line(large, "$"), line([event()], "$"), return_exceptions=True)
        assert got[0] == got[2] == ONE
        assert isinstance(got[1], LogWriteError)

    run_line(work)


def test_while_another_holds_the_log_all_are_refused_after_one_wait(
    log: Counted, run_line: Callable[..., None], tmp_path: Path
) -> None:
    async def work(line: FeedbackQueue) -> None:
        got = await asyncio.gather(*(line([event()], "$") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, LogBusyError) for one in got)

    with sqlite3.connect(tmp_path / "feedback.db", isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        run_line(work)
        holder.execute("ROLLBACK")
    holder.close()
    assert log.writes == [3]


def test_the_line_has_an_end_and_a_batch_of_nonsense_does_not_get_into_it(run_line: Callable[..., None]) -> None:
    async def work(line: FeedbackQueue) -> None:
        tasks = [asyncio.ensure_future(line([event()], "$")) for _ in range(3)]
        with pytest.raises(ContractError):
            await line([event(event_id="")], "$.feedback")
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert got[:2] == [ONE, ONE]
        assert isinstance(got[2], BusyError)
        assert await line([event()], "$") == ONE

    run_line(work, 2)


def test_who_went_away_has_had_its_effect(log: Counted, run_line: Callable[..., None]) -> None:
    kept = event()

    async def work(line: FeedbackQueue) -> None:
        log.may.clear()
        gone = asyncio.ensure_future(line([kept], "$"))
        assert await asyncio.to_thread(log.begun.wait, 30)
        gone.cancel()
        log.may.set()
        assert await line([event()], "$") == ONE

    run_line(work)
    assert kept in list(log.replay())
