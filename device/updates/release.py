"""Which release a device follows, and how the bundle that it names comes to the device."""

from __future__ import annotations

import hashlib
from pathlib import Path

from pocketrank.device.bundle.files import (
    MANIFEST,
    RELEASE,
    SIGNATURES,
    BundleError,
    CorruptBundleError,
    ReleaseError,
    decode_json,
    on_disk,
)
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.contract import BundleManifest, BundleRef, Release
from pocketrank.device.network.client import CloudClient

__all__ = ["download", "fetch_release", "follow"]

_SIGNED_MAX = 1 << 16  # bytes of a release or of signatures; real ones have hundreds


def fetch_release(client: CloudClient, keys: TrustedKeys) -> Release:
    """The server's release, signed by `keys`; `follow` says whether to. Raises `ClientError`, `BundleError`."""
    text = keys.open("release", client.fetch(f"/v1/bundle/{RELEASE}", _SIGNED_MAX), RELEASE)
    return decode_json(text, Release, RELEASE)


def follow(release: Release, last: Release | None, now_ms: int) -> None:
    """Raise `ReleaseError` for a release that is over, or that takes back something of the `last` one that was followed."""
    if now_ms >= release.expires_ms:
        raise ReleaseError(RELEASE, f"a time before {release.expires_ms} ms", f"{now_ms} ms")
    if last is None or release == last:
        return
    if release.serial <= last.serial:
        raise ReleaseError(RELEASE, f"a serial above {last.serial}, or the same release", f"{release.serial}")
    if release.bundle.serial < last.bundle.serial:
        raise ReleaseError(RELEASE, f"a bundle serial from {last.bundle.serial} on", f"{release.bundle.serial}")
    if release.bundle.serial == last.bundle.serial and release.bundle != last.bundle:
        raise ReleaseError(RELEASE, f"the same bundle {last.bundle.serial} as before", "another manifest")


def download(client: CloudClient, ref: BundleRef, folder: Path, keys: TrustedKeys, bytes_max: int) -> None:
    """The bundle that a release names into `folder`, on from where an earlier call was cut off.

    Nothing but what its signed manifest names is fetched, and of that no more than `bytes_max`. Raises `ClientError`,
    `BundleError`.
    """
    text = client.fetch(f"/v1/bundle/{MANIFEST}", ref.manifest_bytes)
    if (len(text), hashlib.sha256(text).hexdigest()) != (ref.manifest_bytes, ref.manifest_sha256.lower()):
        raise CorruptBundleError(MANIFEST, "the manifest that the release names", "another")
    signatures = client.fetch(f"/v1/bundle/{SIGNATURES}", _SIGNED_MAX)
    with on_disk(folder):
        (folder / MANIFEST).write_bytes(text)
        (folder / SIGNATURES).write_bytes(signatures)
    keys.verify_beside("manifest", text, folder / SIGNATURES)
    manifest = decode_json(text, BundleManifest, MANIFEST)
    if manifest.serial != ref.serial:
        raise BundleError(MANIFEST, f"serial {ref.serial}", f"{manifest.serial}")
    client.fetch_files(manifest, folder, bytes_max)
