"""Base classes of every struct that crosses the wire, and the arrays inside them."""

from __future__ import annotations

from typing import Literal, NamedTuple

import msgspec

__all__ = ["WIRE_VERSION", "Addressed", "Block", "Columns", "Dtype", "FeedName", "TextBlock", "Versioned", "Wire"]

WIRE_VERSION = 1
"""The version that this release writes into every top-level struct, and the only one it reads."""

Dtype = Literal["f2", "f4", "i4", "i8", "u1"]
"""Element type of a block, in numpy's codes: f2 and f4 are IEEE 754 floats, i4, i8 and u1 are integers."""


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every wire struct. It is immutable, its fields are read by name, and unknown fields are ignored."""


class Versioned(Wire, frozen=True, kw_only=True):
    """Base of the top-level structs, which carry their version."""

    version: int = WIRE_VERSION


class FeedName(NamedTuple):
    """Name of the feed that a bundle or release is for. Both parts are empty where the keys sign for one feed only."""

    app: str = ""
    channel: str = ""
    """Channel of the app, such as `staging`."""

    def __str__(self) -> str:
        return f"app `{self.app}`, channel `{self.channel}`" if any(self) else "no app or channel"


class Addressed(Versioned, frozen=True, kw_only=True):
    """Base of what is published for one feed. Names that are not set are left out of the encoded struct."""

    app: str | msgspec.UnsetType = msgspec.UNSET
    channel: str | msgspec.UnsetType = msgspec.UNSET

    @property
    def feed(self) -> FeedName:
        """The feed that it is for. An empty name and none are the same."""
        return FeedName(*("" if isinstance(name, msgspec.UnsetType) else name for name in (self.app, self.channel)))


class Block(Wire, frozen=True, kw_only=True):
    """An n-dimensional little-endian array in row-major order.

    In MessagePack `data` is the raw bytes. In JSON it is a flat list of numbers, where null is NaN, so that a person can read
    a page with curl.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes | list[int | float | None]


class TextBlock(Wire, frozen=True, kw_only=True):
    """A column of texts, in JSON only. A reader of codes refuses it by its `dtype`."""

    dtype: Literal["text"] = "text"
    shape: tuple[int]
    data: tuple[str, ...]


class Columns(Wire, frozen=True, kw_only=True):
    """A named group of columns. `values` has shape [rows, len(names)]."""

    names: tuple[str, ...]
    values: Block
