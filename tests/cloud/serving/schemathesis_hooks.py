"""MessagePack for schemathesis: `SCHEMATHESIS_HOOKS` names this module."""

import base64
from typing import Any

import msgspec
import schemathesis

MSGPACK = "application/msgpack"


@schemathesis.serializer(MSGPACK)
def to_msgpack(_: schemathesis.SerializationContext, value: Any) -> bytes:
    try:
        return msgspec.msgpack.encode(value)
    except (OverflowError, TypeError):  # no MessagePack has it; what is sent instead is no request either
        return b"\xc1"


@schemathesis.deserializer(MSGPACK)
def from_msgpack(_: schemathesis.DeserializationContext, response: schemathesis.Response) -> Any:
    return _with_base64(msgspec.msgpack.decode(response.content))


def _with_base64(value: Any) -> Any:
    """Bytes as the schema has them, which is JSON's."""
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, dict):
        return {name: _with_base64(inner) for name, inner in value.items()}
    return [_with_base64(inner) for inner in value] if isinstance(value, list) else value
