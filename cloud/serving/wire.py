"""HTTP around the contract: bodies with a limit, MessagePack or JSON in and out, and every error as the same small JSON.

Errors::

    WireError                  a request that HTTP already refuses; knows its status
                               413 too large, 415 another content type or encoding, 404 not here
    ├── AuthError              401, 403: no token that allows it (`tokens`)
    ├── TooManyError           429: faster than allowed (`limits`)
    └── BundleStoreError       400, 409, 503, 507: a bundle that is not taken (`bundle_publish`)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from cloud.streams.feedback_log import FeedbackLogError
from device.codec import from_json, from_msgpack, to_json, to_msgpack
from device.contract import ContractError

__all__ = ["JSON", "MSGPACK", "ErrorBody", "WireError", "decode", "encode", "error_response", "read_body"]

MSGPACK = "application/msgpack"
JSON = "application/json"

_MSGPACK_NAMES = (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")

S = TypeVar("S", bound=msgspec.Struct)


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every answer that is not a success, always JSON."""

    error: str
    """One sentence."""
    path: str
    """Where in the request: `$.size` in the body, or the name of a header or of the URL's path."""
    expected: str
    """What would have been right."""
    got: str
    """What came."""


class WireError(ValueError):
    """A request that HTTP already refuses. `status` and `headers` are the answer's."""

    def __init__(self, status: int, path: str, expected: str, got: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"Expected {expected}, got {got} - at `{path}`")
        self.status, self.path, self.expected, self.got, self.headers = status, path, expected, got, headers or {}


async def read_body(request: Request, limit: int) -> bytes:
    """The body, refused with `WireError` before it is read when it says it is longer than `limit` bytes, else while it is."""
    encoding = request.headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise WireError(415, "content-encoding", "`identity`", f"`{encoding[:64]}`")
    _content_type(request)
    said = request.headers.get("content-length", "0")
    if said.isdecimal() and int(said) > limit:
        raise WireError(413, "content-length", f"at most {limit} bytes", f"{said} bytes")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise WireError(413, "$", f"at most {limit} bytes", "more")
    return bytes(body)


def decode(request: Request, body: bytes, struct: type[S]) -> S:
    """The struct in `body`, JSON when the content type says so. Raises `ContractError`."""
    return (from_json if _content_type(request) == JSON else from_msgpack)(body, struct)


def encode(request: Request, struct: msgspec.Struct) -> Response:
    """`struct` as the answer: JSON when the request accepts JSON by name, else MessagePack."""
    if JSON in request.headers.get("accept", ""):
        return Response(to_json(struct), media_type=JSON)
    return Response(to_msgpack(struct), media_type=MSGPACK)


async def error_response(request: Request, error: Exception) -> Response:
    """The answer to any error: 400 contract, 404 / 405 routing, 413 and 415 wire, 503 log, 500 what nobody foresaw."""
    headers: dict[str, str] = {}
    match error:
        case WireError():
            status, headers, body = error.status, dict(error.headers), _body(error, error.path)
        case ContractError():
            status, body = 400, _body(error, error.path)
        case FeedbackLogError():
            # Not the log's path: that is the operator's business. The whole batch may be sent again.
            status, headers = 503, {"Retry-After": "1"}
            body = ErrorBody(
                error="The feedback could not be kept; send it again.", path="$", expected=error.expected, got=error.got
            )
        case HTTPException():
            status, headers = error.status_code, dict(error.headers or {})
            what = f"{request.method} {request.url.path[:200]}"
            body = ErrorBody(error=str(error.detail), path="url", expected="a route of /openapi.json", got=what)
        case ClientDisconnect():
            status = 400  # nobody reads it
            body = ErrorBody(error="The client went away.", path="$", expected="a whole body", got="a part of it")
        case _:
            status = 500
            body = ErrorBody(error="Internal error.", path="$", expected="an answer", got=type(error).__name__)
    return Response(msgspec.json.encode(body), status, headers, media_type=JSON)


def _body(error: WireError | ContractError, path: str) -> ErrorBody:
    return ErrorBody(error=str(error), path=path, expected=error.expected, got=error.got)


def _content_type(request: Request) -> str:
    # Nothing said is taken for the default, as HTTP leaves it to the reader.
    full = request.headers.get("content-type", MSGPACK)
    name = full.partition(";")[0].strip().lower()
    if name in _MSGPACK_NAMES:
        return MSGPACK
    if name == JSON:
        return JSON
    raise WireError(415, "content-type", f"`{MSGPACK}` or `{JSON}`", f"`{full[:64]}`")
