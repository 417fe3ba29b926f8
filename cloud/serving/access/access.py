"""The check of every request: its token allows it, and its caller does not exceed a rate.

    access = Access(TokenFile(path), LimitsConfig(), UserKeyFile(config))
    user_id = access(scope, "device").user_id                            # ASGI's own scope: the hot routes
    @app.get("/metrics", dependencies=[access.requires("admin")])        # any other route

A caller with a token of the app's backend speaks for the one user whom the token names (`user_tokens`). A token of the file of
tokens names no user: with the scope `device` it speaks for any. A server that knows the backend's keys accepts it for that
scope only when `UserKeysConfig.app_tokens` says so.

A server without tokens is open: anybody may do everything but publish, which would change the models of every device. That is
meant for loopback addresses (`check_host`).

Errors::

    OpenServerError            a server without tokens that other machines reach, and that was not meant to be open
    WireError
    └── OtherUserError         403: a request for another user than the one of its token
"""

from __future__ import annotations

from collections.abc import Hashable
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, NamedTuple

from fastapi import Depends, Security
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection
from starlette.types import Scope

from pocketrank.cloud.serving.access.limits import LimitsConfig, RateLimit, RequestLimits, TokenScope, address_of
from pocketrank.cloud.serving.access.tokens import AuthError, TokenFile, is_file_token
from pocketrank.cloud.serving.http.wire import WireError

if TYPE_CHECKING:
    from pocketrank.cloud.serving.access.user_tokens import UserKeyFile  # its libraries are for servers that verify such tokens

__all__ = [
    "REFUSALS",
    "SECURITY_SCHEME",
    "Access",
    "Caller",
    "OpenServerError",
    "OtherUserError",
    "check_host",
    "check_user",
    "is_loopback",
]

SECURITY_SCHEME = "token"
"""Name of the tokens in the OpenAPI document."""

_TOKEN_TEXT = "`prk_<id>_<secret>`, as `pocketrank token create` prints it, or a JWT that the app's backend signed for a user."
_BEARER = Depends(HTTPBearer(scheme_name=SECURITY_SCHEME, description=_TOKEN_TEXT, auto_error=False))
"""Documents the header, which `Access` checks."""

REFUSALS = {
    401: "No token, or one that is not valid; `WWW-Authenticate` says which.",
    403: "A token without the scope that this route requires, or of another user than the request's.",
    429: "Too many requests; `Retry-After` holds the seconds to wait before the next one.",
}
"""Descriptions of the statuses with which a caller is refused. An open server uses them, too."""


class OpenServerError(ValueError):
    """A server without tokens that other machines reach, and that was not meant to be open."""


class OtherUserError(WireError):
    """A request for another user than the one of its token. The answer names neither."""

    def __init__(self, path: str) -> None:
        super().__init__(403, path, "the user of the token", "another user")


class Caller(NamedTuple):
    """The sender of a request."""

    token_id: str | None = None
    """Id of its token in the file of tokens; None at an open server, and with a user's own token."""
    user_id: int | str | None = None
    """The one user for whom it may speak, as its token names it: by a text where ids are texts; None if for any."""
    bucket: tuple[Hashable, RateLimit] | None = None
    """What its requests are counted in; None without a limit."""


_ANYBODY = Caller()


def _bucket(key: Hashable, rate: RateLimit | None) -> tuple[Hashable, RateLimit] | None:
    return None if rate is None else (key, rate)


def check_user(user_id: int, caller: Caller, path: str) -> None:
    """Raise `OtherUserError` unless `caller` may speak for `user_id`, which stands at `path` of the request."""
    if caller.user_id is not None and caller.user_id != user_id:
        raise OtherUserError(path)


def check_host(host: str, *, has_tokens: bool, is_open: bool) -> None:
    """Raise `OpenServerError` unless `host` is a loopback address, or the server has tokens or is meant to be open."""
    if not (has_tokens or is_open or is_loopback(host)):
        raise OpenServerError(
            "Expected `--tokens FILE` or `--user-keys FILE`, or `--open` to accept anybody, for an address that other machines "
            f"reach, got `{host}`"
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address. Names other than `localhost` are not resolved and do not count."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Check of every request's token and rate. Without `tokens` and `user_keys` the server is open."""

    def __init__(
        self, tokens: TokenFile | None = None, limits: LimitsConfig | None = None, user_keys: UserKeyFile | None = None
    ) -> None:
        self.tokens, self.user_keys, self.limits = tokens, user_keys, RequestLimits(limits)
        self.is_open = tokens is None and user_keys is None
        """Whether whoever can connect is served."""

    def __call__(self, scope: Scope, need: TokenScope) -> Caller:
        """Return the sender of a request. `scope` is ASGI's.

        Raises `AuthError` when the sender may not do `need`, and `TooManyError` when it exceeds its rate.
        """
        authorizations = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(authorizations) > 1:
            raise AuthError("malformed", "one `Authorization`", "several", need)
        authorization, limits = authorizations[0] if authorizations else None, self.limits.config
        if self.is_open:
            if need == "publish":
                raise AuthError("scope", f"a server with tokens for the scope `{need}`", "an open one", need)
            if limits.anonymous is None:
                return _ANYBODY
            return self._admit(Caller(bucket=(address_of(scope.get("client")), limits.anonymous)))
        if self.user_keys is not None and (self.tokens is None or not is_file_token(authorization)):
            user_id = self.user_keys.check(authorization, need).user_id
            return self._admit(Caller(user_id=user_id, bucket=_bucket(("user", user_id), limits.user)))
        assert self.tokens is not None  # else the server is open or has the keys of users
        token = self.tokens.check(authorization, need)
        if need == "device" and self.user_keys is not None and not self.user_keys.config.app_tokens:
            raise AuthError("scope", "a user's own token", "one that speaks for any user", need)
        if token.rate is not None:
            bucket = _bucket((token.id, need), token.rate)
        else:  # the phones of a fleet share a token
            address = address_of(scope.get("client")) if need == "device" else ""
            bucket = _bucket((token.id, need, address), getattr(limits, need))
        return self._admit(Caller(token_id=token.id, bucket=bucket))

    def _admit(self, caller: Caller) -> Caller:
        self.charge(caller, 1)
        return caller

    def charge(self, caller: Caller, cost: int) -> None:
        """Count `cost` requests of `caller`. Raises `TooManyError`, and counts nothing, when that exceeds its rate."""
        if caller.bucket is not None and cost:
            self.limits(*caller.bucket, cost)

    def requires(self, need: TokenScope) -> Any:
        """Return a FastAPI dependency that refuses callers who may not do `need`, and documents it in OpenAPI."""

        async def check(request: HTTPConnection) -> None:
            self(request.scope, need)

        async def check_token(request: HTTPConnection, _: Any = _BEARER) -> None:
            self(request.scope, need)

        return Depends(check) if self.is_open else Security(check_token, scopes=[need])

    def openapi_security(self, need: TokenScope) -> list[dict[str, list[str]]]:
        """Return OpenAPI's `security` of an operation that needs `need`, for a route that FastAPI does not know."""
        return [] if self.is_open else [{SECURITY_SCHEME: [need]}]
