"""Signatures of bundles and releases with Ed25519 (PyNaCl, libsodium), which `pocketrank.device.bundle.signing` verifies.

A private key is a file with its seed in hex that only its owner may read. It is never part of a bundle.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path

import msgspec
from nacl.signing import SigningKey

from pocketrank.device.bundle.bundle import write_atomically
from pocketrank.device.bundle.files import MANIFEST, RELEASE, SIGNATURES
from pocketrank.device.codec import from_json, to_json
from pocketrank.device.contract import (
    BundleManifest,
    BundleRef,
    ContractError,
    FeedName,
    Release,
    Role,
    Signature,
    Signed,
    key_id,
    signed_bytes,
)
from pocketrank.export.errors import ExportOutputError, SigningKeyError

__all__ = ["clock_doubt", "generate_key", "last_release", "public_key", "read_key", "sign", "sign_manifest", "write_release"]

_DAY_MS = 86_400_000
_FRESH_DAYS = 90  # releases are signed every few days, the first one soon after the export
_OWNER_ONLY = 0o600
_OTHERS = stat.S_IRWXG | stat.S_IRWXO


def generate_key(path: Path) -> str:
    """Write a new private key to `path` and its public key in hex to `path`.pub, and return the public key.

    Raises `SigningKeyError` when `path` exists or cannot be written.
    """
    key = SigningKey.generate()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # O_EXCL never overwrites a key, and the mode at creation leaves no moment in which others can read it.
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY), "w") as file:
            file.write(bytes(key).hex() + "\n")
        path.with_name(path.name + ".pub").write_text(public_key(key) + "\n")
    except FileExistsError:
        raise SigningKeyError(str(path), "a new file", "an existing one, which may be a key in use") from None
    except OSError as error:
        raise SigningKeyError(str(path), "a file that can be written", error.strerror or str(error)) from error
    return public_key(key)


def read_key(path: Path) -> SigningKey:
    """Read the private key at `path`. Raises `SigningKeyError` when it is missing, malformed, or readable by others."""
    try:
        if path.stat().st_mode & _OTHERS and os.name == "posix":
            raise SigningKeyError(str(path), "a key that only its owner may read (chmod 600)", "one that others may read")
        return SigningKey(bytes.fromhex(path.read_text(encoding="ascii")))
    except OSError as error:
        raise SigningKeyError(str(path), "a private key", error.strerror or str(error)) from error
    except ValueError as error:  # not ASCII, not hex, or another number of bytes
        raise SigningKeyError(str(path), "a private key of 32 bytes in hex", "other content") from error


def public_key(key: SigningKey) -> str:
    """Return the public key in hex, as `pocketrank.device.bundle.signing.TrustedKeys` takes it."""
    return bytes(key.verify_key).hex()


def sign(role: Role, data: bytes, keys: Sequence[SigningKey]) -> tuple[Signature, ...]:
    """Return the signature of each key over `data` in `role`."""
    message = signed_bytes(role, data)
    return tuple(Signature(key_id=key_id(bytes(key.verify_key)), signature=key.sign(message).signature) for key in keys)


def sign_manifest(folder: Path, keys: Sequence[SigningKey]) -> None:
    """Sign the manifest of the bundle in `folder`. Raises OSError."""
    signatures = sign("manifest", (folder / MANIFEST).read_bytes(), keys)
    write_atomically(folder / SIGNATURES, msgspec.json.format(to_json(Signed(signatures=signatures)), indent=2))


def last_release(folder: Path) -> Release | None:
    """Return the release in `folder`, unverified; None without one. Raises `ExportOutputError` if it is malformed."""
    if not (folder / RELEASE).is_file():
        return None
    try:
        return from_json(from_json((folder / RELEASE).read_bytes(), Signed).payload, Release)
    except (OSError, ContractError) as error:
        raise ExportOutputError(str(folder / RELEASE), "a readable release", str(error)) from error


def clock_doubt(folder: Path, now_ms: int) -> str | None:
    """Return why the clock that says `now_ms` may be wrong, by the dates in the bundle's `folder`; None without a doubt.

    It is doubted when it is behind the last release, or far from both the last release and the bundle. Devices refuse a release
    that is dated ahead of their clocks or expired by them. Raises `ExportOutputError`.
    """
    last, (_, manifest) = last_release(folder), _manifest(folder)
    if last is not None and now_ms < last.created_ms:
        return f"it is {_days(last.created_ms - now_ms)} behind the date of release {last.serial}"
    dates = {f"bundle {manifest.serial}": manifest.created_ms}
    if last is not None:
        dates[f"release {last.serial}"] = last.created_ms
    what, nearest = min(dates.items(), key=lambda item: abs(now_ms - item[1]))
    if abs(apart := now_ms - nearest) > _FRESH_DAYS * _DAY_MS:
        return f"it is {_days(abs(apart))} {'after' if apart > 0 else 'behind'} the date of {what}"
    return None


def write_release(
    folder: Path,
    keys: Sequence[SigningKey],
    *,
    now_ms: int,
    lasts_ms: int,
    rollout: float = 100.0,
    revoke: Sequence[int] = (),
    kill: bool = False,
    app: str | None = None,
    channel: str | None = None,
) -> Release:
    """Sign a release of the bundle in `folder` and write it there, over the last one.

    Its serial is the time in seconds, or one above the last serial if that is higher, so that it grows even when the last
    release was lost. Bundles that the last release revoked stay revoked. It is for the bundle's app and channel, which must be
    `app` and `channel` where those are given. Raises `ExportOutputError`.
    """
    last = last_release(folder)
    text, manifest = _manifest(folder)
    named = manifest.feed
    if (wanted := FeedName(named.app if app is None else app, named.channel if channel is None else channel)) != named:
        raise ExportOutputError(str(folder), f"a bundle for {wanted}", f"one for {named}")
    try:
        revoked = sorted({*revoke, *(() if last is None else last.revoked)})
        release = Release(
            app=manifest.app,
            channel=manifest.channel,
            serial=max(now_ms // 1000, 0 if last is None else last.serial + 1),
            created_ms=now_ms,
            expires_ms=now_ms + lasts_ms,
            bundle=BundleRef(
                serial=manifest.serial, manifest_bytes=len(text), manifest_sha256=hashlib.sha256(text).hexdigest()
            ),
            rollout=rollout,
            salt=f"{manifest.name}/{manifest.serial}",
            revoked=tuple(revoked),
            kill=kill,
        )
        payload = to_json(release)
        write_atomically(folder / RELEASE, to_json(Signed(payload=payload, signatures=sign("release", payload, keys))))
    except (OSError, ValueError) as error:  # the contract's errors are ValueErrors
        raise ExportOutputError(str(folder), "a bundle to release", str(error)) from error
    return release


def _manifest(folder: Path) -> tuple[bytes, BundleManifest]:
    """Return the manifest of the bundle in `folder`, as bytes and decoded. Raises `ExportOutputError`."""
    try:
        text = (folder / MANIFEST).read_bytes()
        return text, from_json(text, BundleManifest)
    except (OSError, ContractError) as error:
        raise ExportOutputError(str(folder), "a bundle to release", str(error)) from error


def _days(ms: int) -> str:
    return f"{ms / _DAY_MS:,.1f} days"
