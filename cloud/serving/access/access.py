"""The door: whoever comes in has a token that allows it and does not come too often.

    access = Access(TokenFile(path), RequestLimits())
    grant = access(scope, "device")                                      # ASGI's own scope: the hot routes
    @app.get("/metrics", dependencies=[access.requires("admin")])        # any other route

Without tokens the server is open: anybody may do all but publish, which would change the models of every device. That is for
loopback (`check_host`).

Errors::

    OpenServerError            a server that other machines reach and that anybody may use, and nobody said so
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from fastapi import Depends, Security
from fastapi.openapi.models import HTTPBearer
from fastapi.security.base import SecurityBase
from starlette.requests import HTTPConnection
from starlette.types import Scope

from pocketrank.cloud.serving.access.limits import SCOPES, RateLimit, RequestLimits, TokenScope, caller
from pocketrank.cloud.serving.access.tokens import AuthError, Grant, TokenFile

__all__ = ["ANONYMOUS", "REFUSALS", "SECURITY_SCHEME", "Access", "OpenServerError", "check_host", "is_loopback"]

ANONYMOUS = Grant("", frozenset(("device", "admin")), None)
"""Who comes to an open server."""

SECURITY_SCHEME = "token"
"""The name of the tokens in the OpenAPI text."""

REFUSALS = {
    401: "No token, or none that is in force; `WWW-Authenticate` says which.",
    403: "A token without the scope that this takes.",
    429: "Too many requests; `Retry-After` says in how many seconds the next is welcome.",
}
"""What each status means with which a caller is not let in; an open server has them too."""


class OpenServerError(ValueError):
    """A server that other machines reach and that anybody may use, and nobody said so."""


def check_host(host: str, *, has_tokens: bool, is_open: bool) -> None:
    """Raise `OpenServerError` unless `host` is this machine's own, or the server has tokens, or is meant to be open."""
    if not (has_tokens or is_open or is_loopback(host)):
        raise OpenServerError(
            f"Expected `--tokens FILE`, or `--open` to let in anybody, for an address that other machines reach, got `{host}`"
        )


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone. A name other than `localhost` is not looked up, and is not."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


class Access:
    """The check of every request. `tokens` None leaves the server open."""

    def __init__(self, tokens: TokenFile | None = None, limits: RequestLimits | None = None) -> None:
        self.tokens, self.limits = tokens, RequestLimits() if limits is None else limits
        config = self.limits.config
        self._rates: dict[str, RateLimit | None] = {scope: config.rate(scope) for scope in SCOPES}

    def __call__(self, scope: Scope, need: TokenScope) -> Grant:
        """Who asks. Raises `AuthError` when that one may not do `need`, `TooManyError` when it asks too often."""
        authorization: bytes | None = None
        for name, value in scope["headers"]:
            if name == b"authorization":
                if authorization is not None:
                    raise AuthError("malformed", "one `Authorization`", "several", need)
                authorization = value
        return self.admit(authorization, need, scope.get("client"))

    def admit(self, authorization: bytes | None, need: TokenScope, client: tuple[str, int] | None) -> Grant:
        """The same of one `Authorization` header that the caller has found, and ASGI's `client`."""
        if self.tokens is None:
            if need not in ANONYMOUS.scopes:
                raise AuthError("scope", f"a server with tokens for the scope `{need}`", "an open one", need)
            if (anonymous := self.limits.config.anonymous) is not None:
                self.limits(caller(client), anonymous)
            return ANONYMOUS
        grant = self.tokens.check(authorization, need)
        if (rate := grant.rate or self._rates[need]) is not None:
            self.limits((grant.id, need), rate)
        return grant

    def requires(self, need: TokenScope) -> Any:
        """A FastAPI dependency that lets in who may do `need`, and says so in the OpenAPI text."""
        return Depends(_open(self, need)) if self.tokens is None else Security(_Bearer(self, need), scopes=[need])

    def openapi_security(self, need: TokenScope) -> list[dict[str, list[str]]]:
        """The same for a route that FastAPI does not know: the `security` of its operation."""
        return [] if self.tokens is None else [{SECURITY_SCHEME: [need]}]


class _Bearer(SecurityBase):
    def __init__(self, access: Access, need: TokenScope) -> None:
        self.model = HTTPBearer(description="`prk_<id>_<secret>`, as `pocketrank token create` prints it.")
        self.scheme_name = SECURITY_SCHEME
        self._access, self._need = access, need

    async def __call__(self, request: HTTPConnection) -> Grant:
        return self._access(request.scope, self._need)


def _open(access: Access, need: TokenScope) -> Any:
    async def check(request: HTTPConnection) -> Grant:
        return access(request.scope, need)

    return check
