"""Sends the feedback that waits: in batches, again until it is there, once in effect.

An event leaves the outbox only after a receipt for its whole batch. Killed before that, the next start sends it again, and the
cloud applies an event id once. What fails is tried again after a random part of a span that doubles (exponential backoff with
full jitter: Brooker, Exponential Backoff And Jitter, AWS Architecture Blog, 2015), or after the time that the cloud asks for.

A batch that the cloud calls wrong (400, 413, 422) would be wrong for ever, so it is halved until the wrong event is alone; that
one is let go. After each of them the uploader waits as after a failure: a cloud, or a hotel's network, that refuses everything
for an hour then costs some events and not all.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Lock, Thread
from types import TracebackType

from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt
from pocketrank.device.network.client import BadStatusError, ClientError
from pocketrank.device.offline.outbox import Outbox

__all__ = ["UploadConfig", "UploadCounters", "Uploader"]


@dataclass(frozen=True)
class UploadConfig:
    """When to send, and how much at once."""

    events_max: int = 256
    """Events of a batch."""
    bytes_max: int = 256 << 10
    """Bytes of them; the server takes 1 MiB."""
    every_s: float = 30.0
    """Between two looks into an outbox that was empty. The radio of a phone stays awake for seconds after each call."""
    backoff_s: float = 1.0
    """The first span after a failure."""
    backoff_max_s: float = 300.0
    """The longest span. Network that comes back is told by `Uploader.kick`, so that nothing hangs on this."""
    retry_after_max_s: float = 3600.0
    """The longest time that the cloud may ask for."""
    refused: tuple[int, ...] = (400, 413, 422)
    """Statuses that say that the batch itself is wrong. A token (401) or an address (404) may be put right."""


@dataclass(slots=True)
class UploadCounters:
    """Totals of one uploader, from 0."""

    batches: int = 0
    """batches with a receipt"""
    events: int = 0
    """events in them"""
    duplicates: int = 0
    """of these, known to the cloud from before"""
    failed: int = 0
    """calls without a receipt: tried again"""
    halved: int = 0
    """batches that the cloud called wrong: tried again by halves"""
    refused: int = 0
    """events that the cloud called wrong: let go"""
    errors: int = 0
    """calls that raised what no client should: tried again"""


class Uploader:
    """Empties an outbox into the cloud, by a thread of its own (`start`) or by hand (`step`).

    `send` is `CloudClient.send_feedback` or wraps it; `rng` the randomness of the backoff. Steps take turns, from whatever
    threads they come. As a context manager it is started and closed.
    """

    def __init__(
        self,
        outbox: Outbox,
        send: Callable[[Sequence[FeedbackEvent]], FeedbackReceipt],
        config: UploadConfig | None = None,
        *,
        rng: random.Random | None = None,
    ) -> None:
        self.counters = UploadCounters()
        self._outbox, self._send, self._config = outbox, send, config or UploadConfig()
        self._rng = rng or random.Random()
        self._most = self._config.events_max  # events of the next batch
        self._failures = 0  # in a row
        self._turn, self._wake = Lock(), Event()
        self._closed = False
        self._thread: Thread | None = None

    def __enter__(self) -> Uploader:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, err: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def start(self) -> None:
        """Send from a thread of its own until `close`."""
        if self._thread is None and not self._closed:
            self._thread = Thread(target=self._run, name="pocketrank-upload", daemon=True)
            self._thread.start()

    def kick(self) -> None:
        """Send now: network came back, the app goes to the background. Not for every swipe, as it cuts a backoff short."""
        self._wake.set()

    def close(self, timeout_s: float = 1.0) -> bool:
        """Stop; False when a call was still under way after `timeout_s`. Its events are then kept or forgotten when it ends."""
        self._closed = True
        self._wake.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def step(self) -> float:
        """Send one batch, if anything waits; the seconds that the next step is to wait."""
        with self._turn:
            events = self._outbox.take(self._most, self._config.bytes_max)
            try:
                wait_s = self._upload(events) if events else self._config.every_s
            except BaseException:
                self._outbox.put_back(events)
                raise
            self._outbox.tidy()
            return wait_s

    def _upload(self, events: tuple[FeedbackEvent, ...]) -> float:
        count = self.counters
        try:
            receipt = self._send(events)
        except ClientError as error:
            status = error if isinstance(error, BadStatusError) else None
            if status is None or status.status not in self._config.refused:
                count.failed += 1
                self._outbox.put_back(events)
                return self._backoff(None if status is None else status.retry_after_s)
            if len(events) > 1:
                count.halved += 1
                self._most = len(events) // 2
                self._outbox.put_back(events)
                return 0.0
            count.refused += 1
            self._outbox.acknowledge(events)
            return self._backoff()
        if receipt.accepted + receipt.duplicates != len(events):  # a receipt for something else
            count.failed += 1
            self._outbox.put_back(events)
            return self._backoff()
        self._outbox.acknowledge(events)
        count.batches += 1
        count.events += len(events)
        count.duplicates += receipt.duplicates
        self._failures = 0
        self._most = min(self._config.events_max, 2 * self._most)
        return 0.0 if len(self._outbox) else self._config.every_s

    def _backoff(self, asked_s: float | None = None) -> float:
        """Seconds to wait after one more failure."""
        config = self._config
        span = min(config.backoff_max_s, math.ldexp(config.backoff_s, min(self._failures, 64)))
        self._failures += 1
        wait_s = self._rng.uniform(0, span)
        if asked_s is not None and asked_s > 0:
            # Jitter on top, or all devices that were sent away together would come back together.
            return min(asked_s, config.retry_after_max_s) + wait_s
        return wait_s

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            try:
                wait_s = self.step()
            except Exception:  # of `send`, which is the app's; feedback must go on
                self.counters.errors += 1
                wait_s = self._backoff()
            if not self._closed:
                self._wake.wait(wait_s)
