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
from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt, RefusedEvent
from tests.cloud.events import event
from tests.cloud.small_published import small_run

ONE = FeedbackReceipt(accepted=1, duplicates=0)


class Counted(SqliteFeedbackLog):
    """A log that records the number of events of each write, reports that one has `begun`, and goes on once it `may`."""

    def __init__(self, path: Path, config: SqliteLogConfig) -> None:
        super().__init__(path, config)
        self.writes, self.is_broken = list[int](), False
        self.begun, self.may = Event(), Event()
        self.may.set()

    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        self.writes.append(len(events))
        self.begun.set()
        assert self.may.wait(30)
        if self.is_broken:
            raise RuntimeError("a fault of the log")
        return super().append(events)


class Counting(FeedbackIntake):
    """An intake that lets the log go on once the `missing` batches have arrived."""

    def __init__(self, log: Counted, states: UserStates) -> None:
        super().__init__(log, states)
        self.missing, self._may = 0, log.may

    def admit(
        self, events: Sequence[FeedbackEvent], user_id: int | None = None
    ) -> tuple[list[FeedbackEvent], tuple[RefusedEvent, ...]]:
        self.missing -= 1
        if not self.missing:
            self._may.set()
        return super().admit(events, user_id)


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
def run_queue(intake: Counting) -> Callable[..., None]:
    def run_it(work: Callable[[FeedbackQueue], Awaitable[None]], events_max: int = 4000) -> None:
        queue = FeedbackQueue(intake, events_max)
        try:
            asyncio.run(work(queue))  # type: ignore[arg-type]
        finally:
            queue.close()

    return run_it


def test_batches_that_arrive_while_the_disk_is_busy_share_one_write(
    log: Counted, intake: Counting, run_queue: Callable[..., None]
) -> None:
    async def work(queue: FeedbackQueue) -> None:
        log.may.clear()
        intake.missing = 6
        first = asyncio.ensure_future(queue([event()]))
        assert await asyncio.to_thread(log.begun.wait, 30)
        early = asyncio.ensure_future(queue([event()]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        rest = [queue([event()]) for _ in range(4)]
        assert await asyncio.gather(first, early, *rest) == [ONE] * 6

    run_queue(work)
    assert log.writes == [1, 5]


def test_one_write_takes_a_bounded_number_of_events(log: Counted, run_queue: Callable[..., None]) -> None:
    async def work(queue: FeedbackQueue) -> None:
        same = event()
        await asyncio.gather(*(queue([same] * 500) for _ in range(3)), queue([same] * 2000))

    run_queue(work)
    assert log.writes[0] == 1000
    assert log.writes[-1] == 2000


def test_each_batch_gets_its_own_receipt(run_queue: Callable[..., None]) -> None:
    async def work(queue: FeedbackQueue) -> None:
        twice, known = event(), event()
        assert await queue([known]) == ONE
        got = await asyncio.gather(queue([twice, known]), queue([twice, twice]), queue([]), queue([event()]))
        assert [(one.accepted, one.duplicates) for one in got] == [(1, 1), (0, 2), (0, 0), (1, 0)]

    run_queue(work)


def test_a_batch_that_cannot_be_written_fails_no_other(run_queue: Callable[..., None]) -> None:
    async def work(queue: FeedbackQueue) -> None:
        large = [event(session_id="x" * 1000) for _ in range(200)]
        got = await asyncio.gather(queue([event()]), queue(large), queue([event()]), return_exceptions=True)
        assert got[0] == got[2] == ONE
        assert isinstance(got[1], LogWriteError)

    run_queue(work)


def test_while_another_process_locks_the_log_all_are_refused_after_one_wait(
    log: Counted, run_queue: Callable[..., None], tmp_path: Path
) -> None:
    async def work(queue: FeedbackQueue) -> None:
        got = await asyncio.gather(*(queue([event()]) for _ in range(3)), return_exceptions=True)
        assert all(isinstance(one, LogBusyError) for one in got)

    with sqlite3.connect(tmp_path / "feedback.db", isolation_level=None) as holder:
        holder.execute("BEGIN IMMEDIATE")
        run_queue(work)
        holder.execute("ROLLBACK")
    holder.close()
    assert log.writes == [3]


def test_the_queue_is_bounded(run_queue: Callable[..., None]) -> None:
    async def work(queue: FeedbackQueue) -> None:
        tasks = [asyncio.ensure_future(queue([event()])) for _ in range(3)]
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert got[:2] == [ONE, ONE]
        assert isinstance(got[2], BusyError)
        assert await queue([event()]) == ONE

    run_queue(work, 2)


def test_a_batch_that_exceeds_the_bound_is_taken_alone(run_queue: Callable[..., None]) -> None:
    async def work(queue: FeedbackQueue) -> None:
        large = [event() for _ in range(3)]
        for _ in range(2):
            got = await asyncio.gather(queue(large), queue([event()]), return_exceptions=True)
            assert isinstance(got[0], FeedbackReceipt)
            assert isinstance(got[1], BusyError)

    run_queue(work, 2)


def test_batches_that_are_being_written_count_towards_the_bound(log: Counted, run_queue: Callable[..., None]) -> None:
    async def work(queue: FeedbackQueue) -> None:
        log.may.clear()
        first = asyncio.ensure_future(queue([event()]))
        assert await asyncio.to_thread(log.begun.wait, 30)
        second = asyncio.ensure_future(queue([event()]))
        await asyncio.sleep(0)
        with pytest.raises(BusyError):
            await asyncio.wait_for(queue([event()]), 1)
        log.may.set()
        assert await asyncio.gather(first, second) == [ONE, ONE]

    run_queue(work, 2)


def test_an_unexpected_error_reaches_every_batch_of_the_write(log: Counted, run_queue: Callable[..., None]) -> None:
    async def work(queue: FeedbackQueue) -> None:
        log.is_broken = True
        tasks = [asyncio.wait_for(queue([event()]), 30) for _ in range(2)]
        got = await asyncio.gather(*tasks, return_exceptions=True)
        assert [str(one) for one in got] == ["a fault of the log"] * 2
        log.is_broken = False
        assert await queue([event()]) == ONE

    run_queue(work)


def test_feedback_of_a_client_that_disconnected_is_kept_and_delays_no_other(
    log: Counted, run_queue: Callable[..., None]
) -> None:
    kept = event()

    async def work(queue: FeedbackQueue) -> None:
        log.may.clear()
        gone, other = asyncio.ensure_future(queue([kept])), asyncio.ensure_future(queue([event()]))
        assert await asyncio.to_thread(log.begun.wait, 30)
        gone.cancel()
        log.may.set()
        assert await asyncio.wait_for(other, 30) == ONE

    run_queue(work)
    assert kept in list(log.replay())
