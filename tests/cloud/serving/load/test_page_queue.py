import asyncio
from collections.abc import Callable
from time import perf_counter

import pytest

from pocketrank.cloud.serving.load.page_queue import TURN_S, BusyError, PageQueue
from pocketrank.cloud.serving.load.price import ComputePrice
from pocketrank.cloud.serving.telemetry.logs import RequestInfo, current_request


def queue_of(make: Callable[[int, float], int], wait_max_s: float = 10.0) -> PageQueue[int, int]:
    return PageQueue(make, wait_max_s, ComputePrice())


def busy() -> None:
    """Use up the time in which pages are made without queueing."""
    until = perf_counter() + TURN_S
    while perf_counter() < until:
        pass


def test_pages_are_made_in_the_order_of_arrival_and_the_loop_runs_between_them() -> None:
    made: list[tuple[int, float]] = []

    async def main() -> list[int]:
        queue = queue_of(lambda request, since: busy() or made.append((request, since)) or request * 10)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while len(made) < 5:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        answers = await asyncio.gather(*(queue(i, float(i)) for i in range(5)))
        await other
        assert turns >= 5
        assert len(queue) == 0
        return answers

    assert asyncio.run(main()) == [0, 10, 20, 30, 40]
    assert made == [(i, float(i)) for i in range(5)]


def test_a_request_that_arrives_while_others_wait_does_not_overtake_them() -> None:
    made: list[int] = []

    def make(request: int, since: float) -> int:
        if request == 0:
            busy()
        made.append(request)
        return request

    async def main() -> None:
        queue = queue_of(make)
        tasks = [asyncio.create_task(queue(i, 0.0)) for i in range(4)]
        await asyncio.sleep(0)  # the first is made, the others wait
        await asyncio.sleep(0)  # a new turn of the loop, which has time for pages
        assert len(queue) > 0
        assert await queue(9, 0.0) == 9
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert made == [0, 1, 2, 3, 9]


@pytest.mark.parametrize(
    ("wait_s", "retry_after", "got"), [(0.0004, "1", "0 ms"), (0.25, "1", "250 ms"), (1.5, "2", "1500 ms"), (1e4, "30", "1")]
)
def test_a_refusal_says_when_to_retry(wait_s: float, retry_after: str, got: str) -> None:
    error = BusyError(wait_s)
    assert error.headers["Retry-After"] == retry_after
    assert error.got.startswith(f"a wait of {got}")


def test_pages_are_made_at_once_until_they_have_used_up_a_turn_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    now, lengths = [0.0], []
    monkeypatch.setattr("pocketrank.cloud.serving.load.page_queue.perf_counter", lambda: now[0])

    def make(request: int, since: float) -> int:
        now[0] += 0.6 * TURN_S
        return request

    async def main() -> None:
        queue = queue_of(make)

        async def look() -> None:
            lengths.append(len(queue))

        for _ in range(2):
            await asyncio.gather(*(queue(i, 0.0) for i in range(3)), look())
            await asyncio.sleep(0)

    asyncio.run(main())
    assert lengths == [1, 1], "in each turn two are made and the third waits"


def test_the_expected_wait_follows_the_time_of_the_latest_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [0.0], []
    monkeypatch.setattr("pocketrank.cloud.serving.load.page_queue.perf_counter", lambda: now[0])

    def make(seconds: int, since: float) -> int:
        now[0] += seconds
        return seconds

    async def main() -> None:
        queue = queue_of(make, wait_max_s=0.0)
        for seconds in (10, 20, 20):
            await queue(seconds, 0.0)
            with queue.reserve(), pytest.raises(BusyError) as caught:
                queue.enter()
            waits.append(caught.value.got)

    asyncio.run(main())
    assert waits == ["a wait of 10000 ms", "a wait of 11000 ms", "a wait of 11900 ms"]


def test_an_error_reaches_only_the_request_that_caused_it() -> None:
    def make(request: int, since: float) -> int:
        if request == 1:
            raise ValueError("one")
        return request

    async def main() -> list[int | BaseException]:
        queue = queue_of(make)
        return await asyncio.gather(*(queue(i, 0.0) for i in range(3)), return_exceptions=True)

    zero, one, two = asyncio.run(main())
    assert (zero, two) == (0, 2)
    assert isinstance(one, ValueError)


def test_a_page_whose_client_disconnected_is_not_made() -> None:
    made: list[int] = []

    async def main() -> None:
        queue = queue_of(lambda request, since: busy() or made.append(request) or 0)
        tasks = [asyncio.create_task(queue(i, 0.0)) for i in range(3)]
        tasks[1].cancel()
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await queue(9, 0.0) == 0

    asyncio.run(main())
    assert made == [0, 9]


def test_a_request_that_waits_for_something_else_has_a_reserved_place() -> None:
    async def main() -> None:
        queue = queue_of(lambda request, since: request, wait_max_s=1e-12)
        assert await queue(1, 0.0) == 1  # the queue now knows how long a page takes
        queue.enter()
        with queue.reserve():
            with pytest.raises(BusyError):
                queue.enter()
            assert len(queue) == 0
        with pytest.raises(KeyError), queue.reserve():
            raise KeyError
        queue.enter()

    asyncio.run(main())


def test_a_request_that_would_wait_too_long_is_refused_until_the_queue_is_shorter() -> None:
    async def main() -> None:
        queue = queue_of(lambda request, since: busy() or 0, wait_max_s=1e-9)
        queue.enter()
        await queue(0, 0.0)
        queue.enter()
        tasks = [asyncio.create_task(queue(i, 0.0)) for i in (1, 2)]
        await asyncio.sleep(0)  # the first has used up this turn of the loop
        with pytest.raises(BusyError) as caught:
            queue.enter()
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
        await asyncio.gather(*tasks)
        queue.enter()

    asyncio.run(main())


def test_the_price_counts_requests_that_wait_and_not_those_that_gave_up() -> None:
    now = [0.0]

    async def main() -> None:
        price = ComputePrice(clock=lambda: now[0])
        queue = PageQueue[int, int](lambda request, since: busy() or request, 10.0, price)
        tasks = [asyncio.create_task(queue(i, 0.0)) for i in range(5)]
        await asyncio.sleep(0)
        assert len(queue) == 4, "the first was made at once"
        now[0] = 1000.0
        assert price() == pytest.approx(4)
        tasks[4].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        now[0] = 2000.0
        assert price() == 1

    asyncio.run(main())


def test_a_page_is_made_in_the_context_of_its_request() -> None:
    async def main() -> list[str]:
        names: list[str] = []

        def make(request: int, since: float) -> int:
            info = current_request.get()
            names.append(info.id if info else "")
            busy()  # so that the others wait
            return 0

        queue = queue_of(make)

        async def one(i: int) -> None:
            current_request.set(RequestInfo(f"r{i}"))
            await queue(i, 0.0)

        await asyncio.gather(*(asyncio.create_task(one(i)) for i in range(3)))
        return names

    assert asyncio.run(main()) == ["r0", "r1", "r2"]
