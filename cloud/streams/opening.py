"""Opening an event log by its address."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pocketrank.cloud.streams.event_log import EventLog, EventLogOpenError
from pocketrank.cloud.streams.feedback_log import FeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog

if TYPE_CHECKING:
    from pocketrank.cloud.streams.kafka import KafkaConfig

__all__ = ["open_event_log"]

_KAFKA = re.compile(r"kafka://(?P<servers>[^/,]+:\d+(,[^/,]+:\d+)*)/(?P<prefix>[A-Za-z0-9._-]+)")


def open_event_log(where: str | Path, feedback: FeedbackLog | None = None, kafka: KafkaConfig | None = None) -> EventLog:
    """Open the log at `where`: a path, or `kafka://host:port[,host:port]/PREFIX`. Raises `EventLogOpenError`.

    A file's topic `feedback` is the log `feedback`. A cluster has a topic of its own for it, and `kafka` says the rest of it.
    """
    if not str(where).startswith("kafka:"):
        return SqliteEventLog(Path(where), feedback)
    if (address := _KAFKA.fullmatch(str(where))) is None:
        raise EventLogOpenError(str(where), "kafka://host:port[,host:port]/PREFIX", "another address")
    try:
        from pocketrank.cloud.streams.kafka import KafkaConfig, KafkaEventLog
    except ImportError as error:
        raise EventLogOpenError(str(where), "the extra `kafka`: pip install 'pocketrank[kafka]'", str(error)) from error
    return KafkaEventLog(address["servers"], replace(kafka or KafkaConfig(), prefix=address["prefix"]))
