"""HTTP around the contract, for any web framework: MessagePack or JSON in and out, and one small JSON body for every error."""

from __future__ import annotations

from codecs import BOM_UTF8
from collections.abc import Mapping
from contextlib import suppress
from typing import NamedTuple, TypeVar

import msgspec

from pocketrank.device.codec import from_json, from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import ContractError, PageRequest, check_experiment
from pocketrank.pages.errors import WireError

__all__ = ["JSON", "MSGPACK", "Answer", "ErrorBody", "answer", "content_type", "error_answer", "prefers_msgpack", "read"]

MSGPACK = "application/msgpack"
JSON = "application/json"

BODY_MAX = 1 << 20
"""Largest body in bytes that `read` takes. The SDK's uploader sends batches of up to 256 KiB."""
SIZE_MAX = 500
"""Largest page that `read` lets a device ask for."""

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


class Answer(NamedTuple):
    """An answer to send. The order is that of Starlette's `Response(*answer)`."""

    body: bytes
    status: int
    headers: dict[str, str]


def read(struct: type[S], headers: Mapping[str, str], body: bytes, *, size_max: int = SIZE_MAX, bytes_max: int = BODY_MAX) -> S:
    """Return the `PageRequest` or `FeedbackBatch` in the body of a request, JSON or MessagePack as its headers say.

    `headers` may have names in any case. A page request has a `size` of 1 to `size_max`. Raises `WireError` for another content
    type and for a body above `bytes_max`, and `ContractError` for a body that the contract does not allow.
    """
    if (encoding := _header(headers, "content-encoding")) not in (None, "identity"):
        raise WireError(415, "content-encoding", "a body that is not encoded", f"`{encoding[:64]}`")
    kind = _header(headers, "content-type")
    kind = content_type(None if kind is None else kind.encode("latin-1", "replace"))
    if len(body) > bytes_max:
        raise WireError(413, "$", f"at most {bytes_max} bytes", f"{len(body)} bytes")
    # JSON may begin with a mark of UTF-8, as editors save it.
    value = from_json(body.removeprefix(BOM_UTF8), struct) if kind == JSON else from_msgpack(body, struct)
    if isinstance(value, PageRequest):
        if not 1 <= value.size <= size_max:
            raise ContractError("$.size", f"1 to {size_max} candidates", str(value.size))
        check_experiment(value.experiment, "$.experiment")
    return value


def answer(struct: msgspec.Struct, headers: Mapping[str, str]) -> Answer:
    """Return the answer with `struct`, a page or a receipt, for a request with these headers: MessagePack where `Accept` names
    it, as devices do, else JSON.
    """
    accept = _header(headers, "accept")
    if prefers_msgpack(None if accept is None else accept.encode("latin-1", "replace")):
        return Answer(to_msgpack(struct), 200, {"Content-Type": MSGPACK})
    return Answer(to_json(struct), 200, {"Content-Type": JSON})


def error_answer(error: Exception) -> Answer:
    """Return the answer to an error: 400 to what the contract does not allow, the status of a `WireError`, and 500 to any
    other, without a detail of it. Its body is an `ErrorBody`.
    """
    status, headers = 500, {"Content-Type": JSON}
    body = ErrorBody(error="Internal error.", path="$", expected="an answer", got=type(error).__name__)
    if isinstance(error, WireError | ContractError):
        body = ErrorBody(error=str(error), path=error.path, expected=error.expected, got=error.got)
        status = error.status if isinstance(error, WireError) else 400
        headers |= error.headers if isinstance(error, WireError) else {}
    return Answer(msgspec.json.encode(body), status, headers)


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


def prefers_msgpack(accept: bytes | None) -> bool:
    """Return whether the header `Accept` names MessagePack with a weight not below that of JSON, or rules out JSON (RFC 9110,
    12.5.1).
    """
    if not accept or accept == _MSGPACK_BYTES:  # what devices send
        return bool(accept)
    weights: dict[str, float] = {}
    for part in accept.decode("latin-1").lower().split(","):
        name, *parameters = (one.strip() for one in part.split(";"))
        weight = next((one.partition("=")[2].strip() for one in parameters if one.partition("=")[0].strip() == "q"), "1")
        with suppress(ValueError):
            weights[name] = max(weights.get(name, 0.0), float(weight))
    any_kind = next((weights[name] for name in ("application/*", "*/*") if name in weights), 0.0)
    named = [weights[name] for name in _MSGPACK_NAMES if name in weights]
    msgpack, json = max(named, default=any_kind), weights.get(JSON, any_kind)
    return msgpack > 0.0 and msgpack >= json and (bool(named) or json == 0.0)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)
