"""HTTP around the contract, for any web framework: MessagePack or JSON in and out, and one small JSON body for every error."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
from msgspec import UNSET, structs

from pocketrank.device.codec import from_json, from_msgpack, to_json, to_msgpack
from pocketrank.device.contract import (
    ContractError,
    DecodeError,
    FeedbackBatch,
    FeedbackEvent,
    PageRequest,
    as_code,
    check_experiment,
)
from pocketrank.pages.errors import WireError

__all__ = ["JSON", "MSGPACK", "Answer", "ErrorBody", "answer", "content_type", "error_answer", "prefers_msgpack", "read"]

MSGPACK = "application/msgpack"
JSON = "application/json"

BODY_MAX = 1 << 20
"""Largest body in bytes that `read` takes. The SDK's uploader sends batches of up to 256 KiB."""
SIZE_MAX = 500
"""Largest page that `read` lets a device ask for."""

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")
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


def read(
    struct: type[S],
    headers: Mapping[str, str],
    body: bytes,
    *,
    text_ids: bool = False,
    size_max: int = SIZE_MAX,
    bytes_max: int = BODY_MAX,
) -> S:
    """Return the `PageRequest` or `FeedbackBatch` in the body of a request, JSON or MessagePack as its headers say.

    `headers` may have names in any case. The ids of users and items in the result are codes. With `text_ids`, own ids are
    texts: a text gets its code, which `Ids` gives back, and so does a number in JSON, unless `own_ids` is false. Without, a
    text must be the decimal form of a number. A page request has a `size` of 1 to `size_max`. Raises `WireError` for another
    content type and for a body above `bytes_max`, and `ContractError` for a body that the contract does not allow.
    """
    if (encoding := _header(headers, "content-encoding")) not in (None, "identity"):
        raise WireError(415, "content-encoding", "a body that is not encoded", f"`{encoding[:64]}`")
    kind = _header(headers, "content-type")
    kind = content_type(None if kind is None else kind.encode("latin-1", "replace"))
    if len(body) > bytes_max:
        raise WireError(413, "$", f"at most {bytes_max} bytes", f"{len(body)} bytes")
    # JSON may begin with a mark of UTF-8, as editors save it.
    decode, body = (from_json, body.removeprefix(BOM_UTF8)) if kind == JSON else (from_msgpack, body)
    value: Any
    try:
        value = decode(body, struct)
    except DecodeError as error:  # devices send codes, so texts are only looked for where one stands
        if error.got != "`str`" or struct not in _WITH_TEXTS:
            raise
        value = decode(body, _WITH_TEXTS[struct])
    if type(value) is not struct or (text_ids and kind == JSON):
        value = _coded(value, text_ids, kind)
    if isinstance(value, PageRequest):
        if value.own_ids is UNSET and _answer_type(headers) == MSGPACK:
            value = structs.replace(value, own_ids=False)  # as the contract has it, for `make_page`
        if not 1 <= value.size <= size_max:
            raise ContractError("$.size", f"1 to {size_max} candidates", str(value.size))
        check_experiment(value.experiment, "$.experiment")
    return cast(S, value)


def answer(struct: msgspec.Struct, headers: Mapping[str, str]) -> Answer:
    """Return the answer with `struct`, a page or a receipt, for a request with these headers: MessagePack where `Accept` names
    it, as devices do, else JSON.
    """
    kind = _answer_type(headers)
    return Answer(to_msgpack(struct) if kind == MSGPACK else to_json(struct), 200, {"Content-Type": kind})


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


def _answer_type(headers: Mapping[str, str]) -> str:
    accept = _header(headers, "accept")
    return MSGPACK if prefers_msgpack(None if accept is None else accept.encode("latin-1", "replace")) else JSON


class _TextEvent(FeedbackEvent, frozen=True, kw_only=True):
    """An event whose ids may be texts."""

    user_id: int | str  # type: ignore[assignment]
    item_id: int | str  # type: ignore[assignment]


class _TextRequest(PageRequest, frozen=True, kw_only=True):
    """A page request whose ids may be texts."""

    user_id: int | str  # type: ignore[assignment]
    exclude: tuple[int | str, ...] = ()  # type: ignore[assignment]
    feedback: tuple[_TextEvent, ...] = ()


class _TextBatch(FeedbackBatch, frozen=True, kw_only=True):
    """A batch whose ids may be texts."""

    events: tuple[_TextEvent, ...]


_WITH_TEXTS: dict[type[msgspec.Struct], type[msgspec.Struct]] = {PageRequest: _TextRequest, FeedbackBatch: _TextBatch}


def _coded(read: Any, text_ids: bool, kind: str) -> PageRequest | FeedbackBatch:
    """Return a request with the codes of all ids."""

    def code(id: int | str, path: str) -> int:
        if text_ids:
            is_own = isinstance(id, str) or (kind == JSON and read.own_ids is not False)
            return as_code(str(id) if is_own else id, path)
        if isinstance(id, str) and not (_NUMBER.fullmatch(id) and -(1 << 63) <= int(id) < 1 << 63):
            raise DecodeError(path, "a whole number of 64 signed bits", f"`{id[:60]}`")
        return int(id)

    def events(path: str, found: Sequence[Any]) -> tuple[FeedbackEvent, ...]:
        return tuple(
            _plain(
                FeedbackEvent,
                one,
                user_id=code(one.user_id, f"{path}[{i}].user_id"),
                item_id=code(one.item_id, f"{path}[{i}].item_id"),
            )
            for i, one in enumerate(found)
        )

    if isinstance(read, FeedbackBatch):
        return _plain(FeedbackBatch, read, events=events("$.events", read.events))
    exclude = tuple(code(item, f"$.exclude[{i}]") for i, item in enumerate(read.exclude))
    user_id = code(read.user_id, "$.user_id")
    return _plain(PageRequest, read, user_id=user_id, exclude=exclude, feedback=events("$.feedback", read.feedback))


def _plain(struct: type[S], read: msgspec.Struct, **changes: Any) -> S:
    return struct(**{name: getattr(read, name) for name in struct.__struct_fields__} | changes)


def _header(headers: Mapping[str, str], name: str) -> str | None:
    return next((value for key, value in headers.items() if key.lower() == name), None)
