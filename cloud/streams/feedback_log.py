"""Interface of the feedback log: accepted events are durable before they are acknowledged, and each is kept once.

Errors::

    FeedbackLogError           the log failed; names the log
    ├── LogOpenError           it cannot be opened or read: no log, damaged, of another format, or locked by another process
    └── LogWriteError          nothing of the batch was written: the disk is full or read-only, or the log is closed or gone
        └── LogBusyError       nothing of the batch was written, because other writers took too long
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import FeedbackEvent, MismatchError

__all__ = [
    "Appended",
    "FeedbackLog",
    "FeedbackLogError",
    "Forgotten",
    "LogBusyError",
    "LogOpenError",
    "LogWriteError",
    "LoggedEvent",
    "read_record",
]


class FeedbackLogError(MismatchError):
    """The log failed. `where` names the log."""


class LogOpenError(FeedbackLogError):
    """The log cannot be opened or read: no log, damaged, of another format, or locked by another process."""


class LogWriteError(FeedbackLogError):
    """Nothing of the batch was written: the disk is full or read-only, or the log is closed or gone."""


class LogBusyError(LogWriteError):
    """Nothing of the batch was written, because other writers took too long."""


class LoggedEvent(FeedbackEvent, frozen=True, kw_only=True):
    """An event as the log keeps it: with the correction of a date that cannot be right."""

    correction_ms: int = 0
    """To be added to `impression_ms`, which stays as the device sent it."""


def read_record(body: bytes) -> FeedbackEvent:
    """Return the event of a record, a `LoggedEvent` where its date was corrected. Raises `ContractError`."""
    return from_msgpack(body, LoggedEvent if b"correction_ms" in body else FeedbackEvent)  # nearly all are as they were sent


class Appended(NamedTuple):
    """Result of an append."""

    accepted: tuple[FeedbackEvent, ...]
    """New events, which are durable now, in the order of the batch."""
    duplicates: int
    """Number of events whose id was known for their user, from the log or from earlier in the batch."""


class Forgotten(NamedTuple):
    """Result of `FeedbackLog.forget`."""

    events: int
    """Number of events of the user that were deleted."""
    unassigned: int
    """Number of damaged records of which nobody can say whose they are. They are still in the log."""


class FeedbackLog(ABC):
    """Append-only log of feedback events, idempotent by user and event id. It is thread-safe.

    Several processes may have the same log open. Each reads the events that the others accepted by `poll`. A record that cannot
    be read, because it is damaged or a newer version wrote it, is skipped, counted in `unreadable`, and named in the log of the
    process; it stops nothing.
    """

    @abstractmethod
    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        """Write the new ones of `events`, all or none; they are durable when this returns. Raises `LogWriteError`."""

    @abstractmethod
    def replay(self) -> Iterator[FeedbackEvent]:
        """Yield every event, in the order of acceptance. Raises `LogOpenError` when the log as a whole cannot be read.

        After a replay that ran to its end, `poll` does not return its events again.
        """

    @abstractmethod
    def poll(self) -> Sequence[FeedbackEvent]:
        """Return the events that others accepted since the last call, the last whole replay, or the opening of the log.

        They are in the order of acceptance, and each is returned to one caller. A call takes microseconds if there is no new
        event, and never waits for a writer. Raises `LogOpenError` when the log as a whole cannot be read.
        """

    @property
    @abstractmethod
    def unreadable(self) -> int:
        """Number of records that `replay` and `poll` have skipped because they cannot be read."""

    @abstractmethod
    def forget(self, user_id: int) -> Forgotten:
        """Delete all events of a user, from the disk as well, and let every process know. Raises `LogWriteError`.

        Events that the user's devices send later are accepted as those of any other user.
        """

    @abstractmethod
    def forgotten(self) -> Sequence[int]:
        """Return the users whose events `forget` deleted, as far as `replay` and `poll` have read, each to one caller.

        No event that the last `poll` returned is older than that. So drop what is known of these users first, and then apply
        the events.
        """

    @abstractmethod
    def check(self) -> None:
        """Write an event as `append` does, but keep none, and read. Raises `FeedbackLogError` if either would be rejected."""

    @abstractmethod
    def close(self) -> None:
        """Close the log; a second call does nothing."""
