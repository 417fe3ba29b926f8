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
from contextlib import suppress
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from time import monotonic, time
from typing import Literal

from pocketrank.cloud.serving.access.limits import TokenScope
from pocketrank.cloud.serving.access.token_file import TokenFileError, TokenRecord, decode_tokens, read_token_file
from pocketrank.cloud.serving.http.wire import WireError

__all__ = ["AuthError", "AuthReason", "TokenFile"]

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


_UNKNOWN = TokenRecord(id="", sha256="0" * 64, scopes=(), created_ms=0, expires_ms=0, revoked_ms=0)
"""Record that unknown ids are compared with, so that they take the time of a wrong secret."""


class TokenFile:
    """The current tokens of the file at `path`. Raises `TokenFileError` when it cannot be read at the start.

    If the file vanishes or becomes unreadable later, the tokens of before stay valid until they expire, and an error is logged:
    no new token is accepted, and an editor that is saving the file locks nobody out. `clock` returns Unix time, `ticks` is
    monotonic; both in seconds. A change is noticed within `check_every_s`, and a check costs some microseconds. For the one
    thread of an event loop.
    """

    def __init__(
        self,
        path: Path,
        *,
        check_every_s: float = 1.0,
        clock: Callable[[], float] = time,
        ticks: Callable[[], float] = monotonic,
    ) -> None:
        self._path, self._check_every_s = path, check_every_s
        self._clock, self._ticks = clock, ticks
        self._stamp: tuple[int, ...] | None = None
        self._error: TokenFileError | None = None
        self._records: dict[bytes, TokenRecord] = {}
        self._read()
        self._check_at = ticks() + check_every_s

    def check_file(self) -> None:
        """Raise `TokenFileError` while the file cannot be read again; the tokens that were read last stay valid."""
        if self._error is not None:
            raise self._error.with_traceback(None)

    def check(self, authorization: bytes | None, scope: TokenScope) -> TokenRecord:
        """Return the token in this `Authorization` header, which allows `scope`. Raises `AuthError`."""
        if (ticks := self._ticks()) >= self._check_at:
            self._check_at = ticks + self._check_every_s
            self._refresh()
        if not authorization:
            raise AuthError("missing", "a token: `Authorization: Bearer prk_…`", "none", scope)
        if len(authorization) != _LENGTH or authorization[_SCHEME].lower() != b"bearer prk_":
            raise AuthError("malformed", "`Bearer prk_<id>_<secret>`", "something else", scope)
        record = self._records.get(authorization[_ID], _UNKNOWN)
        if not compare_digest(sha256(authorization[_TOKEN]).hexdigest(), record.sha256):
            raise AuthError("wrong", "a token of this server", "another", scope)
        if record.revoked_ms is not None:
            raise AuthError("revoked", "a valid token", "one that was revoked", scope)
        if self._clock() >= record.expires_ms / 1000:
            raise AuthError("expired", "a valid token", "one that expired", scope)
        if scope not in record.scopes:
            raise AuthError("scope", f"a token with the scope `{scope}`", "one without", scope)
        return record

    def _refresh(self) -> None:
        with suppress(OSError):  # which `_read` reports
            if self._error is None and _stamp(os.stat(self._path)) == self._stamp:
                return
        known = self._error
        try:
            self._read()
        except TokenFileError as error:
            self._error, count = error, len(self._records)
            if str(error) != str(known):  # log a fault once, not at every check
                _logger.error("the token file cannot be read; its %d tokens of before stay valid: %s", count, error)
        else:
            self._error = None
            if known is not None:
                _logger.warning("the token file can be read again: %d tokens", len(self._records))

    def _read(self) -> None:
        data, status = read_token_file(self._path)
        self._records = {record.id.encode(): record for record in decode_tokens(data, self._path)}
        self._stamp = _stamp(status) if abs(self._clock() - status.st_mtime) > _SETTLED_S else None


def _stamp(status: os.stat_result) -> tuple[int, ...]:
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino, status.st_dev
