"""The check of every request: its token allows it, and its caller does not exceed a rate.

    access = Access(TokenFile(path), LimitsConfig())
    access(scope, "device")                                              # ASGI's own scope: the hot routes
    @app.get("/metrics", dependencies=[access.requires("admin")])        # any other route

A server without tokens is open: anybody may do everything but publish, which would change the models of every device. That is
meant for loopback addresses (`check_host`).

Errors::

    OpenServerError            a server without tokens that other machines reach, and that was not meant to be open
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from fastapi import Depends, Security
from fastapi.security import HTTPBearer
from starlette.requests import HTTPConnection
from starlette.types import Scope

from pocketrank.cloud.serving.access.limits import LimitsConfig, RequestLimits, TokenScope, caller
from pocketrank.cloud.serving.access.tokens import AuthError, TokenFile, TokenRecord

__all__ = ["REFUSALS", "SECURITY_SCHEME", "Access", "OpenServerError", "check_host", "is_loopback"]

SECURITY_SCHEME = "token"
"""Name of the tokens in the OpenAPI document."""

_TOKEN_TEXT = "`prk_<id>_<secret>`, as `pocketrank token create` prints it."
_BEARER = Depends(HTTPBearer(scheme_name=SECURITY_SCHEME, description=_TOKEN_TEXT, auto_error=False))
"""Documents the header, which `Access` checks."""

REFUSALS = {
    401: "No token, or one that is not valid; `WWW-Authenticate` says which.",
    403: "A token without the scope that this route requires.",
    429: "Too many requests; `Retry-After` holds the seconds to wait before the next one.",
}
"""Descriptions of the statuses with which a caller is refused. An open server uses them, too."""


class OpenServerError(ValueError):
    """A server without tokens that other machines reach, and that was not meant to be open."""


def check_host(host: str, *, has_tokens: bool, is_open: bool) -> None:
    """Raise `OpenServerError` unless `host` is a loopback address, or the server has tokens or is meant to be open."""
    if not (has_tokens or is_open or is_loopback(host)):
        raise OpenServerError(
            f"Expected `--tokens FILE`, or `--open` to accept anybody, for an address that other machines reach, got `{host}`"
        )


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches an address. Names other than `localhost` are not resolved and do not count."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """Check of every request's token and rate. `tokens` None leaves the server open."""

    def __init__(self, tokens: TokenFile | None = None, limits: LimitsConfig | None = None) -> None:
        self.tokens, self.limits = tokens, RequestLimits(limits)

    def __call__(self, scope: Scope, need: TokenScope) -> TokenRecord | None:
        """Return the token of a request, None at an open server. `scope` is ASGI's.

        Raises `AuthError` when the sender may not do `need`, and `TooManyError` when it exceeds its rate.
        """
        authorizations = [value for name, value in scope["headers"] if name == b"authorization"]
        if len(authorizations) > 1:
            raise AuthError("malformed", "one `Authorization`", "several", need)
        if self.tokens is None:
            if need == "publish":
                raise AuthError("scope", f"a server with tokens for the scope `{need}`", "an open one", need)
            if (anonymous := self.limits.config.anonymous) is not None:
                self.limits(caller(scope.get("client")), anonymous)
            return None
        token = self.tokens.check(authorizations[0] if authorizations else None, need)
        if (rate := token.rate or getattr(self.limits.config, need)) is not None:
            self.limits((token.id, need), rate)
        return token

    def requires(self, need: TokenScope) -> Any:
        """Return a FastAPI dependency that refuses callers who may not do `need`, and documents it in OpenAPI."""

        async def check(request: HTTPConnection) -> None:
            self(request.scope, need)

        async def check_token(request: HTTPConnection, _: Any = _BEARER) -> None:
            self(request.scope, need)

        return Depends(check) if self.tokens is None else Security(check_token, scopes=[need])

    def openapi_security(self, need: TokenScope) -> list[dict[str, list[str]]]:
        """Return OpenAPI's `security` of an operation that needs `need`, for a route that FastAPI does not know."""
        return [] if self.tokens is None else [{SECURITY_SCHEME: [need]}]
