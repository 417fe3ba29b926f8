"""The bundle that devices download: its texts in memory, its files on the disk.

A file is read and compared with the manifest before it is first sent, and again when it has changed on the disk. So a damaged
file is refused. The files of a plain folder are copied first, because the folder may be written to while it is served.

Errors::

    BundleFilesError           the folder is not a whole bundle, or not one of this run; names the file
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import NamedTuple

from pocketrank.cloud.serving.bundles.publish import SIGNED_BYTES_MAX, BundlePublish
from pocketrank.device.codec import from_json
from pocketrank.device.contract import BundleManifest, ContractError, FileEntry

__all__ = ["BundleFile", "BundleFiles", "BundleFilesError", "ServedBundle"]

_BUNDLE_BYTES_MAX = 256 << 20
"""A larger bundle is a mistake: phones would not want it either."""


class BundleFilesError(ValueError):
    """The folder is not a whole bundle, or not one of this run. The message names the file."""


class BundleFile:
    """File of a bundle at `path` on the disk, as the manifest's `entry` describes it."""

    def __init__(self, path: Path, entry: FileEntry) -> None:
        self.path, self.entry = path, entry
        self._verified: tuple[int, ...] | None = None

    def check(self) -> os.stat_result:
        """Return the file's status, after comparing its bytes with the entry if it has changed since the last call.

        Raises `BundleFilesError` when the bytes are not those of the entry, and OSError.
        """
        status, entry = os.stat(self.path), self.entry
        stamp = status.st_mtime_ns, status.st_size, status.st_ino
        if stamp != self._verified:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if (status.st_size, digest) != (entry.bytes, entry.sha256):
                expected = f"{entry.bytes} bytes with SHA-256 {entry.sha256}"
                raise BundleFilesError(f"Expected {expected}, got {status.st_size} with {digest} - at {entry.path}")
            self._verified = stamp
        return status


class ServedBundle(NamedTuple):
    """One bundle. Manifest and files belong together."""

    texts: BundlePublish
    """Manifest, signatures and release, byte for byte."""
    files: dict[str, BundleFile]
    """By the path in the manifest."""


class BundleFiles:
    """The bundle in a plain folder, as it was when this object was made.

    The files are copied to a temporary folder, which is removed with this object. `split_versions` are those that are served: a
    device with a bundle of another one would never get vectors. Raises `BundleFilesError`.
    """

    def __init__(self, folder: Path, split_versions: Collection[str]) -> None:
        try:
            raw = (folder / "manifest.json").read_bytes()
            manifest = from_json(raw, BundleManifest)
        except (OSError, ContractError) as error:
            raise BundleFilesError(f"Expected a bundle with manifest.json, got: {error} - at {folder}") from error
        if manifest.split_version not in split_versions:
            served = " or ".join(sorted(split_versions))
            raise BundleFilesError(
                f"Expected a bundle of split version {served}, got {manifest.split_version} - at {folder}. "
                "Export the bundle from the run that is served."
            )
        if (total := sum(entry.bytes for entry in manifest.files)) > _BUNDLE_BYTES_MAX:
            raise BundleFilesError(f"Expected a bundle of at most {_BUNDLE_BYTES_MAX} bytes, got {total} - at {folder}")
        self._folder, self._copies = folder, TemporaryDirectory(prefix="pocketrank-bundle-")
        self._texts = BundlePublish(manifest=raw, signatures=_read_text(folder / "manifest.sig"))
        self._files = {
            entry.path: _copy(folder, entry, Path(self._copies.name, str(i))) for i, entry in enumerate(manifest.files)
        }

    def current(self) -> ServedBundle:
        """Return the bundle with the release that is in the folder now, so that a roll-out or a kill needs no restart.

        Devices verify the release, and that it names this manifest.
        """
        release = _read_text(self._folder / "release.json")
        texts = BundlePublish(manifest=self._texts.manifest, signatures=self._texts.signatures, release=release)
        return ServedBundle(texts, self._files)


def _read_text(path: Path) -> bytes | None:
    """Return a signed text, or None where there is none that a device would take."""
    try:
        return path.read_bytes() if path.is_file() and path.stat().st_size <= SIGNED_BYTES_MAX else None
    except OSError:
        return None


def _copy(folder: Path, entry: FileEntry, copy: Path) -> BundleFile:
    parts = PurePosixPath(entry.path)
    try:
        source = (folder / parts).resolve()
        is_inside = not parts.is_absolute() and ".." not in parts.parts and source.is_relative_to(folder.resolve())
        if is_inside:
            shutil.copyfile(source, copy)
    except (OSError, ValueError) as error:  # ValueError: a path with a null byte
        raise BundleFilesError(f"Expected the file {entry.path!r}, got: {error} - at {folder}") from error
    if not is_inside:
        raise BundleFilesError(f"Expected paths inside the bundle, got {entry.path} - at {folder}/manifest.json")
    file = BundleFile(copy, entry)
    file.check()
    return file
