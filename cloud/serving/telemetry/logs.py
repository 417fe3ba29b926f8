"""Logs of a server: one line per event on stderr, as JSON or text, with the id of the request it belongs to.

A line holds the fields below and nothing else: no header, body or token is ever logged, and what looks like a credential in a
message or a traceback is replaced by `***`. In JSON::

    {"time": "2026-01-31T12:00:00.123Z", "level": "warning", "logger": "pocketrank.access", "message": "answered",
     "worker": 0, "request_id": "…", "method": "POST", "route": "/v1/page", "status": 503, "ms": 1.25, "error": "LogBusyError"}
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import sys
from collections.abc import Iterable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from random import Random
from time import monotonic
from typing import Any

import msgspec

from pocketrank.cloud.serving.telemetry.shared_metrics import PLACE

__all__ = ["AccessLog", "LoggingConfig", "RequestInfo", "configure_logs", "current_request", "request_id_of"]

_ID = re.compile(rb"[!-~]{1,64}")
_FIELDS = ("method", "route", "status", "ms", "error", "suppressed")
_NAMES = r"authorization|token|password|secret|api[_-]?key"
_SECRETS = (
    (re.compile(r"(?i)\b(bearer|basic)\s+[\w.~+/=-]+"), r"\1 ***"),
    (re.compile(rf"(?i)\b({_NAMES})(['\"]?\s*[:=]\s*)(?!['\"]?(?:bearer|basic) )['\"]?[^\s'\",;]+"), r"\1\2***"),
    (re.compile(r"://[^/\s@]+@"), "://***@"),
)


@dataclass(frozen=True)
class LoggingConfig:
    """How much is logged, and in which form."""

    format: str = "text"
    """`json` for machines or `text` for a terminal."""
    level: str = "INFO"
    """Lowest level that is logged: DEBUG, INFO, WARNING or ERROR."""
    success_share: float = 0.0
    """Share of the successful requests that are logged; errors always are. A line takes some 90 µs."""
    lines_max: int = 100
    """Largest number of lines about requests per second. The next line holds how many were suppressed: an overload of requests
    must not overload the log."""

    def __post_init__(self) -> None:
        """Raises ValueError for an unknown form or level, and for numbers out of range."""
        if self.format not in ("json", "text") or self.level not in ("DEBUG", "INFO", "WARNING", "ERROR"):
            raise ValueError(f"Expected json or text, and a level of DEBUG, INFO, WARNING or ERROR, got {self}")
        if not 0 <= self.success_share <= 1 or self.lines_max < 1:
            raise ValueError(f"Expected a success_share in 0..1 and lines_max >= 1, got {self}")


@dataclass(slots=True)
class RequestInfo:
    """A request that is under way."""

    id: str
    error: str | None = None
    """Name of the class of the error, if there was one."""


current_request: ContextVar[RequestInfo | None] = ContextVar("current_request", default=None)
"""The request that the running code works for. Threads know it that `asyncio.to_thread` or a copied context started."""

_prefix = secrets.token_hex(6)
_numbers = count()


def request_id_of(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the `X-Request-Id` of a request if it is 1 to 64 printable ASCII characters without spaces, else a new id."""
    for name, value in headers:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return value.decode("ascii")
    return f"{_prefix}-{next(_numbers):x}"


class AccessLog:
    """Log of answered requests: 5xx as warnings, 4xx as information, and the configured share of successes."""

    def __init__(self, config: LoggingConfig | None = None, seed: int = 0) -> None:
        self._config, self._random = config or LoggingConfig(), Random(seed)
        self._logger = logging.getLogger("pocketrank.access")
        self._since, self._lines, self._suppressed = monotonic(), 0, 0

    def __call__(self, method: str, route: str, status: int, seconds: float, error: str | None = None) -> None:
        """Log an answered request. `method` and `route` are labels of metrics, not what the client sent."""
        if status < 400 and (not self._config.success_share or self._random.random() >= self._config.success_share):
            return
        now = monotonic()
        if now - self._since >= 1.0:
            self._since, self._lines = now, 0
        self._lines += 1
        if self._lines > self._config.lines_max:
            self._suppressed += 1
            return
        fields = {"method": method, "route": route, "status": status, "ms": round(1000 * seconds, 3), "error": error}
        fields["suppressed"], self._suppressed = self._suppressed or None, 0
        self._logger.log(logging.WARNING if status >= 500 else logging.INFO, "answered", extra=fields)


def configure_logs(config: LoggingConfig = LoggingConfig()) -> None:
    """Send all logs of this process, uvicorn's too, to stderr in the configured form. Replaces any earlier configuration."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines(config.format))
    logging.basicConfig(handlers=[handler], level=config.level, force=True)
    logging.getLogger("httpx").setLevel(config.level if config.level == "DEBUG" else logging.WARNING)  # a line for each search
    logging.captureWarnings(True)


class _Lines(logging.Formatter):
    def __init__(self, form: str) -> None:
        super().__init__()
        self._json, self._worker = form == "json", os.environ.get(PLACE)

    def format(self, record: logging.LogRecord) -> str:
        line = self._fields(record)
        if self._json:
            return msgspec.json.encode(line).decode()
        trace = line.pop("traceback", None)
        start = " ".join((line.pop("time"), line.pop("level").upper(), line.pop("logger"), _one_line(line.pop("message"))))
        rest = "".join(f" {name}={value}" for name, value in line.items())
        return start + rest if trace is None else f"{start}{rest}\n{trace}"

    def _fields(self, record: logging.LogRecord) -> dict[str, Any]:
        time = datetime.fromtimestamp(record.created, UTC)
        line: dict[str, Any] = {
            "time": f"{time:%Y-%m-%dT%H:%M:%S}.{time.microsecond // 1000:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": _clean(_message(record)),
        }
        if self._worker is not None:
            line["worker"] = int(self._worker)
        if (request := current_request.get()) is not None:
            line["request_id"] = request.id
        line.update((name, value) for name in _FIELDS if (value := getattr(record, name, None)) is not None)
        if record.exc_info and record.exc_info[0] is not None:
            line["error"] = record.exc_info[0].__name__
            line["traceback"] = _clean(self.formatException(record.exc_info))
        return line


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError):  # wrong arguments of a log call must not lose the line
        return str(record.msg)


def _clean(text: str) -> str:
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text.encode("utf-8", "backslashreplace").decode()


def _one_line(text: str) -> str:
    # What a client sends must not look like a line of its own.
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
