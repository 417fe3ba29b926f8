"""A device to be killed: real session, store, uploader and client, in processes that start fast.

`python -m benchmarks.reliability.kills_device` imports the device once and forks a process for each `Life`
(`benchmarks.reliability.forks`), which says::

    pid 123          it runs
    + ID             an event that `feedback` took: from here on it must not be lost
    again N          repeats of earlier events that were taken as new
    damaged N        files and rows that the store could not read
    resent N         events that the cloud had already, because the receipt was lost
    empty            all that waited was sent
    end -9           it is over: its exit code, below 0 the signal

Whatever it is in at the moment is a byte in the file `marks`, which outlives a kill.
"""

from __future__ import annotations

import mmap
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import msgspec
import numpy as np

from benchmarks.reliability.forks import fork_each, say
from pocketrank.device.codec import to_block
from pocketrank.device.contract import Candidates, Columns, FeedbackEvent, FeedbackReceipt, Page
from pocketrank.device.network.client import CloudClient
from pocketrank.device.offline.outbox import Outbox
from pocketrank.device.offline.store import DeviceStore, DeviceStoreConfig
from pocketrank.device.offline.upload import UploadConfig, Uploader
from pocketrank.device.session.session import FeedSession

__all__ = ["MARKS", "Life", "main"]

MARKS = ("open", "page", "next", "feedback", "send", "acknowledge", "tidy")
"""What may be going on when the kill comes."""
STORE = DeviceStoreConfig(wal_bytes=64 << 10)
"""Folds its write-ahead file in often, so that kills meet that too."""
UPLOAD = UploadConfig(events_max=16, every_s=1e-3, backoff_s=1e-3, backoff_max_s=1e-2)
"""Never rests for long."""
PAGE_ITEMS = 20
"""A page for so many swipes."""
PAUSE_S = 2e-4
"""Between two swipes beside an uploader, or it would get no turn."""
EMPTY_S = 30.0
"""For an outbox to be emptied."""


class Life(msgspec.Struct):
    """What a process is to do."""

    store: str
    marks: str
    url: str
    name: str
    """Of the session; no two lives have the same."""
    uploads: bool
    """Whether an uploader works beside the swipes."""
    empties: bool
    """Send all that waits, and end."""
    known: tuple[str, ...]
    """Ids of events that were taken in earlier lives."""


class _Marks:
    def __init__(self, path: str) -> None:
        with open(path, "r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), len(MARKS))

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        self._bytes[MARKS.index(name)] = 1
        yield
        self._bytes[MARKS.index(name)] = 0


class _Marked(Outbox):
    """What an uploader does with an outbox leaves marks."""

    def __init__(self, outbox: Outbox, marks: _Marks) -> None:
        self._outbox, self._marks = outbox, marks

    def __len__(self) -> int:
        return len(self._outbox)

    def add(self, event: FeedbackEvent) -> bool:
        return self._outbox.add(event)

    def take(self, events_max: int | None = None, bytes_max: int | None = None) -> tuple[FeedbackEvent, ...]:
        return self._outbox.take(events_max, bytes_max)

    def acknowledge(self, events: Iterable[FeedbackEvent]) -> None:
        with self._marks("acknowledge"):
            self._outbox.acknowledge(events)

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        self._outbox.put_back(events)

    def tidy(self) -> None:
        with self._marks("tidy"):
            self._outbox.tidy()


def main() -> None:
    """Do what the module says."""
    fork_each(Life, _live)


def _live(life: Life) -> None:
    marks = _Marks(life.marks)
    with marks("open"):
        store = DeviceStore(Path(life.store), STORE)
        session = FeedSession(None, user_id=1, session_id=life.name, store=store)
        session.restore()
    say(f"damaged {store.damaged_files + store.damaged_rows}")
    say(f"again {sum(session.feedback(_event(life, name, 0, 0)) for name in life.known)}")
    client, outbox = CloudClient(life.url), _Marked(store.outbox, marks)

    def send(events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
        with marks("send"):
            receipt = client.send_feedback(events)
        if receipt.duplicates:
            say(f"resent {receipt.duplicates}")
        return receipt

    uploader = Uploader(outbox, send, UPLOAD, rng=random.Random(life.name))
    if life.empties:
        until = time.monotonic() + EMPTY_S
        while len(outbox) and time.monotonic() < until:
            time.sleep(uploader.step())
        if not len(outbox):
            say("empty")
        store.close()
        return
    if life.uploads:
        uploader.start()
    _swipe(life, session, marks)


def _swipe(life: Life, session: FeedSession, marks: _Marks) -> None:
    """Until killed."""
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
            say(f"+ {event.event_id}")
        if life.uploads:
            time.sleep(PAUSE_S)


def _event(life: Life, name: str, item: int, at: int) -> FeedbackEvent:
    return FeedbackEvent(
        event_id=name, user_id=1, session_id=life.name, item_id=item, position=at, impression_ms=at, watch_ms=at, page_id="page"
    )


def _page(name: str) -> Page:
    items = np.random.default_rng(list(name.encode())).integers(0, 1 << 62, PAGE_ITEMS)
    none = Columns(names=(), values=to_block(np.zeros((PAGE_ITEMS, 0)), "f4"))
    codes = Columns(names=(), values=to_block(np.zeros((PAGE_ITEMS, 0), int), "i4"))
    candidates = Candidates(item_id=to_block(items, "i8"), floats=none, categories=codes)
    return Page(page_id=name, request_id=name, created_ms=0, ttl_ms=600_000, candidates=candidates)


if __name__ == "__main__":
    main()
