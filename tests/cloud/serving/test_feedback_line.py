import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cloud.serving.feedback_line import FeedbackLine
from cloud.serving.intake import FeedbackIntake
from cloud.serving.line import BusyError
from cloud.serving.state import UserStates
from cloud.streams.feedback_log import Appended, LogBusyError, LogWriteError
from cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from device.contract import ContractError, FeedbackEvent, FeedbackReceipt
from tests.cloud.events import event
from tests.cloud.small_published import small_run

ONE = FeedbackReceipt(accepted=1, duplicates=0)


class Counted(SqliteFeedbackLog):
    """Says how many events each write was given."""

    writes: list[int]

    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        self.writes.append(len(events))
        return super().append(events)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Counted]:
    opened = Counted(tmp_path / "feedback.db", SqliteLogConfig(bytes_max=96 * 1024, busy_s=0.05))
    opened.writes = []
    yield opened
    opened.close()


@pytest.fixture
def run_line(log: Counted, tmp_path: Path) -> Callable[..., None]:
    run = small_run(tmp_path / "run")
    intake = FeedbackIntake(log, UserStates(run.published, run.record))

    def run_it(work: Callable[[FeedbackLine], Awaitable[None]], most: int = 100) -> None:
        line = FeedbackLine(intake, most)
        try:
            asyncio.run(work(line))  # type: ignore[arg-type]
        finally:
            line.close()

    return run_it


def test_what_comes_while_the_disk_is_busy_is_written_at_once(log: Counted, run_line: Callable[..., None]) -> None:
    async def work(line: FeedbackLine) -> None:
        first = asyncio.ensure_future(line([event()], "$"))
        await asyncio.sleep(0)  # it is under way after two turns of the loop
        await asyncio.sleep(0)
        rest = [line([event()], "$") for _ in range(5)]
        assert await asyncio.gather(first, *rest) == [ONE] * 6

    run_line(work)
    assert log.writes == [1, 5]


def test_each_gets_its_own_receipt(run_line: Callable[..., None]) -> None:
    async def work(line: FeedbackLine) -> None:
        twice, known = event(), event()
        assert await line([known], "$") == ONE
        got = await asyncio.gather(line([twice, known], "$"), line([twice, twice], "$"), line([], "$"), line([event()], "$"))
        assert [(one.accepted, one.duplicates) for one in got] == [(1, 1), (0, 2), (0, 0), (1, 0)]

    run_line(work)


def test_one_that_cannot_be_kept_fails_no_other(run_line: Callable[..., None]) -> None:
    async def work(line: FeedbackLine) -> None:
        large = [event(session_id="x" * 1000) for _ in range(200)]
        got = await asyncio.gather(line([event()], "$"), line(large, "$"), line([event()], "$"), return_exceptions=True)
        assert got[0] == got[2] == ONE
        assert isinstance(got[1], LogWriteError)

    run_line(work)


def test_while_another_holds_the_log_all_are_refused_after_one_wait(
    log: Counted, run_line: Callable[..., None], tmp_path: Path
) -> None:
    async def work(line: FeedbackLine) -> None:
        got = await asyncio.gather(*(line([event()], "$") for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, LogBusyError) for one in got)

    with sqlite3.connect(tmp_path / "feedback.db", isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        run_line(work)
        holder.execute("ROLLBACK")
    holder.close()
    assert log.writes == [3]


def test_the_line_has_an_end_and_a_batch_of_nonsense_does_not_get_into_it(run_line: Callable[..., None]) -> None:
    async def work(line: FeedbackLine) -> None:
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

    async def work(line: FeedbackLine) -> None:
        gone = asyncio.ensure_future(line([kept], "$"))
        await asyncio.sleep(0)
        gone.cancel()
        assert await line([event()], "$") == ONE

    run_line(work)
    assert kept in list(log.replay())
