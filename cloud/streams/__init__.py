"""Logs of what devices send: the interface of the feedback log, and its backends.

Nothing here interprets an event; that is the work of `pocketrank.cloud.pages` and `pocketrank.cloud.data`.
"""

from pocketrank.cloud.streams.feedback_log import (
    Appended,
    FeedbackLog,
    FeedbackLogError,
    Forgotten,
    LogBusyError,
    LoggedEvent,
    LogOpenError,
    LogWriteError,
)
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig

__all__ = [
    "Appended",
    "FeedbackLog",
    "FeedbackLogError",
    "Forgotten",
    "LogBusyError",
    "LogOpenError",
    "LogWriteError",
    "LoggedEvent",
    "SqliteFeedbackLog",
    "SqliteLogConfig",
]
