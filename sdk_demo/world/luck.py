"""Random numbers that depend on the key where they are used, not on earlier draws.

Policies are compared on equal random numbers, their luck: a session's hidden path must not depend on the items shown, nor the
outcome of an item at a position on the items before it. Therefore every number is a hash of its key (SplitMix64: Steele, Lea
and Flood, "Fast splittable pseudorandom number generators", 2014), computed for whole batches at once. A
`numpy.random.Generator` would have to be constructed for each key, which costs more than a whole simulated impression.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int64, UInt64

__all__ = ["absorb", "keys_from", "normals", "step_keys", "uniforms"]

_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_ONE = np.uint64(1)
_STRIDE = np.uint64(0xD1342543DE82EF95)  # odd, and not _GAMMA, so that absorbing is not the same as counting
_S27, _S30, _S31, _S11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)
_COUNTERS = _GAMMA * np.arange(1, 257, dtype=np.uint64)
_TWO_PI = 2.0 * np.pi


def _mix(z: UInt64[np.ndarray, "*shape"]) -> UInt64[np.ndarray, "*shape"]:
    """Apply SplitMix64's finaliser in place."""
    z ^= z >> _S30
    z *= _MIX_1
    z ^= z >> _S27
    z *= _MIX_2
    z ^= z >> _S31
    return z


def keys_from(*parts: int, batch: int = 1) -> UInt64[np.ndarray, " batch"]:
    """Return one key, repeated `batch` times, from non-negative integers."""
    keys = np.zeros(batch, dtype=np.uint64)
    for part in parts:
        keys = absorb(keys, np.full(batch, part, dtype=np.int64))
    return keys


def absorb(keys: UInt64[np.ndarray, " batch"], values: Int64[np.ndarray, " batch"]) -> UInt64[np.ndarray, " batch"]:
    """Return new keys, each from an old key and one non-negative integer."""
    return _mix(keys + (values.astype(np.uint64) + _ONE) * _STRIDE)


def uniforms(keys: UInt64[np.ndarray, " batch"], count: int) -> Float[np.ndarray, "batch count"]:
    """Return `count` (at most 256) numbers in (0, 1), both ends excluded, for each key."""
    bits = _mix(keys[:, None] + _COUNTERS[:count]) >> _S11
    return (bits + 0.5) * 2.0**-53


def normals(uniform: Float[np.ndarray, "batch twice"]) -> Float[np.ndarray, "batch twice"]:
    """Return as many standard normal numbers as uniform ones, an even number (Box and Muller)."""
    half = uniform.shape[1] // 2
    out = np.empty_like(uniform)
    angle = _TWO_PI * uniform[:, half:]
    np.cos(angle, out=out[:, :half])
    np.sin(angle, out=out[:, half:])
    radius = np.sqrt(-2.0 * np.log(uniform[:, :half]))
    out[:, :half] *= radius
    out[:, half:] *= radius
    return out


STREAMS = 4
"""Number of streams of random numbers at each step of a session; see `step_keys`."""


def step_keys(
    keys: UInt64[np.ndarray, " batch"],
    stream: int,
    step: Int64[np.ndarray, " batch"],
    item: Int64[np.ndarray, " batch"] | int = 0,
) -> UInt64[np.ndarray, " batch"]:
    """Return the keys of a stream (below `STREAMS`) at a step (below 2^20), optionally for an item (below 2^40)."""
    return absorb(keys, (step + (item << 20)) * STREAMS + stream)
