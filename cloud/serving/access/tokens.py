"""Bearer tokens: their file, which holds what each of them allows and until when, and the check of requests against it.

A token is `prk_<id>_<secret>`: 48 bits in hex that name it and 256 random bits in hex. The file holds the SHA-256 of the whole
text and not the token. A plain hash is enough here, unlike for passwords: nobody can try 2^256 secrets however fast the hash
is, and every request would pay for a slow one.

::

    {"version": 1, "tokens": [{"id": "9f…", "sha256": "…", "scopes": ["device"], "created_ms": …, "expires_ms": …}]}

Errors::

    WireError
    └── AuthError              401: no valid token; 403: a token without the scope. No message holds a secret
    TokenFileError             not a file of tokens, missing, unreadable, or accessible to others; names the file
    └── NoSuchTokenError       no token has this id
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec
from filelock import FileLock, Timeout
from msgspec import Meta

from pocketrank.cloud.files import write_atomically
from pocketrank.cloud.serving.access.limits import SCOPES, RateLimit, TokenScope
from pocketrank.cloud.serving.access.secret_file import SecretFile, TokenFileError, read_secret_file
from pocketrank.cloud.serving.http.wire import WireError

__all__ = [
    "AuthError",
    "AuthReason",
    "IssuedToken",
    "NoSuchTokenError",
    "TokenFile",
    "TokenFileError",
    "TokenRecord",
    "decode_tokens",
    "is_file_token",
    "issue_token",
    "list_tokens",
    "revoke_token",
]

AuthReason = Literal["missing", "malformed", "wrong", "expired", "revoked", "scope"]
"""Why a caller was refused; for metrics."""

_ID_BYTES, _SECRET_BYTES = 6, 32
_OWNER_ONLY = 0o600
_LOCK_S = 10.0
_SCHEME, _TOKEN, _ID, _LENGTH = slice(0, 11), slice(7, None), slice(11, 23), 88  # of `Bearer prk_<id>_<secret>`


class NoSuchTokenError(TokenFileError):
    """No token of the file has this id."""


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


class TokenRecord(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A token as the file holds it. Unknown fields are refused: a mistyped `revoked_ms` must not leave a token valid."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{12}$")]
    """Public name, for logs and to revoke the token."""
    sha256: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    """Digest of the whole token in hex."""
    scopes: Annotated[tuple[TokenScope, ...], Meta(min_length=1)]
    """Everything the token allows. No scope implies another: a scraper of metrics must not change every device's models."""
    created_ms: int
    """Unix time of its creation in milliseconds."""
    expires_ms: int
    """Unix time in milliseconds from which it is refused."""
    revoked_ms: int | None = None
    """Unix time of its revocation in milliseconds, or None. A revoked token stays in the file, to explain the logs."""
    note: Annotated[str, Meta(max_length=200)] = ""
    """Free text: who uses the token."""
    rate: RateLimit | None = None
    """Rate limit that replaces the one of the scope."""


class _Tokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    version: Literal[1] = 1
    tokens: tuple[TokenRecord, ...] = ()


class IssuedToken(NamedTuple):
    """A new token."""

    token: str
    """The secret text. It is stored nowhere."""
    record: TokenRecord
    """Its record in the file."""


_decode = msgspec.json.Decoder(_Tokens).decode

_UNKNOWN = TokenRecord(id="", sha256="0" * 64, scopes=(), created_ms=0, expires_ms=0, revoked_ms=0)
"""Record that unknown ids are compared with, so that they take the time of a wrong secret."""


class TokenFile(SecretFile[dict[bytes, TokenRecord]]):
    """The current tokens of the file at `path`, as `SecretFile` reads it. Raises `TokenFileError`."""

    _holds = "token"

    def _decode(self, data: bytes) -> dict[bytes, TokenRecord]:
        return {record.id.encode(): record for record in decode_tokens(data, self._path)}

    def check(self, authorization: bytes | None, scope: TokenScope) -> TokenRecord:
        """Return the token in this `Authorization` header, which allows `scope`. Raises `AuthError`."""
        self._refresh_in_time()
        if not authorization:
            raise AuthError("missing", "a token: `Authorization: Bearer prk_…`", "none", scope)
        if len(authorization) != _LENGTH or not is_file_token(authorization):
            raise AuthError("malformed", "`Bearer prk_<id>_<secret>`", "something else", scope)
        record = self._content.get(authorization[_ID], _UNKNOWN)
        if not compare_digest(sha256(authorization[_TOKEN]).hexdigest(), record.sha256):
            raise AuthError("wrong", "a token of this server", "another", scope)
        if record.revoked_ms is not None:
            raise AuthError("revoked", "a valid token", "one that was revoked", scope)
        if self._clock() >= record.expires_ms / 1000:
            raise AuthError("expired", "a valid token", "one that expired", scope)
        if scope not in record.scopes:
            raise AuthError("scope", f"a token with the scope `{scope}`", "one without", scope)
        return record


