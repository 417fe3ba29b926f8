"""Encoding of structs as bytes and back, and the check that a page is whole.

Devices and the cloud exchange MessagePack; JSON is for people. In MessagePack a block's data MUST be `bin`; in JSON it MUST be
a flat list of numbers, where null stands for every value that is not finite. Decoding either form returns the same struct,
whose blocks hold bytes. Integers MUST fit 64 signed bits. Decoding raises the typed errors of `contract` and nothing else,
whatever the bytes are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from operator import attrgetter
from threading import Lock
from typing import Any, NamedTuple, TypeVar, cast

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank.device.blocks import MAX_ELEMENTS, from_block, shorten, to_block
from pocketrank.device.contract import (
    WIRE_VERSION,
    Block,
    BlockError,
    Columns,
    DecodeError,
    Dtype,
    FeedbackBatch,
    FeedbackEvent,
    Page,
    PageRequest,
    TelemetryReport,
    TextBlock,
    Versioned,
    VersionError,
)

__all__ = [
    "MAX_ELEMENTS",
    "PageColumns",
    "from_block",
    "from_columns",
    "from_json",
    "from_msgpack",
    "read_page",
    "to_block",
    "to_json",
    "to_msgpack",
]

S = TypeVar("S", bound=msgspec.Struct)

_INT_MIN, _INT_MAX = -(1 << 63), (1 << 63) - 1
_WHERE = re.compile(r"^(?P<what>.*?)(?: - at (?:`key` in )?`(?P<path>.*)`)?$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected (?P<expected>.*), got (?P<got>.*)$", re.DOTALL)
_MISSING = re.compile(r"^Object missing required field `(?P<field>.*)`$")
_DECODER_LOCK = Lock()
_ENCODE_MSGPACK = msgspec.msgpack.Encoder()
_ENCODE_JSON = msgspec.json.Encoder()
_EVENT_INTS = ("user_id", "item_id", "position", "impression_ms", "watch_ms", "pauses", "seeks", "buffering_ms")
_event_ints = attrgetter(*_EVENT_INTS)
_INTS: dict[type[msgspec.Struct], tuple[str, ...]] = {
    FeedbackEvent: _EVENT_INTS,
    Page: ("created_ms", "ttl_ms"),
    PageRequest: ("user_id", "now_ms", "size", "scene"),
    TelemetryReport: ("since_ms", "until_ms"),
}


@cache
def _decoder(wire: str, struct: type[Any]) -> Callable[[bytes], Any]:
    kind = msgspec.msgpack.Decoder if wire == "msgpack" else msgspec.json.Decoder
    # One at a time: msgspec 0.22 publishes what it derives from a type before it is complete, and a thread that decodes
    # by the incomplete half crashes the process.
    with _DECODER_LOCK:
        return kind(struct).decode


# --------------------------------------------------------------------------------------------------------------- structs


def to_msgpack(struct: msgspec.Struct) -> bytes:
    """Return `struct` as MessagePack. Raises `DecodeError` for a value that cannot be written, such as a 65-bit integer."""
    return _encode(_ENCODE_MSGPACK, struct)


def to_json(struct: msgspec.Struct) -> bytes:
    """Return `struct` as JSON with a page's blocks as flat lists of numbers, null for NaN and infinities, and with its own ids
    of items, if it has them, in place of their codes.

    Raises `BlockError` for a block that is not whole, `DecodeError` for a value that cannot be written.
    """
    if isinstance(struct, Page):
        keys = struct.candidates.item_key
        struct = _map_blocks(struct, _to_numbers)
        if keys is not msgspec.UNSET:
            texts: Any = TextBlock(shape=(len(keys),), data=keys)
            struct = replace(struct, candidates=replace(struct.candidates, item_id=texts, item_key=msgspec.UNSET))
    return _encode(_ENCODE_JSON, struct)


def _encode(encoder: msgspec.msgpack.Encoder | msgspec.json.Encoder, struct: msgspec.Struct) -> bytes:
    try:
        return encoder.encode(struct)
    except (OverflowError, TypeError, ValueError) as err:
        raise DecodeError("$", f"a {type(struct).__name__} that can be written", str(err)) from None


def from_msgpack(data: bytes, type: type[S]) -> S:
    """Return the struct in `data`. Raises `VersionError` for an unknown version, `DecodeError` for any other defect.

    The contents of a page's blocks are checked by `from_block` or `read_page`, not here.
    """
    struct = _decode("msgpack", data, type)
    if isinstance(struct, Page):
        _map_blocks(struct, _check_bytes)
    return struct


def from_json(data: bytes, type: type[S]) -> S:
    """Return the struct in `data`, with its blocks as bytes. Raises `VersionError`, `DecodeError` or `BlockError`."""
    struct = _decode("json", data, type)
    return cast(S, _map_blocks(struct, _to_bytes)) if isinstance(struct, Page) else struct


def _decode(wire: str, data: bytes, struct: type[S]) -> S:
    decode = cast(Callable[[bytes], S], _decoder(wire, struct))
    try:
        value = decode(data)
    except (ValueError, RecursionError) as err:  # msgspec's own errors are ValueErrors; so is bad UTF-8
        _refuse_version(_peek(wire, data), "$.version")
        raise _translate(err, struct.__name__) from None
    _refuse_version(getattr(value, "version", WIRE_VERSION), "$.version")
    _check_ints(value, _ints(struct), "$")
    if isinstance(value, PageRequest):
        if value.feedback:
            _check_events(value.feedback, "$.feedback")
        if value.exclude and not _fit(value.exclude):
            for i, item in enumerate(value.exclude):
                _check_int(item, f"$.exclude[{i}]")
    elif isinstance(value, FeedbackBatch):
        _check_events(value.events, "$.events")
    return value


def _peek(wire: str, data: bytes) -> int:
    try:
        return cast(int, _decoder(wire, Versioned)(data).version)
    except (ValueError, RecursionError):
        return WIRE_VERSION


def _refuse_version(version: int, path: str) -> None:
    if version != WIRE_VERSION:
        raise VersionError(path, f"version {WIRE_VERSION}", f"version {version}")


def _check_events(events: tuple[FeedbackEvent, ...], path: str) -> None:
    ints = [value for event in events for value in _event_ints(event) if value is not None]
    if (not ints or _fit(ints)) and all(event.version == WIRE_VERSION for event in events):
        return
    for i, event in enumerate(events):
        _refuse_version(event.version, f"{path}[{i}].version")
        _check_ints(event, _EVENT_INTS, f"{path}[{i}]")


def _fit(ints: Sequence[int]) -> bool:
    """Return whether all of one or more numbers have 64 bits. False where a server's own struct has texts among them."""
    try:
        return _INT_MIN <= min(ints) <= max(ints) <= _INT_MAX
    except TypeError:
        return False


