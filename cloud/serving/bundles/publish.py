"""The record of a published bundle, and the checks that it passes before it is served.

A token alone must not change the models of every device, nor lock the operator out. So the server verifies signatures by the
keys that it is given, and bounds the serial. The other checks reject a bundle that no device would install.

Errors::

    WireError
    └── BundleStoreError       a bundle that is refused; what was served still is
        ├── BadBundleError     400: an invalid manifest, a serial of the future, or a file that is not as announced
        ├── UntrustedError     403: not signed by enough trusted keys, or by a server that has no keys to verify it
        ├── StaleBundleError   409: for a split version that is not served, or no newer than what is served
        ├── MissingFilesError  409: files that must be uploaded first; has their digests
        ├── StoreFullError     507: no space left, on the disk or within the limit of the store
        └── BundleWriteError   503: the disk is read-only or broken
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath
from typing import Protocol, TypeVar, runtime_checkable

import msgspec

from pocketrank.cloud.serving.http.wire import ErrorBody, WireError
from pocketrank.device.codec import from_json
from pocketrank.device.contract import BundleManifest, ContractError, MismatchError, Release, Role, Signature, Signed

__all__ = [
    "BadBundleError",
    "BundlePublish",
    "BundleReceipt",
    "BundleStoreError",
    "BundleWriteError",
    "MissingFilesBody",
    "MissingFilesError",
    "PUBLISH_BYTES_MAX",
    "SIGNED_BYTES_MAX",
    "SignatureVerifier",
    "StaleBundleError",
    "StoreFullError",
    "UntrustedError",
    "check_newer",
    "check_publish",
    "check_serials",
    "check_signed",
    "is_digest",
    "receipt_of",
]

_MANIFEST_BYTES_MAX = 4 << 20
"""Size limit of a manifest: devices accept no more."""
SIGNED_BYTES_MAX = 64 << 10
"""Size limit of signatures and of a release: real ones have hundreds of bytes, and devices accept no more."""
PUBLISH_BYTES_MAX = (_MANIFEST_BYTES_MAX + 2 * SIGNED_BYTES_MAX) * 4 // 3 + 4096
"""Size limit of a whole record: its parts in base64, and the JSON around them."""

_DIGEST = re.compile(r"[0-9a-f]{64}")

S = TypeVar("S", bound=msgspec.Struct)


class BundleStoreError(WireError):
    """A bundle that is refused. What was served still is."""


class BadBundleError(BundleStoreError):
    """An invalid manifest, or a file that is not as announced."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(400, path, expected, got)


class UntrustedError(BundleStoreError):
    """A bundle that is not signed by enough trusted keys, or one at a server that has no keys to verify it by."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(403, path, expected, got)


class StaleBundleError(BundleStoreError):
    """A bundle for a split version that is not served, or no newer than the bundle that is served."""

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(409, path, expected, got)


class MissingFilesError(BundleStoreError):
    """Files of the manifest that must be uploaded first. `missing` holds their digests."""

    def __init__(self, missing: tuple[str, ...]) -> None:
        super().__init__(409, "$.manifest.files", "files that were uploaded", f"{len(missing)} that were not")
        self.missing = missing


class MissingFilesBody(ErrorBody, frozen=True, kw_only=True, omit_defaults=True):
    """Body of a 409. `missing` holds the SHA-256 of files to upload; it is empty when the manifest itself is refused."""

    missing: tuple[str, ...] = ()


class StoreFullError(BundleStoreError):
    """No space left for a file or a record. Nothing of it was kept."""

    def __init__(self, got: str) -> None:
        super().__init__(507, "$", "space for the upload", got, {"Retry-After": "60"})


class BundleWriteError(BundleStoreError):
    """A failed read or write of the disk. Nothing of the upload was kept."""

    def __init__(self, got: str) -> None:
        super().__init__(503, "$", "a disk that stores the upload", got, {"Retry-After": "5"})


class BundlePublish(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The bundle to serve from now on: the bytes of its `manifest.json`, and of `manifest.sig` and `release.json` if there are
    any (base64 in JSON).
    """

    manifest: bytes
    signatures: bytes | None = None
    release: bytes | None = None


@runtime_checkable
class SignatureVerifier(Protocol):
    """The keys that sign bundles and releases, such as `pocketrank.device.bundle.signing.TrustedKeys`."""

    def verify(self, role: Role, data: bytes, signatures: Sequence[Signature], where: str) -> None:
        """Raise `MismatchError` unless enough different keys of the role have signed `data`."""


class BundleReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """The bundle that is served now."""

    serial: int
    manifest_sha256: str
    files: int
    bytes: int
    """Size of all files together."""


def receipt_of(publish: BundlePublish, manifest: BundleManifest) -> BundleReceipt:
    """Return the receipt for a record and its manifest."""
    return BundleReceipt(
        serial=manifest.serial,
        manifest_sha256=hashlib.sha256(publish.manifest).hexdigest(),
        files=len(manifest.files),
        bytes=sum(entry.bytes for entry in manifest.files),
    )


def is_digest(text: str) -> bool:
    """Return whether `text` is a SHA-256 in lower-case hex: the only kind of file name that a client can choose."""
    return _DIGEST.fullmatch(text) is not None


