"""The seam behind which accepted feedback is kept: durable before it is acknowledged, each event once.

Errors::

    FeedbackLogError           the log cannot do what was asked; names the log
    ├── LogOpenError           it cannot be opened: no log, damaged, of another format, or held by another process
    └── LogWriteError          nothing of the batch was kept: disk full, read-only, closed
        └── LogBusyError       because other writers took too long
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pocketrank.device.contract import FeedbackEvent

__all__ = ["Appended", "FeedbackLog", "FeedbackLogError", "LogBusyError", "LogOpenError", "LogWriteError"]


class FeedbackLogError(Exception):
    """The log cannot do what was asked. `where` names the log, `expected` and `got` say what."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got: {got} - at {where}")
        self.where, self.expected, self.got = where, expected, got


class LogOpenError(FeedbackLogError):
    """The log cannot be opened or read: no log, damaged, of another format, or held by another process."""


class LogWriteError(FeedbackLogError):
    """Nothing of the batch was kept: the disk is full or read-only, or the log is closed."""


class LogBusyError(LogWriteError):
    """Nothing of the batch was kept, because other writers took too long."""


class Appended(NamedTuple):
    """What became of a batch."""

    accepted: tuple[FeedbackEvent, ...]
    """New, durable, in the order of the batch."""
    duplicates: int
    """Known by event id, from before or from earlier in the batch."""


class FeedbackLog(ABC):
    """An append-only log of feedback events, idempotent by event id. Safe to call from several threads.

    Several processes may each have the same log open. What one accepts, the others hear by `news`.
    """

    @abstractmethod
    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        """Keep the new ones of `events`, all or none; they are durable when this returns. Raises `LogWriteError`."""

    @abstractmethod
    def replay(self) -> Iterator[FeedbackEvent]:
        """Every event, in the order of acceptance. Raises `LogOpenError` at an event that cannot be read.

        What a replay that ran to its end has yielded, `news` does not tell again.
        """

    @abstractmethod
    def poll(self) -> Sequence[FeedbackEvent]:
        """What others accepted since the last call, or since the last whole replay, or since the log was opened.

        In the order of acceptance; each event is told to one caller. Costs microseconds when there is nothing new, and never
        waits for a writer. Raises `LogOpenError` at an event that cannot be read.
        """

    @abstractmethod
    def check(self) -> None:
        """Write as an append would, but no event. Raises `LogWriteError` when an append would be refused."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the log; a second call does nothing."""
