"""The files of a bundle: which paths are safe, and how files are read and checked.

Errors::

    BundleError                a bundle that cannot be used; says expected, got, and where
    ├── CorruptBundleError     a manifest, spec or file that is missing, truncated, changed or malformed
    ├── UnsafePathError        a path that leaves the folder, or that some file system resolves to another one
    ├── BundleVersionError     a manifest or spec of a version that this SDK does not know
    ├── ExpiredBundleError     a bundle past its expiry
    ├── OtherFeedError         a bundle or release for another app or channel
    ├── NoSuchModelError       no model of the requested form, format and precision
    ├── SignatureError         signatures by fewer than the required number of trusted keys
    │   └── UnsignedError      no signatures at all
    ├── ReleaseError           a release that is older than the last one, or inconsistent with it
    │   ├── ExpiredReleaseError
    │   └── FutureReleaseError dated far ahead of the device's clock
    ├── ProbeError             models that fail on this device, or whose scores differ from the recorded ones
    └── BundleStorageError     a disk that is full, read-only or broken
        └── BundleLockedError  a store that is open elsewhere
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from pocketrank.device.codec import from_json
from pocketrank.device.contract import ContractError, FileEntry, MismatchError, VersionError

__all__ = [
    "GOLDEN",
    "MANIFEST",
    "RELEASE",
    "SIGNATURES",
    "SPEC",
    "TEXT_MAX",
    "BundleError",
    "BundleLockedError",
    "BundleStorageError",
    "BundleVersionError",
    "CorruptBundleError",
    "ExpiredBundleError",
    "ExpiredReleaseError",
    "FutureReleaseError",
    "NoSuchModelError",
    "OtherFeedError",
    "ProbeError",
    "ReleaseError",
    "SignatureError",
    "UnsafePathError",
    "UnsignedError",
    "check_file",
    "check_path",
    "check_paths",
    "decode_json",
    "on_disk",
    "read_bytes",
    "read_file",
    "sha256",
]

MANIFEST = "manifest.json"
"""Path of the manifest in a bundle."""
SIGNATURES = "manifest.sig"
"""Path of the manifest's signatures."""
RELEASE = "release.json"
"""Path of the release that names the bundle, where both are served from one folder."""
SPEC = "spec.json"
"""Path of the feature spec in bundles that `write_manifest` made."""
GOLDEN = "golden.msgpack"
"""Path of the recorded scores of the models (`contract.Golden`), which a bundle may have."""
TEXT_MAX = 4 << 20
"""Maximum size of a manifest or spec in bytes; real ones have thousands."""

_PATH_MAX = 1024
# Plain ASCII: no second spelling of the same name, and no separators, streams or wildcards of any system.
_PART = re.compile(r"[A-Za-z0-9_.+-]{0,254}[A-Za-z0-9_+-]")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)

S = TypeVar("S", bound=msgspec.Struct)


class BundleError(MismatchError, ValueError):
    """A bundle that cannot be used. `where` is a path."""


class CorruptBundleError(BundleError):
    """A manifest, spec or file that is missing, truncated, changed or malformed."""


class UnsafePathError(BundleError):
    """A path that leaves the folder, or that some file system resolves to another one."""


class BundleVersionError(BundleError):
    """A manifest or spec of a version that this SDK does not know."""


class ExpiredBundleError(BundleError):
    """A bundle past its expiry."""


class OtherFeedError(BundleError):
    """A bundle or release for another app or channel than the device's."""


class NoSuchModelError(BundleError):
    """A bundle without a model of the requested form, format and precision."""


class SignatureError(BundleError):
    """Signatures by fewer than the required number of keys that are trusted in the role."""


class UnsignedError(SignatureError):
    """No signatures at all."""


class ReleaseError(BundleError):
    """A release that is older than the last one that was followed, or inconsistent with it."""


class ExpiredReleaseError(ReleaseError):
    """A release past its expiry."""


class FutureReleaseError(ReleaseError):
    """A release dated far ahead of the device's clock: one of the two clocks is wrong."""


class ProbeError(BundleError):
    """Models that fail on this device, or whose scores differ from the recorded ones."""