def check_publish(publish: BundlePublish, split_versions: Collection[str], bundle_bytes_max: int) -> BundleManifest:
    """Return the manifest of a record that devices of the served `split_versions` can use.

    All files together may have at most `bundle_bytes_max` bytes. Raises `BadBundleError`, `StaleBundleError`.
    """
    for name, data, bytes_max in (
        ("manifest", publish.manifest, _MANIFEST_BYTES_MAX),
        ("signatures", publish.signatures, SIGNED_BYTES_MAX),
        ("release", publish.release, SIGNED_BYTES_MAX),
    ):
        if data is not None and len(data) > bytes_max:
            raise BadBundleError(f"$.{name}", f"at most {bytes_max} bytes", f"{len(data)}")
    manifest = _decode(publish.manifest, BundleManifest, "$.manifest")
    _check_manifest(manifest)
    if (total := sum(entry.bytes for entry in manifest.files)) > bundle_bytes_max:
        raise BadBundleError("$.manifest.files", f"at most {bundle_bytes_max} bytes", f"{total}")
    if publish.signatures is not None:
        _decode(publish.signatures, Signed, "$.signatures")
    if publish.release is not None:
        release = _decode(_decode(publish.release, Signed, "$.release").payload, Release, "$.release.payload")
        if release.bundle.manifest_sha256 != hashlib.sha256(publish.manifest).hexdigest():
            raise BadBundleError("$.release", "a release of this manifest", "a release of another")
    if manifest.split_version not in split_versions:
        expected = f"a split version that is served: {', '.join(sorted(split_versions))}"
        raise StaleBundleError("$.manifest.split_version", expected, f"`{manifest.split_version[:64]}`")
    return manifest


def check_signed(publish: BundlePublish, keys: SignatureVerifier) -> None:
    """Raise `UntrustedError` unless `keys` have signed the manifest, and the release if there is one.

    The record has passed `check_publish`.
    """
    signatures = from_json(publish.signatures, Signed).signatures if publish.signatures is not None else ()
    _verify(keys, "manifest", publish.manifest, signatures, "$.signatures")
    if publish.release is not None:
        release = from_json(publish.release, Signed)
        _verify(keys, "release", release.payload, release.signatures, "$.release")


def _verify(keys: SignatureVerifier, role: Role, data: bytes, signatures: Sequence[Signature], where: str) -> None:
    try:
        keys.verify(role, data, signatures, where)
    except MismatchError as error:
        raise UntrustedError(where, error.expected, error.got) from error


def check_serials(publish: BundlePublish, serial_max: int) -> None:
    """Raise `BadBundleError` for a serial of the manifest or the release outside of 0 to `serial_max`.

    Each bundle needs a higher serial than the one before it. So a single one of 2^63 - 1 would be the last.
    """
    serials = {"$.manifest.serial": from_json(publish.manifest, BundleManifest).serial}
    if publish.release is not None:
        serials["$.release.payload.serial"] = from_json(from_json(publish.release, Signed).payload, Release).serial
    for where, serial in serials.items():
        if not 0 <= serial <= serial_max:
            raise BadBundleError(where, f"0 to {serial_max}, the Unix time in seconds of tomorrow at most", f"{serial}")


def check_newer(manifest: BundleManifest, publish: BundlePublish, before: BundlePublish) -> None:
    """Raise `StaleBundleError` unless `publish`, with this manifest, may replace `before`, which is served."""
    if publish.manifest != before.manifest:
        served = from_json(before.manifest, BundleManifest).serial
        if manifest.serial <= served:
            raise StaleBundleError("$.manifest.serial", f"a serial past {served}, which is served", f"{manifest.serial}")
    elif publish.release is not None and before.release is not None:
        new, old = (from_json(from_json(data, Signed).payload, Release).serial for data in (publish.release, before.release))
        if new < old:
            raise StaleBundleError("$.release.payload.serial", f"a serial from {old}, which is served", f"{new}")


def _decode(data: bytes, struct: type[S], where: str) -> S:
    try:
        return from_json(data, struct)
    except ContractError as error:
        raise BadBundleError(where + error.path.removeprefix("$"), error.expected, error.got) from error


def _check_manifest(manifest: BundleManifest) -> None:
    paths = [entry.path for entry in manifest.files]
    for i, entry in enumerate(manifest.files):
        where, parts = f"$.manifest.files[{i}]", entry.path.split("/")
        # The server writes to none of these paths; a device would, and refuses them.
        if not entry.path.isascii() or not entry.path.isprintable() or "\\" in entry.path or {"", ".", ".."} & {*parts}:
            raise BadBundleError(f"{where}.path", "a relative path of plain names", ascii(entry.path[:200]))
        if entry.bytes < 0 or not _DIGEST.fullmatch(entry.sha256):
            raise BadBundleError(where, "a size and a SHA-256 in hex", f"{entry.bytes} and `{entry.sha256[:80]}`")
    if len({path.lower() for path in paths}) < len(paths):
        raise BadBundleError("$.manifest.files", "each file listed once", "two of one path")
    folders = {str(folder) for path in paths for folder in PurePosixPath(path).parents}
    for i, model in enumerate(manifest.models):
        if model.path not in paths and model.path not in folders:
            raise BadBundleError(f"$.manifest.models[{i}].path", "a file of the manifest", ascii(model.path[:200]))
    if manifest.spec not in paths:
        raise BadBundleError("$.manifest.spec", "a file of the manifest", ascii(manifest.spec[:200]))
