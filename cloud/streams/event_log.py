"""Interface of the event log: topics of records that processes append to, read in order, and commit their offsets in.

::

    pages        what was served to whom (`messages.ServedPage`), by user
    feedback     what users did (`feedback_log.LoggedEvent`), by user
    items        the catalogue's changes (`messages.ItemChange`), by item
    users        users' changes (`messages.UserChange`), by user
    samples      feedback joined with the page as served (`messages.Sample`), by user
    parameters   what the trainer publishes (`messages.ParameterPart`), by sequence number

A topic has one or more partitions; a key's records are in one of them, in the order in which they were appended. A reader's
place in a topic is the offset after the last record that it has read of each partition.

Errors::

    EventLogError              the log failed; names the log
    ├── EventLogOpenError      it cannot be opened or read: no log, damaged, of another format, or no broker answers
    └── EventLogWriteError     nothing of the call was written: the disk is full, the broker is gone, or the log is closed
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pocketrank.device.contract import MismatchError

__all__ = [
    "TOPICS",
    "EventLog",
    "EventLogError",
    "EventLogOpenError",
    "EventLogWriteError",
    "NewRecord",
    "Offsets",
    "Record",
    "Topic",
    "TopicPart",
]

Topic = Literal["pages", "feedback", "items", "users", "samples", "parameters"]
TOPICS: tuple[Topic, ...] = ("pages", "feedback", "items", "users", "samples", "parameters")

Offsets = Mapping[int, int]
"""By partition, the offset after the last record that was read. A partition that is missing is read from its beginning."""


class EventLogError(MismatchError):
    """The log failed. `where` names the log."""


class EventLogOpenError(EventLogError):
    """The log cannot be opened or read: no log, damaged, of another format, or no broker answers."""


class EventLogWriteError(EventLogError):
    """Nothing of the call was written: the disk is full or read-only, the broker is gone, or the log is closed."""


class NewRecord(NamedTuple):
    """A record to append."""

    key: int
    """User, item or number that it is about; records of one key keep their order."""
    value: bytes


class Record(NamedTuple):
    """A record as it is in the log."""

    key: int
    value: bytes
    appended_ms: int
    """When it was appended, in milliseconds since the epoch by the clock of the log."""
    partition: int
    offset: int


class TopicPart(NamedTuple):
    """Part of a topic."""

    records: Sequence[Record]
    offsets: Offsets
    """Place after this part, also beyond records that were deleted meanwhile."""


class EventLog(ABC):
    """Durable topics. Thread-safe; several processes may have the same log open."""

    @abstractmethod
    def append(self, topic: Topic, records: Sequence[NewRecord]) -> None:
        """Append records, all or none; they are durable when this returns. Raises `EventLogWriteError`."""

    def append_at_once(self, topic: Topic, records: Sequence[NewRecord]) -> bool:
        """Append as `append` does if that takes microseconds; return whether it did. By default it never does.

        Raises `EventLogWriteError`.
        """
        return False

    @abstractmethod
    def read(self, topic: Topic, after: Offsets, count: int = 1000, wait_s: float = 0.0) -> TopicPart:
        """Return up to `count` records after a place; without any, wait up to `wait_s` seconds for the first.

        Never returns a record of an `append` or `commit` that was not finished. Raises `EventLogOpenError`.
        """

    @abstractmethod
    def ends(self, topic: Topic) -> Offsets:
        """Return the place after the last record of a topic. Raises `EventLogOpenError`."""

    @abstractmethod
    def commit(
        self, consumer: str, offsets: Mapping[Topic, Offsets], topic: Topic | None = None, records: Sequence[NewRecord] = ()
    ) -> None:
        """Keep a consumer's places in the topics that it reads, and append what it made of them to `topic`: all or nothing.

        Topics that `offsets` does not name keep their places. Raises `EventLogWriteError`.
        """

    @abstractmethod
    def committed(self, consumer: str) -> Mapping[Topic, Offsets]:
        """Return the places that were last committed for a consumer, none for a new one. Raises `EventLogOpenError`."""

    @abstractmethod
    def forget(self, user_id: int) -> int:
        """Delete the records of a user from `pages`, `feedback`, `users` and `samples`; return how many. Raises
        `EventLogWriteError`."""

    @abstractmethod
    def check(self) -> None:
        """Raise `EventLogError` where an append or a read would fail."""

    @abstractmethod
    def close(self) -> None:
        """Close the log; a second call does nothing."""
