"""Calls from another thread that happen in the event loop, where pages are made, and so between two pages."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as LateError
from threading import Event

__all__ = ["StoppedError", "call_in_loop"]

_TICK_S = 0.1


class StoppedError(Exception):
    """The caller was told to stop before its call began."""


def call_in_loop(loop: asyncio.AbstractEventLoop, work: Callable[[], object], stop: Event) -> None:
    """Call `work` in `loop` and wait for its end. Raises what `work` does, and `StoppedError` once `stop` is set before it
    began."""
    done = Future[None]()

    def call() -> None:
        if done.set_running_or_notify_cancel():
            try:
                work()
                done.set_result(None)
            except Exception as error:
                done.set_exception(error)

    loop.call_soon_threadsafe(call)
    while True:
        try:
            return done.result(_TICK_S)
        except LateError:
            if done.done():
                raise  # its own
            if stop.is_set() and done.cancel():
                raise StoppedError from None
