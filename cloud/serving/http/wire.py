"""HTTP around the contract: MessagePack or JSON in and out, and every error as the same small JSON.

Errors::

    WireError                  a request that HTTP already refuses; knows its status
                               413 too large, 415 another content type or encoding, 408 too slow, 404 not here, 405 not so
    ├── AuthError              401, 403: no token that allows it (`tokens`)
    ├── TooManyError           429: faster than allowed (`limits`)
    ├── BusyError              429: too many pages wait (`line`)
    └── BundleStoreError       400, 409, 503, 507: a bundle that is not taken (`bundle_publish`)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pocketrank.cloud.streams.feedback_log import FeedbackLogError
from pocketrank.device.codec import from_json, from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import ContractError

__all__ = [
    "JSON", "MSGPACK", "ErrorAnswer", "ErrorBody", "WireError",
    "content_type", "decode", "encode", "error_answer", "error_response",
]  # fmt: skip

MSGPACK = "application/msgpack"
JSON = "application/json"

_MSGPACK_BYTES, _JSON_BYTES = MSGPACK.encode(), JSON.encode()
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


def content_type(header: bytes | None) -> str:
    """`MSGPACK` or `JSON`, as the header `Content-Type` says; nothing said is MessagePack. Raises `WireError` for another."""
    if header is None or header == _MSGPACK_BYTES:  # HTTP leaves it to the reader what nothing means
        return MSGPACK
    full = header.decode("latin-1")
    name = full.partition(";")[0].strip().lower()
    if name in _MSGPACK_NAMES:
        return MSGPACK
    if name == JSON:
        return JSON
    raise WireError(415, "content-type", f"`{MSGPACK}` or `{JSON}`", f"`{full[:64]}`")


def decode(kind: str, body: bytes, struct: type[S]) -> S:
    """The struct in `body`, whose `content_type` is `kind`. Raises `ContractError`."""
    return (from_json if kind == JSON else from_msgpack)(body, struct)


def encode(accept: bytes | None, struct: msgspec.Struct) -> tuple[str, bytes]:
    """`struct` as the body of an answer and its content type: JSON when `Accept` has JSON by name, else MessagePack."""
    if accept is not None and _JSON_BYTES in accept:
        return JSON, to_json(struct)
    return MSGPACK, to_msgpack(struct)


class ErrorAnswer(NamedTuple):
    """The answer to an error."""

    status: int
    headers: dict[str, str]
    body: bytes
    """An `ErrorBody` as JSON."""


def error_answer(error: BaseException, method: str, path: str) -> ErrorAnswer:
    """The answer to any error: 400 contract, 404 / 405 routing, `WireError`'s own, 503 log, 500 what nobody foresaw."""
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
            what = f"{method} {path[:200]}"
            body = ErrorBody(error=str(error.detail), path="url", expected="a route of /openapi.json", got=what)
        case ClientDisconnect():
            status = 400  # nobody reads it
            body = ErrorBody(error="The client went away.", path="$", expected="a whole body", got="a part of it")
        case _:
            status = 500
            body = ErrorBody(error="Internal error.", path="$", expected="an answer", got=type(error).__name__)
    return ErrorAnswer(status, headers, msgspec.json.encode(body))


async def error_response(request: Request, error: Exception) -> Response:
    """`error_answer` for routes of FastAPI."""
    status, headers, body = error_answer(error, request.method, request.url.path)
    return Response(body, status, headers, media_type=JSON)


def _body(error: WireError | ContractError, path: str) -> ErrorBody:
    return ErrorBody(error=str(error), path=path, expected=error.expected, got=error.got)
