"""Sealing of the parts that the topic `parameters` holds, so that a truncated or changed one is refused."""

from __future__ import annotations

from hashlib import blake2b

from msgspec.structs import replace

from pocketrank.cloud.streams.messages import ParameterPart
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import ContractError

__all__ = ["check_part", "sealed"]


def sealed(part: ParameterPart) -> bytes:
    """Return a part as a record, with its digest."""
    return to_msgpack(replace(part, digest=_digest(part)))


def check_part(value: bytes) -> ParameterPart:
    """Return the part of a record. Raises `ContractError` for one that is not as it was sealed."""
    part = from_msgpack(value, ParameterPart)
    if part.digest != _digest(part):
        raise ContractError("$.digest", "the digest of the part", "another one")
    for name, table in (("items", part.items), ("users", part.users)):
        if table is not None and any(len(data) % 8 for data in (table.ids, table.removed)):
            raise ContractError(f"$.{name}.ids", "ids of 8 bytes each", f"{len(table.ids)} bytes")
    return part


def _digest(part: ParameterPart) -> bytes:
    return blake2b(to_msgpack(replace(part, digest=b"")), digest_size=16).digest()
