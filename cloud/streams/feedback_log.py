"""Interface of the feedback log: accepted events are durable before they are acknowledged, and each is kept once.

Errors::

    FeedbackLogError           the log failed; names the log
    ├── LogOpenError           it cannot be opened or read: no log, damaged, of another format, or locked by another process
    └── LogWriteError          nothing of the batch was written: the disk is full or read-only, or the log is closed
        └── LogBusyError       nothing of the batch was written, because other writers took too long
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pocketrank.device.contract import FeedbackEvent, MismatchError

__all__ = ["Appended", "FeedbackLog", "FeedbackLogError", "LogBusyError", "LogOpenError", "LogWriteError", "LoggedEvent"]


class FeedbackLogError(MismatchError):
    """The log failed. `where` names the log."""


class LogOpenError(FeedbackLogError):
    """The log cannot be opened or read: no log, damaged, of another format, or locked by another process."""


class LogWriteError(FeedbackLogError):
    """Nothing of the batch was written: the disk is full or read-only, or the log is closed."""


class LogBusyError(LogWriteError):
    """Nothing of the batch was written, because other writers took too long."""


class LoggedEvent(FeedbackEvent, frozen=True, kw_only=True):
    """An event as the log keeps it: with the correction of a date that cannot be right."""

    correction_ms: int = 0
    """To be added to `impression_ms`, which stays as the device sent it."""


class Appended(NamedTuple):
    """Result of an append."""

    accepted: tuple[FeedbackEvent, ...]
    """New events, which are durable now, in the order of the batch."""
    duplicates: int
    """Number of events whose id was known, from the log or from earlier in the batch."""


class FeedbackLog(ABC):
    """Append-only log of feedback events, idempotent by event id. It is thread-safe.

    Several processes may have the same log open. Each reads the events that the others accepted by `poll`.
    """

    @abstractmethod
    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        """Write the new ones of `events`, all or none; they are durable when this returns. Raises `LogWriteError`."""

    @abstractmethod
    def replay(self) -> Iterator[FeedbackEvent]:
        """Yield every event, in the order of acceptance. Raises `LogOpenError` at an event that cannot be read.

        After a replay that ran to its end, `poll` does not return its events again.
        """

    @abstractmethod
    def poll(self) -> Sequence[FeedbackEvent]:
        """Return the events that others accepted since the last call, the last whole replay, or the opening of the log.

        They are in the order of acceptance, and each is returned to one caller. A call takes microseconds if there is no new
        event, and never waits for a writer. Raises `LogOpenError` at an event that cannot be read.
        """

    @abstractmethod
    def check(self) -> None:
        """Write as an append does, but no event. Raises `LogWriteError` if an append would be rejected."""

    @abstractmethod
    def close(self) -> None:
        """Close the log; a second call does nothing."""