@cache
def _ints(struct: type[msgspec.Struct]) -> tuple[str, ...]:
    return next((names for known, names in _INTS.items() if issubclass(struct, known)), ())


def _check_ints(struct: msgspec.Struct, names: tuple[str, ...], path: str) -> None:
    for name in names:
        value = getattr(struct, name)
        if type(value) is int and not _INT_MIN <= value <= _INT_MAX:
            _check_int(value, f"{path}.{name}")  # this runs at every swipe, so the path is only formatted for an error


def _check_int(value: object, path: str) -> None:
    # JSON allows any integer and MessagePack unsigned 64 bits; columns, stores and other languages hold signed 64.
    if isinstance(value, int) and not _INT_MIN <= value <= _INT_MAX:
        raise DecodeError(path, "an integer of 64 signed bits", shorten(value))


def _translate(err: Exception, name: str) -> DecodeError:
    found = _WHERE.match(str(err))
    what, path = (found["what"], found["path"] or "$") if found else (str(err), "$")
    if pair := _EXPECTED.match(what):
        return DecodeError(path, pair["expected"], pair["got"])
    if missing := _MISSING.match(what):
        return DecodeError(f"{path}.{missing['field']}", "a value", "nothing")
    return DecodeError(path, f"a {name}", what or type(err).__name__)


# ----------------------------------------------------------------------------------------------------------------- pages