def is_file_token(authorization: bytes | None) -> bool:
    """Return whether an `Authorization` header looks like a token of such a file, and not like a user's own."""
    return authorization is not None and authorization[_SCHEME].lower() == b"bearer prk_"


def decode_tokens(data: bytes, where: Path) -> tuple[TokenRecord, ...]:
    """Return the records in a file's bytes. Raises `TokenFileError`."""
    try:
        tokens = _decode(data).tokens
    except (msgspec.DecodeError, RecursionError) as error:  # UnicodeDecodeError is a DecodeError of msgspec's
        raise TokenFileError(where, "a file of tokens", str(error)) from error
    if len({record.id for record in tokens}) < len(tokens):
        raise TokenFileError(where, "each token listed once", "two with one id")
    return tokens


def list_tokens(path: Path) -> tuple[TokenRecord, ...]:
    """Return the tokens of the file, oldest first. Raises `TokenFileError`."""
    return decode_tokens(read_secret_file(path, "a file of tokens")[0], path)


def issue_token(
    path: Path,
    scopes: Sequence[TokenScope],
    *,
    now_ms: int,
    lasts_ms: int,
    note: str = "",
    rate: RateLimit | None = None,
) -> IssuedToken:
    """Create a token, and the file when there is none. Raises `TokenFileError`, and leaves the file as it was."""
    name = secrets.token_hex(_ID_BYTES)
    token = f"prk_{name}_{secrets.token_hex(_SECRET_BYTES)}"
    record = TokenRecord(
        id=name,
        sha256=sha256(token.encode()).hexdigest(),
        scopes=tuple(scope for scope in SCOPES if scope in scopes),
        created_ms=now_ms,
        expires_ms=now_ms + lasts_ms,
        note=note,
        rate=rate,
    )
    _edit(path, lambda tokens: (*tokens, record), make=True)
    return IssuedToken(token, record)


def revoke_token(path: Path, id: str, *, now_ms: int) -> TokenRecord:
    """Revoke the token `id`; a token that is revoked already keeps its time. Raises `NoSuchTokenError`, `TokenFileError`."""

    def revoke(tokens: tuple[TokenRecord, ...]) -> tuple[TokenRecord, ...]:
        if all(record.id != id for record in tokens):
            raise NoSuchTokenError(path, "the id of a token", f"`{id[:64]}`")
        return tuple(
            msgspec.structs.replace(record, revoked_ms=now_ms) if record.id == id and record.revoked_ms is None else record
            for record in tokens
        )

    return next(record for record in _edit(path, revoke) if record.id == id)


def _edit(
    path: Path, change: Callable[[tuple[TokenRecord, ...]], tuple[TokenRecord, ...]], *, make: bool = False
) -> tuple[TokenRecord, ...]:
    path = path.resolve()  # replace the file that a link points to, not the link
    try:
        if make:
            path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock"), timeout=_LOCK_S, mode=_OWNER_ONLY):
            old = () if make and not path.exists() else list_tokens(path)
            new = change(old)
            data = msgspec.json.format(msgspec.json.encode(_Tokens(tokens=new)), indent=2) + b"\n"
            decode_tokens(data, path)  # never write what could not be read
            if new != old:
                write_atomically(path, data, _OWNER_ONLY)
    except Timeout as error:
        raise TokenFileError(path, f"the file's lock within {_LOCK_S:g} s", "another process that holds it") from error
    except OSError as error:
        raise TokenFileError(path, "a file of tokens that can be written", error.strerror or type(error).__name__) from error
    return new
