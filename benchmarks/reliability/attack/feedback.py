"""Attacks by bodies of which a token allows each: many events, many experiments, small bodies that grow large."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path
from random import Random
from threading import Thread
from time import monotonic, sleep
from typing import Any

import msgspec

from benchmarks.reliability.attack.wire import AttackOrder, Client, Tally, flood, post
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackReceipt, PageRequest

__all__ = ["bombs_of_excludes", "bombs_of_telemetry", "events", "events_of_one_user", "experiments", "steady_feedback"]

_BATCH = 9_000
_USER_PER_S = 20.0
"""Requests a second with a user's token: a user may send 100 at once, and then 10 a second."""
_PER_S = 40.0
"""Requests a second with the device token, whose rate is 100."""
_TOO_LARGE = (400, 413)
_REQUESTS_MAX = 400
"""More than can be sent within the rate and the time."""
_MILLION = 1_000_000
_STEADY_CONNECTIONS, _STEADY_EVENTS = 4, 4


def experiments(order: AttackOrder) -> dict[str, Any]:
    """Send `size` batches of 9,000 events, each in an experiment of its own and of one of the published users."""
    users = order.secrets.users[2:]
    return _send(order, order.secrets.device, ((users[i % len(users)], f"e{i}") for i in count()))


def events(order: AttackOrder) -> dict[str, Any]:
    """Send `size` batches of 9,000 events, each of a user of its own, compressed."""
    rng = Random(0)
    return _send(order, order.secrets.device, ((rng.getrandbits(62), None) for _ in count()))


def events_of_one_user(order: AttackOrder) -> dict[str, Any]:
    """Send `size` batches of 9,000 events of the token's own user, each in an experiment of its own, compressed."""
    return _send(order, order.secrets.user, ((order.secrets.users[0], f"e{i}") for i in count()))


def bombs_of_telemetry(order: AttackOrder) -> dict[str, Any]:
    """Send `size` batches without events whose telemetry is a million empty lists, a kilobyte when compressed."""
    empty = msgspec.msgpack.encode({"version": 1, "events": [], "telemetry": []})
    body = empty[:-1] + b"\xdd" + _MILLION.to_bytes(4, "big") + b"\x90" * _MILLION
    return _same(order, post("/v1/feedback", body, order.secrets.user, packed=True))


def bombs_of_excludes(order: AttackOrder) -> dict[str, Any]:
    """Ask for `size` pages without a million items, a kilobyte when compressed."""
    request = PageRequest(
        request_id="bomb", user_id=order.secrets.users[0], session_id="s", now_ms=0, size=30, exclude=(7,) * _MILLION
    )
    return _same(order, post("/v1/page", to_msgpack(request), order.secrets.user, packed=True))


def steady_feedback(order: AttackOrder) -> dict[str, Any]:
    """Send small batches and each until it is acknowledged, as devices do; write the acknowledged ids to the result's file."""
    tally, until, acknowledged = Tally(), monotonic() + order.seconds, list[str]()

    def run(number: int) -> None:
        client = Client(order.port, tally, patience_s=5.0)
        for batch in count():
            ids = [f"steady-{number}-{batch}-{i}" for i in range(_STEADY_EVENTS)]
            body = _batch([_event(id_, number, order.secrets.items[0], None) for id_ in ids])
            request = post("/v1/feedback", body, order.secrets.device)
            while client(request)[0] != 200:
                if monotonic() >= until:
                    return
                sleep(0.05)
            acknowledged.extend(ids)
            if monotonic() >= until:
                return
            sleep(0.01)

    threads = [Thread(target=run, args=(number,)) for number in range(_STEADY_CONNECTIONS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    Path(order.result).write_bytes(msgspec.msgpack.encode(acknowledged))
    return tally.report(events=len(acknowledged))


def _event(id_: str, user: int, item: int, experiment: str | None) -> dict[str, Any]:
    """Return an event without the fields that have a default, a third of what a device sends."""
    event = {"event_id": id_, "user_id": user, "session_id": "s", "item_id": item, "position": 0, "impression_ms": 1}
    return event | {"watch_ms": 1} | ({} if experiment is None else {"experiment": experiment})


def _batch(events: list[dict[str, Any]]) -> bytes:
    return msgspec.msgpack.encode({"events": events})


def _send(order: AttackOrder, token: str, whose: Iterator[tuple[int, str | None]]) -> dict[str, Any]:
    """Send `size` times 9,000 events: in batches of 9,000, or of the largest size by halves that the server does not refuse."""
    items, ids = order.secrets.items, count()
    tally, largest = Tally(), _BATCH

    def make() -> bytes:
        chosen = enumerate(islice(whose, largest))
        made = [_event(f"{next(ids):x}", user, items[i % len(items)], name) for i, (user, name) in chosen]
        tally.add(events_made=len(made))
        return post("/v1/feedback", _batch(made), token, packed=True)

    client = Client(order.port, tally, patience_s=5.0)
    while client(make())[0] in _TOO_LARGE:
        largest //= 2
    client.close()
    requests = [make() for _ in range(min(order.size * _BATCH // largest, _REQUESTS_MAX))]

    def seen(status: int, body: bytes) -> None:
        if status == 200:
            tally.add(events_accepted=from_msgpack(body, FeedbackReceipt).accepted)

    flood(order, requests, _PER_S if token == order.secrets.device else _USER_PER_S, tally, seen)
    return tally.report(events_of_a_batch=largest)


def _same(order: AttackOrder, request: bytes) -> dict[str, Any]:
    tally = Tally()
    flood(order, [request] * order.size, _USER_PER_S, tally)
    return tally.report()
