import asyncio
from collections.abc import Callable
from time import perf_counter

import pytest

from pocketrank.cloud.serving.load.page_queue import TURN_S, BusyError, PageQueue
from pocketrank.cloud.serving.load.price import ComputePrice
from pocketrank.cloud.serving.telemetry.logs import RequestInfo, current_request


def line(
    make: Callable[[int, float], int], queue_s: float = 10.0, clock: Callable[[], float] | None = None
) -> PageQueue[int, int]:
    return PageQueue(make, queue_s, ComputePrice(1, clock=clock) if clock else ComputePrice(1))


def busy(_: float = 0.0) -> None:
    """As long as pages are made at once before the others wait."""
    until = perf_counter() + TURN_S
    while perf_counter() < until:
        pass


def test_pages_are_made_in_the_order_in_which_they_came_and_the_loop_runs_between_them() -> None:
    made: list[int] = []

    async def main() -> list[int]:
        waiting = line(lambda asked, since: busy() or made.append(asked) or asked * 10)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while len(made) < 5:
                turns += 1
                await asyncio.sleep(0)

        other = asyncio.create_task(others())
        answers = await asyncio.gather(*(waiting(i, float(i)) for i in range(5)))
        await other
        assert turns >= 5
        assert len(waiting) == 0
        return answers

    assert asyncio.run(main()) == [0, 10, 20, 30, 40]
    assert made == [0, 1, 2, 3, 4]


def test_an_error_is_the_askers_alone() -> None:
    def make(asked: int, since: float) -> int:
        if asked == 1:
            raise ValueError("one")
        return asked

    async def main() -> list[int | BaseException]:
        waiting = line(make)
        return await asyncio.gather(*(waiting(i, 0.0) for i in range(3)), return_exceptions=True)

    zero, one, two = asyncio.run(main())
    assert (zero, two) == (0, 2)
    assert isinstance(one, ValueError)


def test_what_nobody_waits_for_any_more_is_not_made() -> None:
    made: list[int] = []

    async def main() -> None:
        waiting = line(lambda asked, since: busy() or made.append(asked) or 0)
        tasks = [asyncio.create_task(waiting(i, 0.0)) for i in range(3)]
        tasks[1].cancel()
        await asyncio.sleep(0)
        tasks[2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert await waiting(9, 0.0) == 0

    asyncio.run(main())
    assert made == [0, 9]


def test_who_does_something_else_first_has_a_place_in_line() -> None:
    async def main() -> None:
        waiting = line(lambda asked, since: asked, queue_s=1e-12)
        assert await waiting(1, 0.0) == 1  # from now on it knows what a page takes
        waiting.enter()
        with waiting.coming():
            with pytest.raises(BusyError):
                waiting.enter()
            assert len(waiting) == 0
        with pytest.raises(KeyError), waiting.coming():
            raise KeyError
        waiting.enter()

    asyncio.run(main())


def test_who_would_wait_too_long_is_refused_until_the_line_is_shorter() -> None:
    async def main() -> None:
        waiting = line(lambda asked, since: busy() or 0, queue_s=1e-9)
        waiting.enter()
        await waiting(0, 0.0)
        waiting.enter()
        tasks = [asyncio.create_task(waiting(i, 0.0)) for i in (1, 2)]
        await asyncio.sleep(0)  # the first has used up this turn of the loop
        with pytest.raises(BusyError) as caught:
            waiting.enter()
        assert (caught.value.status, caught.value.headers["Retry-After"]) == (429, "1")
        await asyncio.gather(*tasks)
        waiting.enter()

    asyncio.run(main())


def test_the_price_counts_who_waits_and_who_gave_up() -> None:
    now = [0.0]

    async def main() -> None:
        price = ComputePrice(1, clock=lambda: now[0])
        waiting = PageQueue[int, int](lambda asked, since: busy() or asked, 10.0, price)
        tasks = [asyncio.create_task(waiting(i, 0.0)) for i in range(5)]
        await asyncio.sleep(0)
        assert len(waiting) == 4, "the first was made at once"
        now[0] = 1000.0
        assert price() == pytest.approx(4)
        tasks[4].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        now[0] = 2000.0
        assert price() == 1

    asyncio.run(main())


def test_a_page_is_made_under_the_name_of_its_request() -> None:
    async def main() -> list[str]:
        names: list[str] = []

        def make(asked: int, since: float) -> int:
            info = current_request.get()
            names.append(info.id if info else "")
            return 0

        waiting = line(make)

        async def one(i: int) -> None:
            current_request.set(RequestInfo(f"r{i}"))
            await waiting(i, 0.0)

        await asyncio.gather(*(asyncio.create_task(one(i)) for i in range(3)))
        return names

    assert asyncio.run(main()) == ["r0", "r1", "r2"]