class BundleStorageError(BundleError):
    """A disk that is full, read-only or broken."""


class BundleLockedError(BundleStorageError):
    """A store of bundles that is open in another process, or that was opened again in this one."""


def check_path(path: str) -> PurePosixPath:
    """Return a manifest's `path` as parts that stay inside the bundle on any file system. Raises `UnsafePathError`."""
    parts = path.split("/") if len(path) <= _PATH_MAX else []
    if not parts or not all(_PART.fullmatch(part) and not _DEVICES.fullmatch(part) for part in parts):
        shown = ascii(path[:_PATH_MAX])
        raise UnsafePathError(shown, "a relative path of plain ASCII names", shown)
    return PurePosixPath(*parts)


def check_paths(paths: Iterable[str], where: str) -> None:
    """Raise `BundleError` unless each path is safe, listed once (ignoring case), and not a folder of another path."""
    known: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        lower = PurePosixPath(str(check_path(path)).lower())
        if str(lower) in known or str(lower) in (MANIFEST, SIGNATURES, RELEASE):
            raise CorruptBundleError(where, "each file listed once", f"`{path}`")
        known.add(str(lower))
        folders.update(str(parent) for parent in lower.parents)
    if both := known & folders:
        raise CorruptBundleError(where, "files that are not folders", f"`{min(both)}`")


def check_file(folder: Path, entry: FileEntry) -> None:
    """Raise `BundleError` unless `folder` holds the entry's file, with its size and digest and not through a link."""
    path = folder
    try:
        for part in check_path(entry.path).parts:
            path /= part
            if path.is_symlink():
                raise UnsafePathError(str(path), "a file or folder", "a symbolic link")
        if not path.is_file():
            raise CorruptBundleError(str(path), "a file", "none")
        if (size := path.stat().st_size) != entry.bytes:
            raise CorruptBundleError(str(path), f"{entry.bytes} bytes", f"{size}")
        digest = sha256(path)
    except OSError as err:
        raise CorruptBundleError(str(path), "a readable file", _reason(err)) from err
    if digest != entry.sha256.lower():
        raise CorruptBundleError(str(path), f"SHA-256 {entry.sha256[:64]}", digest)


def read_file(folder: Path, entry: FileEntry, bytes_max: int | None = None) -> bytes:
    """Return the bytes of the entry's file in `folder`, and of no other: they are checked after they were read.

    `check_file` checks a file on the disk, which another process may change before it is opened. Raises `BundleError`, also
    for a file of more than `bytes_max` bytes.
    """
    path = folder / check_path(entry.path)
    data = read_bytes(path, entry.bytes if bytes_max is None else min(entry.bytes, bytes_max))
    if (digest := hashlib.sha256(data).hexdigest()) != entry.sha256.lower():
        raise CorruptBundleError(str(path), f"SHA-256 {entry.sha256[:64]}", digest)
    return data


def read_bytes(path: Path, bytes_max: int = TEXT_MAX) -> bytes:
    """Return the file's bytes. Raises `CorruptBundleError` when it cannot be read or has more than `bytes_max`."""
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as err:
        raise CorruptBundleError(str(path), "a readable file", _reason(err)) from err
    if len(data) > bytes_max:
        raise CorruptBundleError(str(path), f"at most {bytes_max} bytes", "more")
    return data


def decode_json(data: bytes, struct: type[S], where: str) -> S:
    """Decode `data`, which was read from `where`. Raises `CorruptBundleError`, `BundleVersionError`."""
    try:
        return from_json(data, struct)
    except VersionError as err:
        raise BundleVersionError(where, err.expected, err.got) from err
    except ContractError as err:
        raise CorruptBundleError(where, f"{err.expected} at `{err.path}`", err.got) from err


@contextmanager
def on_disk(where: Path) -> Iterator[None]:
    """Raise `BundleStorageError` in place of an OSError within the block."""
    try:
        yield
    except OSError as err:
        raise BundleStorageError(str(where), "a disk that can be written", _reason(err)) from err


def sha256(path: Path) -> str:
    """Return the file's SHA-256 in hex. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(err: OSError) -> str:
    return err.strerror or type(err).__name__
