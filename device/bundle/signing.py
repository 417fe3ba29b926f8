"""Whose signatures a device believes. The one file that needs PyNaCl (libsodium), which is only imported to verify."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pocketrank.device.bundle.files import CorruptBundleError, SignatureError, decode_json, read_bytes
from pocketrank.device.contract import Role, Signature, Signed, key_id, signed_bytes

__all__ = ["TrustedKeys"]

_PUBLIC_BYTES, _SIGNATURE_BYTES = 32, 64
_SIGNATURES_MAX = 16  # a verification is some 100 µs, which somebody else's file must not multiply at will
_FILE_MAX = 1 << 16


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys in hex that an app was built with, by what they may vouch for. New keys come with a new version of the app.

    Raises ValueError for a key that is none, or a threshold that the keys cannot meet.
    """

    manifest: tuple[str, ...]
    """Keys that sign what a bundle holds: kept offline, used once for each export."""
    release: tuple[str, ...]
    """Keys that sign which bundle is current: used every few days. They cannot make a bundle."""
    manifest_threshold: int = 1
    """Keys that must have signed a manifest. With 2, one stolen key installs nothing."""
    release_threshold: int = 1
    """Keys that must have signed a release."""

    def __post_init__(self) -> None:
        for role, (keys, threshold) in self._roles().items():
            if any(len(bytes.fromhex(key)) != _PUBLIC_BYTES for key in keys):
                raise ValueError(f"expected {role} keys of {_PUBLIC_BYTES} bytes in hex")
            if not 1 <= threshold <= len({key.lower() for key in keys}):
                raise ValueError(f"expected a {role} threshold of 1 to the number of keys, got {threshold}")

    @classmethod
    def one(cls, key: str) -> TrustedKeys:
        """One key for everything, which is how a small team starts."""
        return cls((key,), (key,))

    def verify(self, role: Role, data: bytes, signatures: Sequence[Signature], where: str) -> None:
        """Raise `SignatureError` unless enough different keys of the role have signed `data`."""
        from nacl.bindings import crypto_sign_open
        from nacl.exceptions import CryptoError

        keys, threshold = self._roles()[role]
        known = {key_id(public): public for public in map(bytes.fromhex, keys)}
        signed: set[str] = set()
        for signature in signatures[:_SIGNATURES_MAX]:
            public = known.get(signature.key_id)
            if public is None or signature.key_id in signed or len(signature.signature) != _SIGNATURE_BYTES:
                continue
            try:
                crypto_sign_open(signature.signature + signed_bytes(role, data), public)
            except CryptoError:
                continue
            signed.add(signature.key_id)
        if len(signed) < threshold:
            raise SignatureError(where, f"signatures of {threshold} trusted {role} keys", str(len(signed)))

    def verify_beside(self, role: Role, data: bytes, path: Path) -> None:
        """Verify `data` by the signatures in the file at `path`. Raises `BundleError`."""
        try:
            found = decode_json(read_bytes(path, _FILE_MAX), Signed, str(path))
        except CorruptBundleError as err:
            raise SignatureError(str(path), "signatures", str(err)) from err
        self.verify(role, data, found.signatures, str(path))

    def open(self, role: Role, data: bytes, where: str) -> bytes:
        """The payload of a `Signed` in JSON, verified. Raises `BundleError`."""
        signed = decode_json(data, Signed, where)
        self.verify(role, signed.payload, signed.signatures, where)
        return signed.payload

    def _roles(self) -> dict[Role, tuple[tuple[str, ...], int]]:
        return {"manifest": (self.manifest, self.manifest_threshold), "release": (self.release, self.release_threshold)}
