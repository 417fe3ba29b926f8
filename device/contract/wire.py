"""The bases of every struct that crosses the wire, and the arrays in them."""

from __future__ import annotations

from typing import Literal

import msgspec

__all__ = ["WIRE_VERSION", "Block", "Columns", "Dtype", "Versioned", "Wire"]

WIRE_VERSION = 1
"""Version written into every struct of this release."""

Dtype = Literal["f2", "f4", "i4", "i8", "u1"]


class Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every wire struct: immutable, fields by name, unknown fields ignored."""


class Versioned(Wire, frozen=True, kw_only=True):
    """Base of the top-level ones, which say their version."""

    version: int = WIRE_VERSION


class Block(Wire, frozen=True, kw_only=True):
    """An n-dimensional little-endian array in row-major order.

    `data` is the raw bytes in MessagePack. In JSON it is a flat list of numbers (null is NaN), so that a page can be read
    with curl. `dtype` is numpy's code without the byte order: f2, f4, i4, i8, u1.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes | list[int | float | None]


class Columns(Wire, frozen=True, kw_only=True):
    """A named group of columns: `values` has shape [rows, len(names)]."""

    names: tuple[str, ...]
    values: Block
