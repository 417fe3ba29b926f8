"""Who may do what: bearer tokens, checked against a file that is read anew when it changes.

A server that has no file is open to whoever reaches it, which is for loopback only.

Errors::

    WireError
    └── AuthError              401 no token that is in force, 403 one without the scope; no message holds a secret
    TokenFileError             at start: the file is not one of tokens (see `token_file`)
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
"""Why somebody was not let in; for metrics."""

_SCHEME, _TOKEN, _ID, _LENGTH = slice(0, 11), slice(7, None), slice(11, 23), 88  # of `Bearer prk_<id>_<secret>`
_SETTLED_S = 1.0  # a file changed again within a tick of its clock looks unchanged

_logger = logging.getLogger(__name__)


class AuthError(WireError):
    """Not let in. `reason` says why; what the caller is told of a token that is not in force depends on having its secret."""

    def __init__(self, reason: AuthReason, expected: str, got: str, scope: TokenScope) -> None:
        challenge = 'Bearer realm="pocketrank"'
        if reason == "scope":
            challenge += f', error="insufficient_scope", scope="{scope}"'
        elif reason != "missing":
            challenge += ', error="invalid_token"'
        super().__init__(403 if reason == "scope" else 401, "authorization", expected, got, {"WWW-Authenticate": challenge})
        self.reason = reason


class Grant(NamedTuple):
    """Somebody who was let in."""

    id: str
    """The token's public name, empty at an open server. May be logged."""
    scopes: frozenset[TokenScope]
    """All that the token may do."""
    rate: RateLimit | None
    """Its own rate limit."""


class _Entry(NamedTuple):
    digest: bytes
    expires_s: float
    revoked: bool
    grant: Grant


_NOBODY = _Entry(bytes(32), 0.0, True, Grant("", frozenset(), None))
"""What an unknown id is compared with, so that it takes the time of a wrong secret."""


@dataclass(frozen=True)
class TokenFileConfig:
    """How the file is followed."""

    check_every_s: float = 1.0
    """A change is seen after so long at the latest. Looking costs some microseconds."""


class TokenFile:
    """The tokens in the file at `path`, as they are now. Raises `TokenFileError` when they cannot be read to begin with.

    Later a file that vanished or cannot be read leaves in force what was, and an error in the log: nobody new is let in, and
    nobody is locked out by an editor. A token still expires then. `clock` is Unix time, `ticks` only goes forward; seconds. For
    the one thread of an event loop.
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
        self._trouble: str | None = None
        self._entries: dict[bytes, _Entry] = {}
        self._read()
        self._check_at = ticks() + self._config.check_every_s

    @property
    def count(self) -> int:
        """Tokens in the file, in force or not."""
        return len(self._entries)

    @property
    def trouble(self) -> str | None:
        """What keeps the file from being read anew, None when nothing does; for readiness and metrics."""
        return self._trouble

    def check_file(self) -> None:
        """Raise `TokenFileError` while the file cannot be read anew; the tokens that were read last stay in force."""
        if self._trouble is not None:
            raise TokenFileError(self._path, "a file of tokens", self._trouble)

    def check(self, authorization: bytes | None, scope: TokenScope) -> Grant:
        """Who it is that sends this `Authorization` header, if that one may do `scope`. Raises `AuthError`."""
        if (ticks := self._ticks()) >= self._check_at:
            self._check_at = ticks + self._config.check_every_s
            self._look()
        if not authorization:
            raise AuthError("missing", "a token: `Authorization: Bearer prk_…`", "none", scope)
        if len(authorization) != _LENGTH or authorization[_SCHEME].lower() != b"bearer prk_":
            raise AuthError("malformed", "`Bearer prk_<id>_<secret>`", "something else", scope)
        entry = self._entries.get(authorization[_ID], _NOBODY)
        if not compare_digest(sha256(authorization[_TOKEN]).digest(), entry.digest):
            raise AuthError("wrong", "a token of this server", "another", scope)
        if entry.revoked:
            raise AuthError("revoked", "a token in force", "one that was revoked", scope)
        if self._clock() >= entry.expires_s:
            raise AuthError("expired", "a token in force", "one that expired", scope)
        if scope not in entry.grant.scopes:
            raise AuthError("scope", f"a token with the scope `{scope}`", "one without", scope)
        return entry.grant

    def _look(self) -> None:
        if self._trouble is None and self._is_as_read():
            return
        try:
            self._read()
        except TokenFileError as error:
            if (told := str(error)) != self._trouble:  # once, not at every look
                _logger.error("the token file cannot be read anew; the %d tokens of before stay: %s", self.count, told)
            self._trouble = told
        else:
            if self._trouble is not None:
                _logger.warning("the token file can be read again: %d tokens", self.count)
            self._trouble = None

    def _is_as_read(self) -> bool:
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
