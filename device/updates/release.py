"""The release that a device follows, and the download of the bundle that it names."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path

import msgspec

from pocketrank.device.bundle.files import (
    MANIFEST,
    RELEASE,
    SIGNATURES,
    TEXT_MAX,
    BundleError,
    CorruptBundleError,
    ExpiredReleaseError,
    FutureReleaseError,
    OtherFeedError,
    ReleaseError,
    decode_json,
    on_disk,
)
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.contract import Addressed, BundleManifest, BundleRef, FeedName, Release
from pocketrank.device.network.client import CloudClient, fetch_signatures
from pocketrank.device.network.errors import BadStatusError, ClientError

__all__ = ["AHEAD_MAX_MS", "at_least", "check_feed", "download", "fetch_release", "follow"]

AHEAD_MAX_MS = 2 * 86_400_000
"""Time in ms by which a release's date is believed ahead of the device's own clock: a wrong time zone, and a day."""

_UNNAMED = FeedName()
_RELEASE_MAX = 1 << 16  # bytes of a release; real ones have hundreds


def fetch_release(client: CloudClient, keys: TrustedKeys, feed: FeedName = _UNNAMED) -> Release:
    """Return the server's release for `feed`, signed by `keys`; `follow` decides about it. Raises `ClientError`, `BundleError`.

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
    release = decode_json(keys.open("release", signed, RELEASE), Release, RELEASE)
    check_feed(release, feed, RELEASE)
    return release


def check_feed(published: Addressed, feed: FeedName, where: str) -> None:
    """Raise `OtherFeedError` unless the bundle or release at `where` is for `feed`, by exactly its names."""
    if published.feed != feed:
        raise OtherFeedError(where, f"one for {feed}", f"one for {published.feed}")


def at_least(clock_ms: int, last: Release | None) -> int:
    """Return the device's time in ms: its clock's, or the date of the `last` release when the clock is behind that.

    No date counts for more than `AHEAD_MAX_MS` after the clock, and that of a kill, which may be any, not even for that. One
    that was wrong would otherwise expire the later releases.
    """
    latest_ms = clock_ms + AHEAD_MAX_MS
    if last is None or (last.kill and last.created_ms > latest_ms):
        return clock_ms
    return max(clock_ms, min(last.created_ms, latest_ms))


def follow(release: Release, last: Release | None, clock_ms: int) -> Release:
    """Return what the device remembers of `release`, which it follows after the `last` one. `clock_ms` is its own clock's time.

    A kill is followed whatever its dates and its bundle: to stop models is the safe side, and an operator who stops them may
    have a wrong clock or an old folder. The newest bundle that a release named is then kept. Raises `ReleaseError` for any
    other release that is expired or dated ahead, and for each that goes back behind `last`.
    """
    if not release.kill:
        if release.created_ms > clock_ms + AHEAD_MAX_MS:
            expected = f"a date of at most {AHEAD_MAX_MS // 86_400_000} days after this device's clock at {clock_ms} ms"
            raise FutureReleaseError(RELEASE, expected, f"{release.created_ms} ms")
        if (now_ms := at_least(clock_ms, last)) >= release.expires_ms:
            raise ExpiredReleaseError(RELEASE, f"a time before {release.expires_ms} ms", f"{now_ms} ms")
    # A kill that was followed may name another bundle than what is remembered of it.
    if last is None or release == last or (release.serial == last.serial and release.kill and last.kill):
        return last or release
    if release.serial <= last.serial:
        raise ReleaseError(RELEASE, f"a serial above {last.serial}, or the same release", f"{release.serial}")
    if release.kill:
        return msgspec.structs.replace(release, bundle=max(last.bundle, release.bundle, key=lambda ref: ref.serial))
    if release.bundle.serial < last.bundle.serial:
        raise ReleaseError(RELEASE, f"a bundle serial of at least {last.bundle.serial}", f"{release.bundle.serial}")
    if release.bundle.serial == last.bundle.serial and release.bundle != last.bundle:
        raise ReleaseError(RELEASE, f"the same bundle {last.bundle.serial} as before", "another manifest")
    return release


def download(
    client: CloudClient, ref: BundleRef, folder: Path, keys: TrustedKeys, bytes_max: int, feed: FeedName = _UNNAMED
) -> None:
    """Download the bundle that a release names into `folder`, resuming where an earlier call was interrupted.

    Only files of the signed manifest are fetched, and none when they have more than `bytes_max` bytes together, or when the
    manifest is for another feed than `feed`. Raises
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
    check_feed(manifest, feed, MANIFEST)
    client.fetch_files(manifest, folder, bytes_max)
