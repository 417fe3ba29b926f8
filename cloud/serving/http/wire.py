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
from typing import TypeVar

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from pocketrank.cloud.streams.feedback_log import FeedbackLogError
from pocketrank.device.codec import from_json, from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import ContractError
from pocketrank.pages.errors import WireError
from pocketrank.pages.http import JSON, MSGPACK, ErrorBody, content_type, prefers_msgpack

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

S = TypeVar("S", bound=msgspec.Struct)


class SlowBodyError(WireError):
    """A body that did not arrive in time. Its connection is closed, because the rest of it would be waited for."""

    def __init__(self, expected: str, got: str) -> None:
        super().__init__(408, "$", expected, got, {"Connection": "close"})


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
    return MSGPACK if prefers_msgpack(accept) else JSON


def encode(kind: str, struct: msgspec.Struct) -> bytes:
    """Return the body of an answer whose `answer_type` is `kind`."""
    return to_msgpack(struct) if kind == MSGPACK else to_json(struct)


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
