"""Releases of bundles: which bundle is current, for which devices, and what signatures cover.

A signature is Ed25519 over `signed_bytes`: DSSE's pre-authentication encoding (https://github.com/secure-systems-lab/dsse) of a
role, the wire version and the exact bytes that are signed. A signature in one role is not valid in another.
"""

from __future__ import annotations

import hashlib
from typing import Literal

from pocketrank.device.contract.wire import WIRE_VERSION, Addressed, Versioned, Wire

__all__ = ["BundleRef", "Release", "Role", "Signature", "Signed", "in_rollout", "key_id", "signed_bytes"]

Role = Literal["manifest", "release"]
"""What a key may sign: the contents of a bundle, or which bundle is current."""

_SERIAL_MAX = 1 << 53  # what a double, and so every language's JSON, holds exactly


def signed_bytes(role: Role, data: bytes) -> bytes:
    """Return the bytes that a signature over `data` in `role` covers."""
    kind = f"application/vnd.pocketrank.{role}.v{WIRE_VERSION}+json".encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(data), data)


def key_id(public: bytes) -> str:
    """Return the name of a public key: the first half of its SHA-256, in hex. It proves nothing; it says which key to try."""
    return hashlib.sha256(public).hexdigest()[:32]


def in_rollout(device_id: str, salt: str, percent: float) -> bool:
    """Return whether a device is among the first `percent` for this `salt`. A device stays in as the percentage grows."""
    place = int.from_bytes(hashlib.sha256(f"{salt}\0{device_id}".encode()).digest()[:8], "big")
    return place < percent / 100 * (1 << 64)


class Signature(Wire, frozen=True, kw_only=True):
    """A signature by the key that `key_id` names: 64 bytes, base64 in JSON."""

    key_id: str
    signature: bytes


class Signed(Versioned, frozen=True, kw_only=True):
    """Signatures over `payload`. When `payload` is empty, they cover a file that is stored beside them."""

    signatures: tuple[Signature, ...]
    payload: bytes = b""


class BundleRef(Wire, frozen=True, kw_only=True):
    """Reference to one bundle by its serial and the size and SHA-256 of its manifest, which in turn pins every file."""

    serial: int
    manifest_bytes: int
    manifest_sha256: str


class Release(Addressed, frozen=True, kw_only=True):
    """The bundle that is current. It is short-lived, so that nobody can keep devices on an old one for long.

    Raises ValueError for numbers out of range.
    """

    serial: int
    """Grows with each release."""
    created_ms: int
    expires_ms: int
    bundle: BundleRef
    """Its serial never shrinks from one release to the next."""
    rollout: float = 100.0
    """The first so many percent of devices by `salt` install the bundle. The others keep the one they have."""
    salt: str = ""
    revoked: tuple[int, ...] = ()
    """Serials of bundles that a device must not use any more."""
    kill: bool = False
    """No device runs a model: all feeds are in cloud order until a release without it."""

    def __post_init__(self) -> None:
        if not all(0 < serial < _SERIAL_MAX for serial in (self.serial, self.bundle.serial)):
            raise ValueError(f"expected serials from 1 below {_SERIAL_MAX}")
        if not (0 <= self.created_ms < self.expires_ms < _SERIAL_MAX and 0 <= self.rollout <= 100):
            raise ValueError("expected 0 <= created_ms < expires_ms and a rollout of 0 to 100 percent")
