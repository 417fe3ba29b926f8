"""The files of a bundle: what their paths may be, how they are read, checked and replaced.

Errors::

    BundleError                a bundle that cannot be used; says expected, got, and where
    ├── CorruptBundleError     a manifest, spec or file that is missing, cut, changed or malformed
    ├── UnsafePathError        a path that leaves the folder, or that some file system takes for another
    ├── BundleVersionError     written for another version of this SDK
    ├── ExpiredBundleError     its time is over
    ├── NoSuchModelError       no model of the form, format and precision asked for
    ├── SignatureError         not signed by enough of the keys that are trusted in the role
    ├── ReleaseError           a release that is not followed: expired, older than one seen, or at odds with it
    ├── ProbeError             models that fail on this device, or answer other than was recorded
    └── BundleStorageError             the device's disk: full, read-only, broken
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TypeVar

import msgspec

from pocketrank.device.codec import from_json
from pocketrank.device.contract import ContractError, FileEntry, VersionError

__all__ = [
    "GOLDEN",
    "MANIFEST",
    "RELEASE",
    "SIGNATURES",
    "SPEC",
    "TEXT_MAX",
    "BundleError",
    "BundleVersionError",
    "CorruptBundleError",
    "ExpiredBundleError",
    "NoSuchModelError",
    "ProbeError",
    "ReleaseError",
    "SignatureError",
    "BundleStorageError",
    "UnsafePathError",
    "check_file",
    "check_path",
    "check_paths",
    "decode_json",
    "on_disk",
    "read_bytes",
    "replace_file",
    "sha256",
    "sync",
]

MANIFEST = "manifest.json"
"""The manifest's path in a bundle."""
SIGNATURES = "manifest.sig"
"""The path of the manifest's signatures."""
RELEASE = "release.json"
"""The path of the release that names the bundle, where both are served from one folder."""
SPEC = "spec.json"
"""The spec's path in bundles written here."""
GOLDEN = "golden.msgpack"
"""The path of what the models answer (`contract.Golden`), where a bundle has it."""
TEXT_MAX = 4 << 20
"""Bytes of a manifest or spec; real ones have thousands."""

_PATH_MAX = 1024
# Plain ASCII: no other spelling of the same name, no separators, streams or wildcards of any system.
_PART = re.compile(r"[A-Za-z0-9_.+-]{0,254}[A-Za-z0-9_+-]")
_DEVICES = re.compile(r"(?:con|prn|aux|nul|com[0-9]|lpt[0-9])(?:\..*)?", re.IGNORECASE)

S = TypeVar("S", bound=msgspec.Struct)


class BundleError(ValueError):
    """A bundle that cannot be used. `where` is a path, `expected` and `got` say what."""

    def __init__(self, where: str, expected: str, got: str) -> None:
        super().__init__(f"{where}: expected {expected}, got {got}")
        self.where, self.expected, self.got = where, expected, got


class CorruptBundleError(BundleError):
    """A manifest, spec or file that is missing, cut, changed or malformed."""


class UnsafePathError(BundleError):
    """A path that leaves the folder, or that some file system takes for another."""


class BundleVersionError(BundleError):
    """A manifest or spec of a version that this SDK does not know."""


class ExpiredBundleError(BundleError):
    """The bundle's time is over."""


class NoSuchModelError(BundleError):
    """The bundle has no model of the form, format and precision asked for."""


class SignatureError(BundleError):
    """Not signed by enough of the keys that are trusted in the role."""


class ReleaseError(BundleError):
    """A release that is not followed: expired, older than one seen, or at odds with it."""


class ProbeError(BundleError):
    """Models that fail on this device, or answer other than was recorded."""


class BundleStorageError(BundleError):
    """The device's disk could not do what was asked: full, read-only, broken."""


def check_path(path: str) -> PurePosixPath:
    """`path` of a manifest as parts that stay inside the bundle, on any file system. Raises `UnsafePathError`."""
    parts = path.split("/") if len(path) <= _PATH_MAX else []
    if not parts or not all(_PART.fullmatch(part) and not _DEVICES.fullmatch(part) for part in parts):
        raise UnsafePathError(ascii(path[:_PATH_MAX]), "a relative path of plain ASCII names", ascii(path[:_PATH_MAX]))
    return PurePosixPath(*parts)


def check_paths(paths: Iterable[str], where: str) -> None:
    """Raise `BundleError` unless each path is safe, listed once in any case of letters, and not the folder of another."""
    known: set[str] = set()
    folders: set[str] = set()
    for path in paths:
        at = PurePosixPath(str(check_path(path)).lower())
        if str(at) in known or str(at) in (MANIFEST, SIGNATURES, RELEASE):
            raise CorruptBundleError(where, "each file listed once", f"`{path}`")
        known.add(str(at))
        folders.update(str(parent) for parent in at.parents)
    if both := known & folders:
        raise CorruptBundleError(where, "files that are no folders", f"`{min(both)}`")


def check_file(folder: Path, entry: FileEntry) -> None:
    """Raise `BundleError` unless the file is in `folder`, not through a link, with the size and digest of its entry."""
    at = folder
    try:
        for part in check_path(entry.path).parts:
            at /= part
            if at.is_symlink():
                raise UnsafePathError(str(at), "a file or folder", "a symbolic link")
        if not at.is_file():
            raise CorruptBundleError(str(at), "a file", "none")
        if (size := at.stat().st_size) != entry.bytes:
            raise CorruptBundleError(str(at), f"{entry.bytes} bytes", f"{size}")
        digest = sha256(at)
    except OSError as err:
        raise CorruptBundleError(str(at), "a readable file", err.strerror or type(err).__name__) from err
    if digest != entry.sha256.lower():
        raise CorruptBundleError(str(at), f"SHA-256 {entry.sha256[:64]}", digest)


def read_bytes(path: Path, bytes_max: int = TEXT_MAX) -> bytes:
    """The file's bytes. Raises `CorruptBundleError`: not readable, or more than `bytes_max`."""
    try:
        with path.open("rb") as file:
            data = file.read(bytes_max + 1)
    except OSError as err:
        raise CorruptBundleError(str(path), "a readable file", err.strerror or type(err).__name__) from err
    if len(data) > bytes_max:
        raise CorruptBundleError(str(path), f"at most {bytes_max} bytes", "more")
    return data


def decode_json(data: bytes, struct: type[S], where: str) -> S:
    """The struct in `data`, which came from `where`. Raises `CorruptBundleError`, `BundleVersionError`."""
    try:
        return from_json(data, struct)
    except VersionError as err:
        raise BundleVersionError(where, err.expected, err.got) from err
    except ContractError as err:
        raise CorruptBundleError(where, f"{err.expected} at `{err.path}`", err.got) from err


@contextmanager
def on_disk(where: Path) -> Iterator[None]:
    """What the disk refuses within the block, as `BundleStorageError`."""
    try:
        yield
    except OSError as err:
        raise BundleStorageError(str(where), "a disk that takes it", err.strerror or type(err).__name__) from err


def sha256(path: Path) -> str:
    """The file's SHA-256 in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def replace_file(path: Path, data: bytes) -> None:
    """Write `data` to `path`: after a power cut it is either what it was or all of `data`. Raises OSError."""
    new = path.with_name(path.name + ".tmp")
    with new.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Make a file's bytes, or what was created, renamed or removed in a folder, outlast a power cut. Raises OSError."""
    if os.name == "posix":  # elsewhere folders cannot be opened
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
