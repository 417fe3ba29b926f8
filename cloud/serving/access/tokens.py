"""The check of bearer tokens against their file, which is read again whenever it changes.

Errors::

    WireError
    └── AuthError              401: no valid token; 403: a token without the scope. No message holds a secret
    TokenFileError             at the start: the file is not one of tokens (see `token_file`)
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from time import monotonic, time
from typing import Literal, NamedTuple

from pocketrank.cloud.serving.access.limits import RateLimit, TokenScope
from pocketrank.cloud.serving.access.token_file import TokenFileError, TokenRecord, decode_tokens, read_token_file
from pocketrank.cloud.serving.http.wire import WireError

__all__ = ["AuthError", "AuthReason", "Grant", "TokenFile", "TokenFileConfig"]

AuthReason = Literal["missing", "malformed", "wrong", "expired", "revoked", "scope"]
"""Why a caller was refused; for metrics."""

_SCHEME, _TOKEN, _ID, _LENGTH = slice(0, 11), slice(7, None), slice(11, 23), 88  # of `Bearer prk_<id>_<secret>`
_SETTLED_S = 1.0
"""Age from which an unchanged modification time proves an unchanged file: a second change within one tick of the file system's
clock leaves it as it was."""

_logger = logging.getLogger(__name__)


class AuthError(WireError):
    """A caller that is refused, for a `reason`. Only a caller with the token's secret learns that it expired or was revoked."""

    def __init__(self, reason: AuthReason, expected: str, got: str, scope: TokenScope) -> None:
        challenge = 'Bearer realm="pocketrank"'
        if reason == "scope":
            challenge += f', error="insufficient_scope", scope="{scope}"'
        elif reason != "missing":
            challenge += ', error="invalid_token"'
        super().__init__(403 if reason == "scope" else 401, "authorization", expected, got, {"WWW-Authenticate": challenge})
        self.reason = reason


class Grant(NamedTuple):
    """What an accepted caller may do."""

    id: str
    """Public name of the token, which may be logged; empty at an open server."""
    scopes: frozenset[TokenScope]
    """Everything the token allows."""
    rate: RateLimit | None
    """Rate limit of the token itself."""


class _Entry(NamedTuple):
    digest: bytes
    expires_s: float
    revoked: bool
    grant: Grant


_UNKNOWN = _Entry(bytes(32), 0.0, True, Grant("", frozenset(), None))
"""Entry that unknown ids are compared with, so that they take the time of a wrong secret."""


@dataclass(frozen=True)
class TokenFileConfig:
    """How the token file is followed."""

    check_every_s: float = 1.0
    """Longest time until a change of the file is noticed. A check costs some microseconds."""


class TokenFile:
    """The current tokens of the file at `path`. Raises `TokenFileError` when it cannot be read at the start.

    If the file vanishes or becomes unreadable later, the tokens of before stay valid until they expire, and an error is logged:
    no new token is accepted, and an editor that is saving the file locks nobody out. `clock` returns Unix time, `ticks` is
    monotonic; both in seconds. For the one thread of an event loop.
    """

    def __init__(
        self,
        path: Path,
        config: TokenFileConfig | None = None,
        *,
        clock: Callable[[], float] = time,
        ticks: Callable[[], float] = monotonic,
    ) -> None:
        self._path, self._config = path, config or TokenFileConfig()
        self._clock, self._ticks = clock, ticks
        self._stamp: tuple[int, ...] | None = None
        self._error: TokenFileError | None = None
        self._entries: dict[bytes, _Entry] = {}
        self._read()
        self._check_at = ticks() + self._config.check_every_s

    def check_file(self) -> None:
        """Raise `TokenFileError` while the file cannot be read again; the tokens that were read last stay valid."""
        if self._error is not None:
            raise self._error.with_traceback(None)

    def check(self, authorization: bytes | None, scope: TokenScope) -> Grant:
        """Return what the sender of this `Authorization` header may do, which includes `scope`. Raises `AuthError`."""
        if (ticks := self._ticks()) >= self._check_at:
            self._check_at = ticks + self._config.check_every_s
            self._refresh()
        if not authorization:
            raise AuthError("missing", "a token: `Authorization: Bearer prk_…`", "none", scope)
        if len(authorization) != _LENGTH or authorization[_SCHEME].lower() != b"bearer prk_":
            raise AuthError("malformed", "`Bearer prk_<id>_<secret>`", "something else", scope)
        entry = self._entries.get(authorization[_ID], _UNKNOWN)
        if not compare_digest(sha256(authorization[_TOKEN]).digest(), entry.digest):
            raise AuthError("wrong", "a token of this server", "another", scope)
        if entry.revoked:
            raise AuthError("revoked", "a valid token", "one that was revoked", scope)
        if self._clock() >= entry.expires_s:
            raise AuthError("expired", "a valid token", "one that expired", scope)
        if scope not in entry.grant.scopes:
            raise AuthError("scope", f"a token with the scope `{scope}`", "one without", scope)
        return entry.grant

    def _refresh(self) -> None:
        if self._error is None and self._is_unchanged():
            return
        known = self._error
        try:
            self._read()
        except TokenFileError as error:
            self._error, count = error, len(self._entries)
            if str(error) != str(known):  # log a fault once, not at every check
                _logger.error("the token file cannot be read; its %d tokens of before stay valid: %s", count, error)
        else:
            self._error = None
            if known is not None:
                _logger.warning("the token file can be read again: %d tokens", len(self._entries))

    def _is_unchanged(self) -> bool:
        try:
            return _stamp(os.stat(self._path)) == self._stamp
        except OSError:
            return False

    def _read(self) -> None:
        data, status = read_token_file(self._path)
        self._entries = {record.id.encode(): _entry(record) for record in decode_tokens(data, self._path)}
        self._stamp = _stamp(status) if abs(self._clock() - status.st_mtime) > _SETTLED_S else None


def _entry(record: TokenRecord) -> _Entry:
    grant = Grant(record.id, frozenset(record.scopes), record.rate)
    return _Entry(bytes.fromhex(record.sha256), record.expires_ms / 1000, record.revoked_ms is not None, grant)


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev
