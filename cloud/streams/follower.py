"""Reading on in a topic of the event log, one message after the other."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

from pocketrank.cloud.streams.event_log import EventLog, Offsets, Record, Topic
from pocketrank.device.codec import from_msgpack
from pocketrank.device.contract import ContractError

__all__ = ["Follower"]

_logger = logging.getLogger(__name__)

Message = TypeVar("Message", bound=msgspec.Struct)


class Follower(Generic[Message]):
    """Reader of the messages of `topic`, which are of type `kind`, from its beginning."""

    def __init__(self, log: EventLog, topic: Topic, kind: type[Message]) -> None:
        self._log, self._topic, self._kind = log, topic, kind
        self._offsets: Offsets = {}
        self.unreadable = 0
        """Number of records so far that are no message of the topic; each is named in the log."""

    def new(self) -> Iterator[tuple[Record, Message]]:
        """Yield each message that was not read yet, with its record. What a forgotten user left is no message.

        Raises `EventLogError`.
        """
        while (part := self._log.read(self._topic, self._offsets)).records:
            self._offsets = part.offsets
            for record in part.records:
                if not record.value:
                    continue
                try:
                    message = from_msgpack(record.value, self._kind)
                except ContractError as error:
                    self.unreadable += 1
                    _logger.error("record %d of the topic %s is skipped: %s", record.offset, self._topic, error)
                else:
                    yield record, message
