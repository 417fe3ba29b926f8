"""Which web pages may call the server from a browser (Starlette's CORS middleware)."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

__all__ = ["CorsConfig", "CorsError", "with_cors"]

_REQUEST_HEADERS = ("Authorization", "Content-Type", "If-None-Match", "If-Range", "Range", "X-Request-Id", "traceparent")
_ANSWER_HEADERS = ("Accept-Ranges", "Content-Range", "ETag", "Retry-After", "WWW-Authenticate", "X-Request-Id")


class CorsError(ValueError):
    """An origin that no browser would send. The message contains it."""


@dataclass(frozen=True)
class CorsConfig:
    """Origins that may call from a browser. Raises `CorsError`."""

    origins: tuple[str, ...] = ()
    """Origins like `https://app.example` or `https://app.example:8443`; `*` for every page. Browsers send no
    cookie and no password to the server, so a page needs a token in any case."""
    max_age_s: int = 600
    """How long a browser may cache the permission, in seconds."""

    def __post_init__(self) -> None:
        for origin in self.origins:
            if origin != "*" and origin != _origin(origin):
                raise CorsError(f"Expected an origin like `https://app.example` or `*`, got `{origin[:200]}`")


def with_cors(app: ASGIApp, config: CorsConfig) -> ASGIApp:
    """Return `app` for these origins, or `app` itself when there are none.

    It must be outermost: a browser shows a page no 401 without these headers, and asks for permission without a token.
    """
    if not config.origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=config.origins,
        allow_methods=("GET", "HEAD", "POST"),
        allow_headers=_REQUEST_HEADERS,
        expose_headers=_ANSWER_HEADERS,
        max_age=config.max_age_s,
    )


def _origin(text: str) -> str | None:
    try:
        url = urlsplit(text)
        port = "" if url.port is None else f":{url.port}"
    except ValueError:
        return None
    host = url.hostname if url.hostname and ":" not in url.hostname else f"[{url.hostname}]"
    return f"{url.scheme}://{host}{port}" if url.scheme in ("http", "https") and url.hostname and "*" not in host else None
