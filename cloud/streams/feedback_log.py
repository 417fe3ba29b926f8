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
from pathlib import Path
from typing import NamedTuple

from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import ContractError, FeedbackBatch, FeedbackEvent, MismatchError

__all__ = [
    "Appended",
    "FeedbackLog",
    "FeedbackLogError",
    "Forgotten",
    "LogBusyError",
    "LogOpenError",
    "LogWriteError",
    "LogMark",
    "LoggedEvent",
    "Records",
    "is_corrected",
    "read_record",
    "read_records",
]

_CORRECTED = b"correction_ms"
_BATCH = b"\x81\xa6events\xdd"
"""Beginning of a batch in MessagePack, before the number of events in 4 bytes."""


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


def is_corrected(body: bytes) -> bool:
    """Return whether a record may be a `LoggedEvent`."""
    return _CORRECTED in body


def read_record(body: object) -> FeedbackEvent:
    """Return the event of a record, a `LoggedEvent` where its date was corrected. Raises `ContractError`."""
    if not isinstance(body, bytes):
        raise ContractError("$", "a feedback event as bytes", str(body) if isinstance(body, Exception) else type(body).__name__)
    return from_msgpack(body, LoggedEvent if is_corrected(body) else FeedbackEvent)  # nearly all are as they were sent


def read_records(bodies: Sequence[bytes]) -> Sequence[FeedbackEvent]:
    """Return the events of records whose dates were not corrected, as one batch: in a third of the time that one by one takes.

    Raises `ContractError` when one of them cannot be read.
    """
    return from_msgpack(b"".join((_BATCH, len(bodies).to_bytes(4), *bodies)), FeedbackBatch).events


class Appended(NamedTuple):
    """Result of an append."""

    accepted: tuple[FeedbackEvent, ...]
    """New events, which are durable now, in the order of the batch."""
    duplicates: int
    """Number of events whose id was known for their user, from the log or from earlier in the batch."""
    places: Sequence[int]
    """Places of the new events in the log."""


class Forgotten(NamedTuple):
    """Result of `FeedbackLog.forget`."""

    events: int
    """Number of events of the user that were deleted."""
    unassigned: int
    """Number of damaged records of which nobody can say whose they are. They are still in the log."""


class Records(NamedTuple):
    """Part of a log, in the order of acceptance."""

    events: Sequence[FeedbackEvent]
    """[n]"""
    places: Sequence[int]
    """[n] their places in the log, which increase and are never used twice."""
    forgotten: Sequence[tuple[int, int]]
    """Users whose events `forget` deleted, each with the number of events of this part that were accepted before that."""
    added_ms: Sequence[int]
    """[n] when they were accepted, by the log's own clock"""
    end: int
    """Place up to which this part reaches; the place that it was read after when there is nothing more."""


class LogMark(NamedTuple):
    """What tells a log, and a place in it, from all others."""

    log_id: int
    """Random number of the log. A copy of its files has the same one."""
    record: tuple[int, int] | None
    """When the record at the place was accepted and by whom; None when it was deleted since, or when the log ends before it."""


class FeedbackLog(ABC):
    """Append-only log of feedback events, idempotent by user and event id. It is thread-safe.

    Several processes may have the same log open. Each reads what all of them accepted by `read`. A record that cannot be read,
    because it is damaged or a newer version wrote it, is skipped, counted in `unreadable`, and named in the log of the process;
    it stops nothing.
    """

    derived: Path | None = None
    """File beside the log for what is computed from its events; None where there is no such place."""
    ids: Path | None = None
    """File beside the log for the texts of ids in its events; None where there is no such place."""
    events: Path | None = None
    """File beside the log for the other topics (`event_log`); None where there is no such place."""
    read_max: int = 4096
    """Number of records that a long log is read by at a time; appends go on in between."""

    @abstractmethod
    def append(self, events: Sequence[FeedbackEvent]) -> Appended:
        """Write the new ones of `events`, all or none; they are durable when this returns. Raises `LogWriteError`."""

    @abstractmethod
    def read(self, after: int, count: int | None = None) -> Records:
        """Return up to `count` records after the place `after`, by default all that are there; 0 is before the first one.

        Never waits for a writer. Raises `LogOpenError` when the log as a whole cannot be read.
        """

    def replay(self) -> Iterator[FeedbackEvent]:
        """Yield every event, in the order of acceptance. Raises `LogOpenError` when the log as a whole cannot be read."""
        after = 0
        while (records := self.read(after, self.read_max)).end > after:
            yield from records.events
            after = records.end

    @abstractmethod
    def news(self, after: int) -> bool:
        """Return whether other open logs wrote anything after the place `after`. Takes microseconds if nobody wrote.

        Raises `LogOpenError` when the log as a whole cannot be read.
        """

    @abstractmethod
    def ends(self) -> tuple[int, int]:
        """Return the first place that is in use, 0 for none, and the last one that ever was. Raises `LogOpenError`."""

    @abstractmethod
    def mark(self, place: int) -> LogMark:
        """Return what tells this log at `place` from others. Raises `LogOpenError`."""

    @property
    @abstractmethod
    def unreadable(self) -> int:
        """Number of records that `read` has skipped because they cannot be read, each counted once."""

    @abstractmethod
    def resume(self, place: int, unreadable: int) -> None:
        """Count on from `unreadable` records up to `place`, which will not be read again."""

    @abstractmethod
    def forget(self, user_id: int) -> Forgotten:
        """Delete all events of a user, from the disk as well, and let every process know. Raises `LogWriteError`.

        Events that the user's devices send later are accepted as those of any other user.
        """

    @abstractmethod
    def check(self) -> None:
        """Write an event as `append` does, but keep none, and read. Raises `FeedbackLogError` if either would be rejected."""

    @abstractmethod
    def close(self) -> None:
        """Close the log; a second call does nothing."""
