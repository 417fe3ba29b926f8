"""Which bundle is released to whom, and what signatures are over.

A signature is Ed25519 over `signed_bytes`: DSSE's pre-authentication encoding (https://github.com/secure-systems-lab/dsse) of a
role, the wire version and the exact bytes that are vouched for. What is signed in one role is nothing in another.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pocketrank.device.contract.wire import WIRE_VERSION, Versioned, Wire

__all__ = ["BundleRef", "Release", "Role", "Signature", "Signed", "in_rollout", "key_id", "signed_bytes"]

Role = Literal["manifest", "release"]
"""What a key may vouch for: what a bundle holds, or which bundle is current."""

_SERIAL_MAX = 1 << 53  # what a double, and so every language's JSON, holds exactly
_SHARES = 1 << 64


def signed_bytes(role: Role, data: bytes) -> bytes:
    """What a signature over `data` in `role` is made of."""
    kind = f"application/vnd.pocketrank.{role}.v{WIRE_VERSION}+json".encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(data), data)


def key_id(public: bytes) -> str:
    """The name of a public key: the first half of its SHA-256, in hex. It only says which key to try."""
    return hashlib.sha256(public).hexdigest()[:32]


def in_rollout(device_id: str, salt: str, percent: float) -> bool:
    """Whether a device is among the first `percent` for this `salt`. One that is stays in as the percentage grows."""
    place = int.from_bytes(hashlib.sha256(f"{salt}\0{device_id}".encode()).digest()[:8], "big")
    return place < percent / 100 * _SHARES


class Signature(Wire, frozen=True, kw_only=True):
    """Of the key that `key_id` names: 64 bytes (base64 in JSON)."""

    key_id: str
    signature: bytes


class Signed(Versioned, frozen=True, kw_only=True):
    """Signatures over `payload`, or over a file beside them when that is empty."""

    signatures: tuple[Signature, ...]
    payload: bytes = b""


class BundleRef(Wire, frozen=True, kw_only=True):
    """One bundle: its serial, and size and SHA-256 of its manifest, which in turn pins every file."""

    serial: int
    manifest_bytes: int
    manifest_sha256: str


class Release(Versioned, frozen=True, kw_only=True):
    """The bundle that is current: short-lived, so that nobody can keep devices on an old one for long.

    `serial` grows with each release, `bundle.serial` never shrinks. The first `rollout` percent of devices by `salt` get the
    bundle; the others keep what they have. A device leaves bundles whose serials are `revoked`. With `kill` none runs a model:
    all feeds are in cloud order until a release says otherwise. Raises ValueError for numbers out of range.
    """

    serial: int
    created_ms: int
    expires_ms: int
    bundle: BundleRef
    rollout: float = 100.0
    salt: str = ""
    revoked: tuple[int, ...] = ()
    kill: bool = False

    def __post_init__(self) -> None:
        if not all(0 < serial < _SERIAL_MAX for serial in (self.serial, self.bundle.serial)):
            raise ValueError(f"expected serials from 1 below {_SERIAL_MAX}")
        if not (0 <= self.created_ms < self.expires_ms < _SERIAL_MAX and 0 <= self.rollout <= 100):
            raise ValueError("expected 0 <= created_ms < expires_ms and a rollout of 0 to 100 percent")