class PageColumns(NamedTuple):
    """Arrays of a page with n candidates, F floats, C categories and vectors of width D. All are read-only views."""

    item_id: NDArray[np.int64]
    """[n]"""
    floats: NDArray[np.float32]
    """[n, F], columns named by `page.candidates.floats.names`"""
    categories: NDArray[np.int32]
    """[n, C]"""
    vector: NDArray[np.float16] | None
    """[n, D]"""
    user_vector: NDArray[np.float16] | None
    """[D]"""


def from_columns(columns: Columns, path: str, *, dtype: Dtype, rows: int) -> NDArray[Any]:
    """Return the array [rows, len(names)] of a column group.

    Raises `BlockError` for names that repeat, and for another width or number of rows.
    """
    if len(set(columns.names)) != len(columns.names):
        twice = next(name for name in columns.names if columns.names.count(name) > 1)
        raise BlockError(f"{path}.names", "unique names", f"{shorten(twice)} twice")
    values = from_block(columns.values, f"{path}.values", dtype=dtype, ndim=2)
    if values.shape != (rows, len(columns.names)):
        raise BlockError(f"{path}.values.shape", f"[{rows}, {len(columns.names)}]", shorten(list(values.shape)))
    return values


def read_page(page: Page) -> PageColumns:
    """Return all arrays of a page that is whole. Raises `BlockError` for the first defect.

    A page is whole when every block agrees with its dtype and shape, every group has one row per candidate and one column per
    name, names are unique within a group, both vectors have the same width, and a page with vectors has a split version.
    Duplicate items and NaN values are allowed.
    """
    c = page.candidates
    item_id = from_block(c.item_id, "$.candidates.item_id", dtype="i8", ndim=1)
    rows = len(item_id)
    if c.item_key is not msgspec.UNSET and len(c.item_key) != rows:
        raise BlockError("$.candidates.item_key", f"{rows} texts", f"{len(c.item_key)} texts")
    floats = from_columns(c.floats, "$.candidates.floats", dtype="f4", rows=rows)
    categories = from_columns(c.categories, "$.candidates.categories", dtype="i4", rows=rows)
    vector = None if c.vector is None else from_block(c.vector, "$.candidates.vector", dtype="f2", ndim=2)
    user = None if page.user_vector is None else from_block(page.user_vector, "$.user_vector", dtype="f2", ndim=1)
    if vector is not None and len(vector) != rows:
        raise BlockError("$.candidates.vector.shape", f"{rows} rows", f"{len(vector)} rows")
    if vector is not None and user is not None and vector.shape[1] != len(user):
        raise BlockError("$.user_vector.shape", f"[{vector.shape[1]}]", f"[{len(user)}]")
    if (vector is not None or user is not None) and page.split_version is None:
        raise BlockError("$.split_version", "the version of the page's vectors", "nothing")
    return PageColumns(item_id, floats, categories, vector, user)


def _map_blocks(page: Page, change: Callable[[Block, str], Block]) -> Page:
    c, user = page.candidates, page.user_vector
    candidates = replace(
        c,
        item_id=change(c.item_id, "$.candidates.item_id"),
        floats=Columns(names=c.floats.names, values=change(c.floats.values, "$.candidates.floats.values")),
        categories=Columns(names=c.categories.names, values=change(c.categories.values, "$.candidates.categories.values")),
        vector=None if c.vector is None else change(c.vector, "$.candidates.vector"),
    )
    user = None if user is None else change(user, "$.user_vector")
    return replace(page, candidates=candidates, user_vector=user)


def _check_bytes(block: Block, path: str) -> Block:
    if not isinstance(block.data, bytes):
        raise DecodeError(f"{path}.data", "`bytes`", "`array`")
    return block


def _to_numbers(block: Block, path: str) -> Block:
    # msgspec writes NaN and infinities as null, so the list needs no pass of its own.
    return Block(dtype=block.dtype, shape=block.shape, data=from_block(block, path).ravel().tolist())


def _to_bytes(block: Block, path: str) -> Block:
    if isinstance(block.data, bytes):  # a JSON string, which msgspec reads as base64
        raise DecodeError(f"{path}.data", "`array`", "`str`")
    return Block(dtype=block.dtype, shape=block.shape, data=from_block(block, path).tobytes())
