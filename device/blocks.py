"""Conversion of arrays to blocks and back. A block is one little-endian array in row-major order."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import Block, BlockError, Dtype

__all__ = ["MAX_ELEMENTS", "from_block", "shorten", "to_block"]

MAX_ELEMENTS = 1 << 24
"""Most elements that a block may claim to hold: 64 MB of f4, a thousand times the largest page seen."""

_DTYPES: dict[str, np.dtype[Any]] = {code: np.dtype("<" + code) for code in ("f2", "f4", "i4", "i8", "u1")}


def to_block(array: NDArray[Any], dtype: Dtype) -> Block:
    """Return `array` as a block of `dtype`.

    Floats are rounded to the nearest of `dtype`; beyond f2's 65,504 they become infinite, which a reader treats as missing.
    Raises `BlockError` for an integer out of `dtype`'s range and for floats in an integer block.
    """
    target = _DTYPES[dtype]
    if array.dtype != target:
        if target.kind != "f":
            if array.dtype.kind not in "iub":
                raise BlockError("$", f"integers for `{dtype}`", f"`{array.dtype}`")
            info = np.iinfo(target)
            if array.size and (int(array.min()) < info.min or int(array.max()) > info.max):
                raise BlockError("$", f"integers in {info.min}..{info.max}", f"{array.min()}..{array.max()}")
        with np.errstate(over="ignore"):
            array = array.astype(target)
    return Block(dtype=dtype, shape=array.shape, data=array.tobytes())


def from_block(block: Block, path: str = "$", *, dtype: Dtype | None = None, ndim: int | None = None) -> NDArray[Any]:
    """Return the block's array: a read-only view of its bytes (no copy), or a new array when `data` is a list of numbers.

    `path` is the block's place in errors. Raises `BlockError` for a block that is not whole, or that has another `dtype` or
    `ndim` than those given.
    """
    if dtype is not None and block.dtype != dtype:
        raise BlockError(f"{path}.dtype", f"`{dtype}`", f"`{block.dtype}`")
    shape = block.shape
    if ndim is not None and len(shape) != ndim:
        raise BlockError(f"{path}.shape", f"{ndim} dimensions", f"{len(shape)}")
    # Checked before anything is allocated, since a claim to hold a huge array costs its sender nothing.
    if len(shape) > 4 or any(d < 0 or d > MAX_ELEMENTS for d in shape) or (count := math.prod(shape)) > MAX_ELEMENTS:
        raise BlockError(f"{path}.shape", f"at most 4 dimensions and {MAX_ELEMENTS} elements", shorten(list(shape)))
    target = _DTYPES.get(block.dtype)
    if target is None:
        raise BlockError(f"{path}.dtype", "one of " + ", ".join(_DTYPES), shorten(block.dtype))
    data = block.data
    if isinstance(data, bytes):
        if len(data) != count * target.itemsize:
            raise BlockError(f"{path}.data", f"{count * target.itemsize} bytes", f"{len(data)} bytes")
        return np.frombuffer(data, target).reshape(shape)
    if len(data) != count:
        raise BlockError(f"{path}.data", f"{count} numbers", f"{len(data)} numbers")
    return _from_numbers(data, target, path).reshape(shape)


def _from_numbers(data: Sequence[int | float | None], target: np.dtype[Any], path: str) -> NDArray[Any]:
    if target.kind == "f":
        try:
            values = np.array([math.nan if v is None else v for v in data], np.float64)
        except (OverflowError, TypeError, ValueError) as err:
            raise BlockError(f"{path}.data", "numbers that fit a float", str(err)) from None
        with np.errstate(over="ignore"):
            return values.astype(target)
    info = np.iinfo(target)
    for i, v in enumerate(data):
        if type(v) is not int or not info.min <= v <= info.max:
            raise BlockError(f"{path}.data[{i}]", f"an integer in {info.min}..{info.max}", shorten(v))
    return np.array(data, target)


def shorten(value: object) -> str:
    """Return `value` for an error message, in at most 60 characters. A huge integer is described, not printed."""
    text = repr(value) if not isinstance(value, int) or value.bit_length() < 128 else f"an integer of {value.bit_length()} bits"
    return text if len(text) <= 60 else text[:57] + "..."
