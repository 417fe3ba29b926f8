"""The uploader of waiting feedback: in batches, repeated until they succeed, and applied once.

An event leaves the outbox only after a receipt for its whole batch. If the process is killed before that, the next start sends
it again, and the cloud applies an event id once. A failed batch is retried after a backoff (`pocketrank.device.backoff`), or
after the time that the cloud asks for.

A batch that the cloud refuses (400, 413, 422) would be refused every time, so it is halved until the bad event is alone; that
event is dropped. A hotel's network refuses whatever is sent. So an event is only dropped when the cloud takes an empty batch,
and then the uploader waits as after a failure.

A batch that fails in another way is retried in quarters, down to a few events, because a slow network may not take it in time.
An event that fails alone eight times in a row, while the cloud takes an empty batch and does not ask to come later, is dropped
too: it would keep all later ones from their upload.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event, Lock, Thread

from pocketrank.device.backoff import Backoff
from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt
from pocketrank.device.network.errors import BadStatusError, ClientError
from pocketrank.device.offline.outbox import Outbox

__all__ = ["UploadConfig", "UploadCounters", "Uploader"]

_FEW = 16
"""Events that any network takes in one call: some 6 kB."""
_ALONE_MAX = 8
"""Failures in a row of an event that is sent alone, before it is dropped."""


@dataclass(frozen=True)
class UploadConfig:
    """Size and timing of the batches."""

    events_max: int = 256
    """Maximum number of events in a batch."""
    bytes_max: int = 256 << 10
    """Maximum size of a batch in bytes; the server accepts 1 MiB."""
    every_s: float = 30.0
    """Seconds between two looks into an empty outbox. The radio of a phone stays awake for seconds after each call."""
    backoff_s: float = 1.0
    """Span in seconds after the first failure."""
    backoff_max_s: float = 300.0
    """Longest span in seconds. `Uploader.kick` ends it when the network returns."""
    retry_after_max_s: float = 3600.0
    """Longest wait in seconds that the cloud may ask for."""


@dataclass(slots=True)
class UploadCounters:
    """Totals of one uploader."""

    batches: int = 0
    """Batches with a receipt."""
    events: int = 0
    """Events in those batches."""
    duplicates: int = 0
    """Events among them that the cloud already had."""
    failed: int = 0
    """Calls without a receipt, to be retried."""
    halved: int = 0
    """Refused batches, to be retried in halves."""
    refused: int = 0
    """Refused events, which were dropped."""
    errors: int = 0
    """Calls that raised another error than `ClientError`, to be retried."""


class Uploader:
    """Uploads an outbox, in its own thread (`start`) or step by step (`step`).

    `send` is `CloudClient.send_feedback` or wraps it; `rng` is the randomness of the backoff. With a `user_id` only that user's
    events are sent, as a token of that user's requires; without it, those of all users. Steps of several threads take turns.
    The context manager starts and closes it.
    """

    def __init__(
        self,
        outbox: Outbox,
        send: Callable[[Sequence[FeedbackEvent]], FeedbackReceipt],
        config: UploadConfig | None = None,
        *,
        user_id: int | str | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.counters = UploadCounters()
        self._user_id, self._alone = user_id, 0
        self._outbox, self._send, self._config = outbox, send, config or UploadConfig()
        self._backoff = Backoff(self._config.backoff_s, self._config.backoff_max_s, rng)
        self._batch_max = self._config.events_max  # shrinks while the cloud refuses batches
        self._turn, self._wake = Lock(), Event()
        self._closed = False
        self._thread: Thread | None = None

    def __enter__(self) -> Uploader:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Send in a thread until `close`."""
        if self._thread is None and not self._closed:
            self._thread = Thread(target=self._run, name="pocketrank-upload", daemon=True)
            self._thread.start()

    def kick(self) -> None:
        """Send now, because the network is back or the app goes to the background. Not for every swipe: it ends a backoff."""
        self._wake.set()

    def close(self, timeout_s: float = 1.0) -> bool:
        """Stop; False when a call is still running after `timeout_s`. Its events are settled when it ends."""
        self._closed = True
        self._wake.set()
        if self._thread is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def step(self) -> float:
        """Send one batch, if any event waits, and return the seconds to wait before the next step."""
        with self._turn:
            events = self._outbox.take(self._batch_max, self._config.bytes_max, self._user_id)
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
            asked_s = None if status is None else status.retry_after_s
            refused = status is not None and status.refuses_body
            if refused and len(events) > 1:
                count.halved += 1
                self._batch_max = len(events) // 2
                self._outbox.put_back(events)
                return 0.0
            self._alone = self._alone + 1 if len(events) == 1 and asked_s is None else 0
            if (refused or self._alone >= _ALONE_MAX) and self._takes_others():
                count.refused += 1
                self._alone = 0
                self._outbox.acknowledge(events)
                return self._failed()
            count.failed += 1
            self._batch_max = max(len(events) // 4, 1 if len(events) <= _FEW else _FEW)
            self._outbox.put_back(events)
            return self._failed(asked_s)
        if not receipt.settles(events):  # a receipt for another batch
            count.failed += 1
            self._outbox.put_back(events)
            return self._failed()
        self._outbox.acknowledge(events)
        self._alone = 0
        count.batches += 1
        count.events += len(events)
        count.refused += len(receipt.refused)
        count.duplicates += receipt.duplicates
        self._backoff.succeeded()
        self._batch_max = min(self._config.events_max, 2 * self._batch_max)
        return 0.0 if len(self._outbox) else self._config.every_s

    def _takes_others(self) -> bool:
        """Return whether the cloud takes a batch without events, so that it is the event that it does not take."""
        try:
            return self._send(()).settles(())
        except ClientError:
            return False

    def _failed(self, asked_s: float | None = None) -> float:
        """Count a failure and return the seconds to wait."""
        asked_s = asked_s if asked_s is not None and asked_s > 0 else 0.0
        # With jitter on top: devices that were refused together must not return together.
        return min(asked_s, self._config.retry_after_max_s) + self._backoff.failed()

    def _run(self) -> None:
        while not self._closed:
            self._wake.clear()
            try:
                wait_s = self.step()
            except Exception:  # of `send`, which may be the app's; the uploads must continue
                self.counters.errors += 1
                wait_s = self._failed()
            if not self._closed:
                self._wake.wait(wait_s)
