"""Bytes that are almost right: what hypothesis and atheris both feed to the targets."""

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

import msgspec

_STEPS_MAX = 4
_BYTES = b'\x00\x01\x7f\x80\x90\xc0\xc1\xc4\xca\xcb\xcf\xd9\xdf\xff"{}[],:-0e.\\'
_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 2, 2**31, 2**53 + 1, 2**63 - 1, -(2**63), 2**64 - 1, 0.5, -0.0, 1e308, 5e-324,
    math.nan, math.inf, -math.inf,
    "", "a", "ä" * 300, "../../etc/passwd", "/", "manifest.json", "experiment", "page_id", b"", bytes(64), b"\xff" * 64,
    [], {}, [[]], [0] * 300, {"version": 2}, {"": None},
)  # fmt: skip


def mutate(data: bytes, seeds: Sequence[bytes], random: Random) -> bytes:
    """`data` with some of its bytes or values changed, parts of other `seeds` among them."""
    for _ in range(random.randint(1, _STEPS_MAX)):
        data = random.choice(_WAYS)(data, random.choice(seeds), random)
    return data


def _slice(data: bytes, random: Random) -> tuple[int, int]:
    start, end = sorted(random.randint(0, len(data)) for _ in range(2))
    return start, end


def _flip(data: bytes, other: bytes, random: Random) -> bytes:
    if not data:
        return other
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _overwrite(data: bytes, other: bytes, random: Random) -> bytes:
    at = random.randint(0, len(data))
    return data[:at] + bytes([random.choice(_BYTES)]) + data[at + 1 :]


def _truncate(data: bytes, other: bytes, random: Random) -> bytes:
    return data[: random.randint(0, len(data))]


def _drop(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _slice(data, random)
    return data[:start] + data[end:]


def _duplicate(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _slice(data, random)
    return data[:end] + data[start:]


def _splice(data: bytes, other: bytes, random: Random) -> bytes:
    start, end = _slice(other, random)
    at = random.randint(0, len(data))
    return data[:at] + other[start:end] + data[random.randint(at, len(data)) :]


def _value(data: bytes, other: bytes, random: Random) -> bytes:
    """One value of the tree that the bytes are, as MessagePack or JSON, becomes another or goes."""
    for wire in (msgspec.msgpack, msgspec.json):
        try:
            tree = wire.decode(data)
            places = list(_places(tree))
            if not places:
                return data
            container, key = random.choice(places)
            if random.random() < 0.2:
                del container[key]
            elif random.random() < 0.3:
                from_container, from_key = random.choice(places)
                container[key] = from_container[from_key]
            else:
                container[key] = random.choice(_VALUES)
            return wire.encode(tree)
        except (ValueError, TypeError, OverflowError, RecursionError):  # no tree, or one that now holds itself
            continue
    return data


def _places(tree: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        keys = list(node) if isinstance(node, dict) else list(range(min(len(node), 64))) if isinstance(node, list) else []
        found += [(node, key) for key in keys]
        waiting += [node[key] for key in keys]
    return found


_WAYS: tuple[Callable[[bytes, bytes, Random], bytes], ...] = (
    _flip, _overwrite, _truncate, _drop, _duplicate, _splice, _value, _value, _value, _value,
)  # fmt: skip
