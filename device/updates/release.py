"""The release that a device follows, and the download of the bundle that it names."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

from pocketrank.device.bundle.files import (
    MANIFEST,
    RELEASE,
    SIGNATURES,
    TEXT_MAX,
    BundleError,
    CorruptBundleError,
    ExpiredReleaseError,
    ReleaseError,
    decode_json,
    on_disk,
)
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.contract import BundleManifest, BundleRef, Release
from pocketrank.device.network.client import CloudClient, fetch_signatures
from pocketrank.device.network.errors import BadStatusError, ClientError

__all__ = ["download", "fetch_release", "follow"]

_RELEASE_MAX = 1 << 16  # bytes of a release; real ones have hundreds


def fetch_release(client: CloudClient, keys: TrustedKeys) -> Release:
    """Return the server's release, signed by `keys`; `follow` decides about it. Raises `ClientError`, `BundleError`.

    The error is an `UnsignedError` when the server has no release because its bundle is unsigned.
    """
    try:
        signed = client.fetch(f"/v1/bundle/{RELEASE}", _RELEASE_MAX)
    except BadStatusError as err:
        if err.status == 404:
            with suppress(ClientError):
                client.fetch(f"/v1/bundle/{MANIFEST}", TEXT_MAX)  # it has a bundle
                fetch_signatures(client)
        raise
    return decode_json(keys.open("release", signed, RELEASE), Release, RELEASE)


def follow(release: Release, last: Release | None, now_ms: int) -> None:
    """Raise `ReleaseError` for a release that is expired, or that goes back behind the `last` one that was followed."""
    if now_ms >= release.expires_ms:
        raise ExpiredReleaseError(RELEASE, f"a time before {release.expires_ms} ms", f"{now_ms} ms")
    if last is None or release == last:
        return
    if release.serial <= last.serial:
        raise ReleaseError(RELEASE, f"a serial above {last.serial}, or the same release", f"{release.serial}")
    if release.bundle.serial < last.bundle.serial:
        raise ReleaseError(RELEASE, f"a bundle serial of at least {last.bundle.serial}", f"{release.bundle.serial}")
    if release.bundle.serial == last.bundle.serial and release.bundle != last.bundle:
        raise ReleaseError(RELEASE, f"the same bundle {last.bundle.serial} as before", "another manifest")


def download(client: CloudClient, ref: BundleRef, folder: Path, keys: TrustedKeys, bytes_max: int) -> None:
    """Download the bundle that a release names into `folder`, resuming where an earlier call was interrupted.

    Only files of the signed manifest are fetched, and none when they have more than `bytes_max` bytes together. Raises
    `ClientError`, `BundleError`.
    """
    text = client.fetch(f"/v1/bundle/{MANIFEST}", ref.manifest_bytes)
    if (len(text), hashlib.sha256(text).hexdigest()) != (ref.manifest_bytes, ref.manifest_sha256.lower()):
        raise CorruptBundleError(MANIFEST, "the manifest that the release names", "another")
    signatures = fetch_signatures(client)
    with on_disk(folder):
        (folder / MANIFEST).write_bytes(text)
        (folder / SIGNATURES).write_bytes(signatures)
    keys.verify_beside("manifest", text, folder / SIGNATURES)
    manifest = decode_json(text, BundleManifest, MANIFEST)
    if manifest.serial != ref.serial:
        raise BundleError(MANIFEST, f"serial {ref.serial}", f"{manifest.serial}")
    client.fetch_files(manifest, folder, bytes_max)
