"""The async client and session compared with the sync ones, against the same real server."""

import asyncio
import inspect
import logging
import random
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from pocketrank.device.aio import AsyncCloudClient, AsyncFeedSession
from pocketrank.device.contract import PageRequest
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import ClientError
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.session import FeedSession
from tests.device.network.test_client import Cloud, serving
from tests.device.tap import requests, tapped
from tests.device.worlds import Clock, make_bundle, make_event, make_page

PAIRS = [(CloudClient, AsyncCloudClient), (FeedSession, AsyncFeedSession)]
PIECES = {"fetch", "fetch_file", "fetch_files"}
"""Methods that are parts of `download_bundle` rather than calls of an app."""


def ask(number: int, size: int = 2) -> PageRequest:
    return PageRequest(request_id=f"r{number}", user_id=7, session_id="s", now_ms=0, size=size)


class Gate(Clock):
    """A clock that can block its callers, and records their threads."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.open = threading.Event(), threading.Event()
        self.open.set()
        self.threads: set[int] = set()

    def __call__(self) -> int:
        self.threads.add(threading.get_ident())
        self.entered.set()
        self.open.wait()
        return super().__call__()


class Door(Cloud):
    """A server that can hold its answers back."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.open = threading.Event(), threading.Event()
        self.open.set()

    def handle(self, path: str, body: bytes) -> tuple[int, bytes]:
        self.entered.set()
        self.open.wait()
        return super().handle(path, body)


@contextmanager
def no_thread_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) == before


async def held(place: Gate | Door, call: Awaitable[Any]) -> "asyncio.Task[Any]":
    """Return `call` as a task that is blocked at `place`."""
    place.entered.clear()
    place.open.clear()
    task = asyncio.ensure_future(call)
    while not place.entered.is_set():
        await asyncio.sleep(0)  # the loop goes on meanwhile
    assert not task.done()
    return task


