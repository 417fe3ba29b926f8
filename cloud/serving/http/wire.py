"""HTTP around the contract: MessagePack or JSON in and out, and one small JSON body for every error.

Errors::

    WireError                  a request that is refused before the contract is looked at; has the answer's status
                               404 no such resource, 405 method, 413 too large, 415 content type or encoding
    ├── SlowBodyError          408: a body that did not arrive in time
    ├── AuthError              401, 403: no token that allows the request (`access.tokens`)
    ├── TooManyError           429: more requests than allowed (`access.limits`)
    ├── BusyError              429: too many pages wait (`load.page_queue`)
    └── BundleStoreError       400, 409, 503, 507: a bundle that is refused (`bundles.publish`)
"""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping
from contextlib import suppress
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pocketrank.cloud.streams.feedback_log import FeedbackLogError
from pocketrank.device.codec import from_json, from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import ContractError

__all__ = [
    "JSON",
    "MSGPACK",
    "ErrorBody",
    "SlowBodyError",
    "WireError",
    "answer_type",
    "content_type",
    "decode",
    "encode",
    "error_answer",
    "error_response",
]

MSGPACK = "application/msgpack"
JSON = "application/json"

_MSGPACK_BYTES = MSGPACK.encode()
_MSGPACK_NAMES = (MSGPACK, "application/x-msgpack", "application/vnd.msgpack")

S = TypeVar("S", bound=msgspec.Struct)


class ErrorBody(msgspec.Struct, frozen=True, kw_only=True):
    """Body of every answer that is not a success, always JSON."""

    error: str
    """One sentence."""
    path: str
    """Where in the request: `$.size` in the body, the name of a header, or `url`."""
    expected: str
    """The value or kind that the server expected there."""
    got: str
    """The value or kind that it found."""


class WireError(ValueError):
    """A request that is refused before the contract is looked at. `status` and `headers` are the answer's."""

    def __init__(self, status: int, path: str, expected: str, got: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"Expected {expected}, got {got} - at `{path}`")
        self.status, self.path, self.expected, self.got, self.headers = status, path, expected, got, headers or {}


class SlowBodyError(WireError):
    """A body that did not arrive in time. Its connection is closed, because the rest of it would be waited for."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(408, "$", expected, got, {"Connection": "close"})


def content_type(header: bytes | None) -> str:
    """Return `MSGPACK` or `JSON`, as the header `Content-Type` says. Without the header it is MessagePack.

    Raises `WireError` (415) for another type.
    """
    if header is None or header == _MSGPACK_BYTES:
        return MSGPACK
    full = header.decode("latin-1")
    name = full.partition(";")[0].strip().lower()
    if name in _MSGPACK_NAMES:
        return MSGPACK
    if name == JSON:
        return JSON
    raise WireError(415, "content-type", f"`{MSGPACK}` or `{JSON}`", f"`{full[:64]}`")


def decode(kind: str, body: bytes, struct: type[S]) -> S:
    """Return the struct in `body`, whose `content_type` is `kind`. JSON may begin with a mark of UTF-8, as editors save it.

    Raises `ContractError`.
    """
    return from_json(body.removeprefix(BOM_UTF8), struct) if kind == JSON else from_msgpack(body, struct)


def answer_type(accept: bytes | None) -> str:
    """Return the content type of an answer: `MSGPACK` when `Accept` names it and prefers it to JSON, else `JSON`.

    Devices name MessagePack. People with curl get what they can read, and so does whoever accepts neither. Whoever rules out
    JSON alone gets MessagePack, too.
    """
    if accept == _MSGPACK_BYTES or (accept and _prefers_msgpack(accept.decode("latin-1"))):  # the first is what devices send
        return MSGPACK
    return JSON


def encode(kind: str, struct: msgspec.Struct) -> bytes:
    """Return the body of an answer whose `answer_type` is `kind`."""
    return to_msgpack(struct) if kind == MSGPACK else to_json(struct)


def _prefers_msgpack(accept: str) -> bool:
    """Whether MessagePack is accepted, and either named with a weight not below that of JSON, or JSON is ruled out (RFC 9110,
    12.5.1)."""
    weights: dict[str, float] = {}
    for part in accept.lower().split(","):
        name, *parameters = (one.strip() for one in part.split(";"))
        weight = next((one.partition("=")[2].strip() for one in parameters if one.partition("=")[0].strip() == "q"), "1")
        with suppress(ValueError):
            weights[name] = max(weights.get(name, 0.0), float(weight))
    any_kind = next((weights[name] for name in ("application/*", "*/*") if name in weights), 0.0)
    named = [weights[name] for name in _MSGPACK_NAMES if name in weights]
    msgpack, json = max(named, default=any_kind), weights.get(JSON, any_kind)
    return msgpack > 0.0 and msgpack >= json and (bool(named) or json == 0.0)


def error_answer(error: Exception, method: str, path: str) -> Response:
    """Return the answer to any error of a request, with an `ErrorBody` as JSON."""
    headers: Mapping[str, str] = {}
    match error:
        case WireError() | ContractError():
            status, headers = (error.status, error.headers) if isinstance(error, WireError) else (400, headers)
            body = ErrorBody(error=str(error), path=error.path, expected=error.expected, got=error.got)
        case FeedbackLogError():
            # Without the path of the log, which is the operator's business. The client may send the whole batch again.
            status, headers = 503, {"Retry-After": "1"}
            body = ErrorBody(
                error="The feedback could not be stored; send it again.", path="$", expected=error.expected, got=error.got
            )
        case HTTPException():  # no such route or method
            status, headers = error.status_code, error.headers or {}
            got = f"{method} {path[:200]}"
            body = ErrorBody(error=str(error.detail), path="url", expected="a route of /openapi.json", got=got)
        case ClientDisconnect():  # nobody reads the answer
            status = 400
            body = ErrorBody(error="The client disconnected.", path="$", expected="a whole body", got="a part of it")
        case _:
            status = 500
            body = ErrorBody(error="Internal error.", path="$", expected="an answer", got=type(error).__name__)
    return Response(msgspec.json.encode(body), status, headers, media_type=JSON)


async def error_response(request: Request, error: Exception) -> Response:
    """Return the `error_answer` as FastAPI's exception handlers return it."""
    return error_answer(error, request.method, request.url.path)
