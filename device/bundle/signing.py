"""The public keys whose signatures a device trusts.

This is the one file that needs PyNaCl (libsodium). It is imported at the first verification, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pocketrank.device.bundle.files import CorruptBundleError, SignatureError, UnsignedError, decode_json, read_bytes
from pocketrank.device.contract import Role, Signature, Signed, key_id, signed_bytes

__all__ = ["TrustedKeys"]

_PUBLIC_BYTES, _SIGNATURE_BYTES = 32, 64
_SIGNATURES_MAX = 16  # a verification takes some 100 µs, and a hostile file must not multiply that at will
_FILE_MAX = 1 << 16  # bytes of a file of signatures


@dataclass(frozen=True)
class TrustedKeys:
    """Public keys in hex that an app was built with, by the role in which they sign. New keys need a new version of the app.

    Raises ValueError for a malformed key, or a threshold that the keys cannot meet.
    """

    manifest: tuple[str, ...]
    """Keys that sign the content of bundles: kept offline, used once for each export."""
    release: tuple[str, ...]
    """Keys that sign which bundle is current: used every few days. They cannot sign a bundle."""
    manifest_threshold: int = 1
    """Number of keys that must have signed a manifest. With 2, one stolen key installs nothing."""
    release_threshold: int = 1
    """Number of keys that must have signed a release."""

    def __post_init__(self) -> None:
        for role, (keys, threshold) in self._roles().items():
            if any(len(bytes.fromhex(key)) != _PUBLIC_BYTES for key in keys):
                raise ValueError(f"Expected {role} keys of {_PUBLIC_BYTES} bytes in hex")
            if not 1 <= threshold <= len({key.lower() for key in keys}):
                raise ValueError(f"Expected a {role} threshold from 1 to the number of keys, got {threshold}")

    @classmethod
    def one(cls, key: str) -> TrustedKeys:
        """Return keys with one key for both roles, which is how a small team starts."""
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
            with suppress(CryptoError):
                crypto_sign_open(signature.signature + signed_bytes(role, data), public)
                signed.add(signature.key_id)
        if len(signed) < threshold:
            raise SignatureError(where, f"signatures of {threshold} trusted {role} keys", str(len(signed)))

    def verify_beside(self, role: Role, data: bytes, path: Path) -> None:
        """Verify `data` by the signatures in the file at `path`. Raises `BundleError`."""
        try:
            found = decode_json(read_bytes(path, _FILE_MAX), Signed, str(path))
        except CorruptBundleError as err:
            if isinstance(err.__cause__, FileNotFoundError):
                raise UnsignedError(str(path), "a signed bundle", "an unsigned one") from err
            raise SignatureError(str(path), f"a file of signatures: {err.expected}", err.got) from err
        self.verify(role, data, found.signatures, str(path))

    def open(self, role: Role, data: bytes, where: str) -> bytes:
        """Return the verified payload of a `Signed` in JSON. Raises `BundleError`."""
        signed = decode_json(data, Signed, where)
        self.verify(role, signed.payload, signed.signatures, where)
        return signed.payload

    def _roles(self) -> dict[Role, tuple[tuple[str, ...], int]]:
        return {"manifest": (self.manifest, self.manifest_threshold), "release": (self.release, self.release_threshold)}