async def cancelled(task: "asyncio.Future[Any]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# --------------------------------------------------------------------------------------------------------- the same names


@pytest.mark.parametrize(("sync", "aio"), PAIRS)
def test_every_call_has_its_coroutine_with_the_same_signature(sync: type, aio: type) -> None:
    for name, member in vars(sync).items():
        if name.startswith("_") or name in PIECES:
            continue
        assert hasattr(aio, "__aenter__")
        own = inspect.getattr_static(aio, name, None)
        assert own is not None, f"{aio.__name__} lacks `{name}`: one line in device/aio.py"
        if inspect.isfunction(member):
            assert inspect.iscoroutinefunction(own), f"{aio.__name__}.{name} is no coroutine"
            assert list(inspect.signature(own).parameters) == list(inspect.signature(member).parameters)
            assert own.__doc__


@pytest.mark.parametrize(("sync", "aio"), PAIRS)
def test_every_coroutine_has_its_call(sync: type, aio: type) -> None:
    extra = {name for name in vars(aio) if not name.startswith("_")} - {name for name in dir(sync) if not name.startswith("_")}
    assert extra <= {"user_id", "session_id", "counters"}  # a session's attributes


# ------------------------------------------------------------------------------------------------------ the same behaviour


async def _answer(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def script(feed: Any, cloud: Any, server: Cloud, clock: Clock) -> list[Any]:
    """Play a session in which everything happens that can, and return what it observed."""
    saw: list[Any] = [feed.user_id, feed.session_id, feed.position, feed.page_id, feed.form]

    async def do(call: Callable[..., Any], *args: Any, **keys: Any) -> Any:
        try:
            value = await _answer(call(*args, **keys))
        except (ClientError, ValueError, TypeError) as error:
            value = error
            saw.append((type(error), str(error)))
        else:
            saw.append(value)
        return value

    async def order() -> list[int]:
        remaining = feed.remaining
        return (await remaining() if callable(remaining) else remaining).tolist()

    await do(feed.next)
    for turn, answer in enumerate([None, (500, b"no"), (200, b"\xc1"), None]):
        server.answers = {} if answer is None else {"/v1/page": answer}
        await do(feed.wants_page)
        request = await do(feed.request, 6 + turn, scene=turn)
        page = await do(cloud.page, request)
        if isinstance(page, Exception):
            await do(feed.put_back, request.feedback)
        else:
            await do(feed.take, page)
        for _ in range(2):
            saw.append(await order())
            item = await do(feed.next)
            clock.ms += 3_000
            await do(feed.feedback, make_event(item, feed.position - 1, event_id=f"{turn}/{item}", like=turn % 2 == 0))
            await do(feed.feedback, make_event(item, feed.position - 1, event_id=f"{turn}/{item}"))
        saw += [await order(), feed.position, feed.page_id, feed.form]
    await do(feed.request, "many")
    await do(feed.take, make_page([]))
    events = await do(feed.drain_feedback)
    await do(cloud.send_feedback, events)
    await do(cloud.send_feedback, events)
    await do(cloud.health)
    server.answers = {"/v1/feedback": (503, b"busy")}
    await do(cloud.send_feedback, events)
    return [*saw, feed.counters]


def test_both_send_and_return_the_same_byte_for_byte(tmp_path: Any) -> None:
    ranker = Ranker.open(make_bundle(tmp_path / "bundle"))
    server = Cloud()
    with serving(server) as real, tapped(real) as (url, sent):

        def new() -> tuple[FeedSession, CloudClient, Clock]:
            server.events.clear()
            clock = Clock()
            return (
                FeedSession(ranker, user_id=7, session_id="s", clock=clock, rng=random.Random(1)),
                CloudClient(url, token="t"),
                clock,
            )

        async def through_async() -> list[Any]:
            feed, client, clock = new()
            async with AsyncFeedSession(feed) as session, AsyncCloudClient(client) as cloud:
                return await script(session, cloud, server, clock)

        feed, client, clock = new()
        with client:
            expected = asyncio.run(script(feed, client, server, clock))
        assert asyncio.run(through_async()) == expected
    kinds = {type(value[0]) for value in expected if isinstance(value, tuple) and value}
    assert type in kinds  # errors were seen
    assert expected[-1].reranks > 4
    assert sent[0] == sent[1]
    assert len(sent) == 2
    assert len(requests(bytes(sent[0]))) == 8


# -------------------------------------------------------------------------------------------------------------- threads


def test_models_and_clocks_run_off_the_loop_and_the_threads_end() -> None:
    gate = Gate()

    async def main() -> None:
        async with AsyncFeedSession(FeedSession(None, user_id=7, session_id="s", clock=gate)) as feed:
            gate.threads.clear()
            assert await feed.take(make_page([1, 2]))
            task = await held(gate, feed.request(2))  # returns: the loop is not held up
            gate.open.set()
            assert (await task).size == 2

    with no_thread_left():
        asyncio.run(main())
    assert gate.threads.isdisjoint({threading.get_ident()})
    assert len(gate.threads) == 1


def test_several_loops_one_after_the_other_also_after_close() -> None:
    cloud = Cloud()
    with serving(cloud) as url, no_thread_left():
        client = AsyncCloudClient(CloudClient(url))
        feed = AsyncFeedSession(FeedSession(None, user_id=7, session_id="s", clock=Clock()))

        async def turn(number: int, close: bool) -> list[int]:
            await feed.take(await client.page(ask(number)))
            order = (await feed.remaining()).tolist()
            if close:
                await asyncio.gather(client.close(), feed.close())
            return order

        assert [asyncio.run(turn(n, close)) for n, close in enumerate((False, False, True, False))] == [[0, 1]] * 4
        asyncio.run(client.close())
        asyncio.run(feed.close())


def test_calls_take_turns_in_the_order_they_were_made() -> None:
    gate = Gate()

    async def main() -> None:
        async with AsyncFeedSession(FeedSession(None, user_id=7, session_id="s", clock=gate)) as feed:
            await feed.take(make_page(list(range(8))))
            first = await held(gate, feed.wants_page())
            swipes = [asyncio.ensure_future(feed.next()) for _ in range(8)]
            gate.open.set()
            await first
            assert await asyncio.gather(*swipes) == list(range(8))

    asyncio.run(main())


def test_close_comes_after_the_calls_before_it() -> None:
    gate = Gate()

    async def main() -> None:
        feed = AsyncFeedSession(FeedSession(None, user_id=7, session_id="s", clock=gate))
        task = await held(gate, feed.request(3))
        closing = asyncio.ensure_future(feed.close())
        await asyncio.sleep(0)
        gate.open.set()
        await closing
        assert (await task).size == 3

    with no_thread_left():
        asyncio.run(main())


# ----------------------------------------------------------------------------------------------------------- cancelling


def test_a_cancelled_page_leaves_the_connection_usable() -> None:
    door = Door()

    async def main(url: str) -> None:
        async with AsyncCloudClient(CloudClient(url)) as client:
            first = await held(door, client.page(ask(1)))
            never = asyncio.ensure_future(client.page(ask(2)))
            await asyncio.sleep(0)
            await cancelled(never)
            await cancelled(first)
            last = asyncio.ensure_future(client.page(ask(3, size=4)))
            door.open.set()
            assert (await last).request_id == "r3"

    with serving(door) as real, tapped(real) as (url, sent):
        asyncio.run(main(url))
    (line,) = sent
    assert [b"r1" in asked.body or b"r3" in asked.body for asked in requests(bytes(line))] == [True, True]


@pytest.mark.parametrize("call", ["request", "drain_feedback"])
@pytest.mark.parametrize("under_way", [True, False])
def test_what_a_cancelled_call_took_is_queued_again(call: str, under_way: bool) -> None:
    gate = Gate()

    async def main() -> None:
        async with AsyncFeedSession(FeedSession(None, user_id=7, session_id="s", clock=gate)) as feed:
            for item in (1, 2):
                await feed.feedback(make_event(item))
            make = {"request": lambda: feed.request(3), "drain_feedback": feed.drain_feedback}[call]
            if under_way and call == "request":
                await cancelled(await held(gate, make()))
            else:
                other = await held(gate, feed.request(1))
                waiting = asyncio.ensure_future(make())
                await asyncio.sleep(0)
                other.cancel()
                await cancelled(waiting)
            gate.open.set()
            await feed.feedback(make_event(3))
            assert [event.item_id for event in await feed.drain_feedback()] == [1, 2, 3]

    asyncio.run(main())


def test_a_result_from_before_the_cancellation_is_queued_again_too() -> None:
    gate = Gate()

    async def main() -> None:
        async with AsyncFeedSession(FeedSession(None, user_id=7, session_id="s", clock=gate)) as feed:
            await feed.take(make_page([2, 3]))
            await feed.feedback(make_event(1))
            gate.entered.clear()
            drained, next_call = asyncio.ensure_future(feed.drain_feedback()), asyncio.ensure_future(feed.wants_page())
            await asyncio.sleep(0)
            gate.entered.wait()  # holds the loop up until the first answer is there, and nobody was told
            await cancelled(drained)
            await next_call
            assert [event.item_id for event in await feed.drain_feedback()] == [1]

    asyncio.run(main())


def test_feedback_of_a_cancelled_call_is_kept() -> None:
    gate = Gate()

    async def main() -> None:
        async with AsyncFeedSession(FeedSession(None, user_id=7, session_id="s", clock=gate)) as feed:
            other = await held(gate, feed.request(1))
            call = asyncio.ensure_future(feed.feedback(make_event(1)))
            await asyncio.sleep(0)
            await cancelled(call)
            gate.open.set()
            await other
            assert [event.item_id for event in await feed.drain_feedback()] == [1]

    asyncio.run(main())


def test_a_loop_that_ends_during_a_call_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate()
    feed = AsyncFeedSession(FeedSession(None, user_id=7, session_id="s", clock=gate))

    async def leave() -> None:
        await feed.feedback(make_event(1))
        await held(gate, feed.request(3))

    with caplog.at_level(logging.DEBUG, logger="concurrent.futures"):
        asyncio.run(leave())
        gate.open.set()
        assert [event.item_id for event in asyncio.run(feed.drain_feedback())] == [1]
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
    asyncio.run(feed.close())


def test_a_cancelled_close_still_ends_the_thread() -> None:
    gate = Gate()

    async def main() -> None:
        feed = AsyncFeedSession(FeedSession(None, user_id=7, session_id="s", clock=gate))
        task = await held(gate, feed.request(3))
        closing = asyncio.ensure_future(feed.close())
        await asyncio.sleep(0)
        await cancelled(closing)
        gate.open.set()
        await task

    before = set(threading.enumerate())
    asyncio.run(main())
    for thread in set(threading.enumerate()) - before:
        thread.join()
    assert set(threading.enumerate()) == before
