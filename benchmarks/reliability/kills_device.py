"""A device that is killed: real session, store, uploader and client, in processes that start fast.

`python -m benchmarks.reliability.kills_device` imports the device once and forks a process for each `Life`
(`benchmarks.reliability.forks`), which reports::

    pid 123          it runs
    + ID             `feedback` accepted this event: from here on it must not be lost
    again N          repeats of earlier events that were accepted as new
    damaged N        files and rows that the store could not read
    resent N         events that the cloud had already, because the receipt was lost
    empty            all waiting events were sent
    end -9           it has ended: its exit code, below 0 the signal

Each operation under way is marked by a byte in the file `marks`, which outlives a kill.
"""

from __future__ import annotations

import mmap
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.reliability.forks import fork_each, report
from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt, Page
from pocketrank.device.network.client import CloudClient
from pocketrank.device.offline.store import DeviceStore, DeviceStoreConfig
from pocketrank.device.offline.upload import UploadConfig, Uploader
from pocketrank.device.session.session import FeedSession
from tests.device.worlds import make_event, make_page

__all__ = ["MARKS", "Life", "main"]

MARKS = ("open", "page", "next", "feedback", "send", "acknowledge", "tidy")
"""Operations that a kill may interrupt."""
STORE = DeviceStoreConfig(wal_bytes=64 << 10)
"""Checkpoints its write-ahead file often, so that kills interrupt that too."""
UPLOAD = UploadConfig(events_max=16, every_s=1e-3, backoff_s=1e-3, backoff_max_s=1e-2)
"""Never waits for long."""
PAGE_ITEMS = 20
"""Items of a page, one for each swipe."""
PAUSE_S = 2e-4
"""Seconds between two swipes while an uploader works; without a pause it would never run."""
EMPTY_S = 30.0
"""Seconds in which an outbox must be emptied."""


class Life(msgspec.Struct):
    """Order for one process."""

    store: str
    marks: str
    url: str
    name: str
    """Name of the session; no two lives have the same."""
    uploads: bool
    """Whether an uploader works while the device swipes."""
    empties: bool
    """Whether the process only sends all waiting events, and ends."""
    known: tuple[str, ...]
    """Ids of events that earlier lives accepted."""


class _Marks:
    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), len(MARKS))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._bytes[MARKS.index(name)] = 1
        yield
        self._bytes[MARKS.index(name)] = 0


def main() -> None:
    """Fork a device for each order on standard input."""
    fork_each(Life, _live)


def _live(life: Life) -> None:
    marks = _Marks(life.marks)
    with marks("open"):
        store = DeviceStore(Path(life.store), STORE)
        session = FeedSession(None, user_id=1, session_id=life.name, store=store)
        session.restore()
    report(f"damaged {store.damaged_files + store.damaged_rows}")
    report(f"again {sum(session.feedback(_event(life, name, 0, 0)) for name in life.known)}")
    client, outbox = CloudClient(life.url), store.outbox
    for name in ("acknowledge", "tidy"):  # which the uploader calls
        setattr(outbox, name, marks(name)(getattr(outbox, name)))

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        with marks("send"):
            receipt = client.send_feedback(events)
        if receipt.duplicates:
            report(f"resent {receipt.duplicates}")
        return receipt

    uploader = Uploader(outbox, send, UPLOAD, rng=random.Random(life.name))
    if life.empties:
        until = time.monotonic() + EMPTY_S
        while len(outbox) and time.monotonic() < until:
            time.sleep(uploader.step())
        if not len(outbox):
            report("empty")
        store.close()
        return
    if life.uploads:
        uploader.start()
    _swipe(life, session, marks)


def _swipe(life: Life, session: FeedSession, marks: _Marks) -> None:
    """Swipe until killed."""
    for at in count():
        with marks("next"):
            item = session.next()
        while item is None:
            with marks("page"):
                session.take(_page(f"{life.name}/{at}"))
            item = session.next()
        event = _event(life, f"{life.name}/{at}", item, at)
        with marks("feedback"):
            taken = session.feedback(event)
        if taken:
            report(f"+ {event.event_id}")
        if life.uploads:
            time.sleep(PAUSE_S)


def _event(life: Life, name: str, item: int, at: int) -> FeedbackEvent:
    return make_event(item, at, event_id=name, user_id=1, session_id=life.name, page_id="page")


def _page(name: str) -> Page:
    items = np.random.default_rng(list(name.encode())).integers(0, 1 << 62, PAGE_ITEMS)
    return make_page(items.tolist(), split=None, page_id=name, request_id=name)


if __name__ == "__main__":
    main()
