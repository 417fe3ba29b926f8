"""The bundle that devices download, checked and held in memory.

In memory, because then manifest and files always belong together even while a new bundle is written over the old one, and no
path of a request ever comes near the file system. A bundle is a few megabytes. Only the release is read anew each time.

Errors::

    BundleFilesError           the folder is not a whole bundle, or not one of this run; names the file
"""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from pocketrank.device.codec import from_json
from pocketrank.device.contract import BundleManifest, ContractError, FileEntry

__all__ = ["BundleFile", "BundleFiles", "BundleFilesError"]

_BYTES_MAX = 1 << 28
"""A bundle past 256 MiB is a mistake: phones would not want it either."""

_SIGNED_MAX = 1 << 16
"""Signatures and releases have hundreds of bytes, and devices take no more."""


class BundleFilesError(ValueError):
    """The folder is not a whole bundle, or not one of this run. The message names the file."""


class BundleFile(NamedTuple):
    """A file as it is sent."""

    data: bytes
    sha256: str

    @classmethod
    def of(cls, data: bytes) -> BundleFile:
        """`data` and its digest."""
        return cls(data, hashlib.sha256(data).hexdigest())


class BundleFiles:
    """The manifest and the files that it names. Raises `BundleFilesError`.

    `split_version` is that of the run: a device with a bundle of another one would never get vectors.
    """

    def __init__(self, folder: Path, split_version: str) -> None:
        try:
            raw = (folder / "manifest.json").read_bytes()
            manifest = from_json(raw, BundleManifest)
        except (OSError, ContractError) as error:
            raise BundleFilesError(f"Expected a bundle with manifest.json, got: {error} - at {folder}") from error
        if manifest.split_version != split_version:
            raise BundleFilesError(
                f"Expected a bundle of split version {split_version}, got {manifest.split_version} - at {folder}. "
                "Export the bundle from the run that is served."
            )
        if (total := sum(entry.bytes for entry in manifest.files)) > _BYTES_MAX:
            raise BundleFilesError(f"Expected a bundle of at most {_BYTES_MAX} bytes, got {total} - at {folder}")
        self.manifest = BundleFile.of(raw)
        self.signatures = _optional(folder / "manifest.sig")
        """Those of the manifest, None of a bundle that is not signed."""
        self._release = folder / "release.json"
        self._files = {entry.path: _read(folder, entry) for entry in manifest.files}

    def get(self, path: str) -> BundleFile | None:
        """The file that the manifest names so, or None."""
        return self._files.get(path)

    def release(self) -> BundleFile | None:
        """The release as it is in the folder now, None without one: a roll-out and a kill need no restart.

        Devices verify it, and that it names the manifest that is served here.
        """
        return _optional(self._release)


def _optional(path: Path) -> BundleFile | None:
    try:
        return BundleFile.of(path.read_bytes()) if path.is_file() and path.stat().st_size <= _SIGNED_MAX else None
    except OSError:
        return None


def _read(folder: Path, entry: FileEntry) -> BundleFile:
    parts = PurePosixPath(entry.path)
    try:
        path = (folder / parts).resolve()
        if parts.is_absolute() or ".." in parts.parts or not path.is_relative_to(folder.resolve()):
            raise BundleFilesError(f"Expected paths inside the bundle, got {entry.path} - at {folder}/manifest.json")
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        if isinstance(error, BundleFilesError):
            raise
        raise BundleFilesError(f"Expected the file {entry.path!r}, got: {error} - at {folder}") from error
    digest = hashlib.sha256(data).hexdigest()
    if (len(data), digest) != (entry.bytes, entry.sha256):
        raise BundleFilesError(
            f"Expected {entry.bytes} bytes with SHA-256 {entry.sha256}, got {len(data)} with {digest} - at {folder / parts}"
        )
    return BundleFile(data, digest)
