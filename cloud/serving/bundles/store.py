"""Uploaded bundles: files under their digests, and one record of the bundle that is served.

::

    FOLDER/blobs/<sha256>      the files of bundles, each checked before it gets this name
    FOLDER/incoming/           files whose upload has not ended
    FOLDER/current.json        `StoredBundle`: manifest, signatures and release that are served, and those that were before

The only names that clients choose are digests of 64 hex digits. Replacing the record is what makes a bundle current, and it is
one atomic step: an upload that breaks off changes nothing. All worker processes look at the record at each request.

Errors: see `publish`.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import RawIOBase
from pathlib import Path
from threading import Lock

import msgspec
from filelock import FileLock
from msgspec.structs import asdict, replace

from pocketrank.cloud.files import sync_folder, write_atomically
from pocketrank.cloud.serving.bundles.files import BundleFile, BundleFilesError, ServedBundle
from pocketrank.cloud.serving.bundles.publish import (
    BadBundleError,
    BundlePublish,
    BundleReceipt,
    BundleWriteError,
    MissingFilesError,
    SignatureVerifier,
    StaleBundleError,
    StoreFullError,
    UntrustedError,
    check_newer,
    check_publish,
    check_serials,
    check_signed,
    is_digest,
    receipt_of,
)
from pocketrank.cloud.serving.http.wire import WireError
from pocketrank.device.codec import from_json
from pocketrank.device.contract import BundleManifest, ContractError

__all__ = ["BundleRepository", "BundleStoreConfig", "IncomingFile", "StoredBundle"]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BundleStoreConfig:
    """Keys and limits of the store."""

    keys: SignatureVerifier | None = None
    """Keys that must have signed a bundle. With None nothing can be verified, and nothing is accepted but for `unverified`."""
    unverified: bool = False
    """Whether a store without `keys` accepts bundles that nobody verifies. Whoever has a token of the scope `publish` then
    decides what the devices get that do not verify by themselves."""
    serial_ahead_s: int = 86_400
    """Highest serial of a bundle or a release: the Unix time in seconds, as serials of releases are, and this much more."""
    bundle_bytes_max: int = 256 << 20
    """Size of all files of one bundle. Phones would not want more."""
    store_bytes_max: int = 1 << 30
    """Size of all files in the store: the bundle that is served, the one before, and uploads that have not ended."""
    lock_s: float = 30.0
    """Longest wait for another commit."""
    keep_s: float = 3600.0
    """How long a file that no bundle names is kept: the upload of its bundle may not have ended."""


class StoredBundle(BundlePublish, frozen=True, kw_only=True, omit_defaults=True):
    """The bundle that is served, with the way back."""

    former: BundlePublish | None = None
    """The bundle that was served before; None after a roll-back to it, and for the first."""
    is_first: bool = False
    """Whether none was uploaded before. A roll-back then ends the serving of uploaded bundles."""

    def publish(self) -> BundlePublish:
        """Return the record as it was published."""
        return BundlePublish(manifest=self.manifest, signatures=self.signatures, release=self.release)


class IncomingFile:
    """File that is being uploaded. Bytes are written to the disk as they arrive."""

    def __init__(self, file: RawIOBase, bytes: int) -> None:
        self._file, self._bytes_left, self._digest = file, bytes, hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Append the next bytes. Raises `BadBundleError`, and OSError, which `incoming` raises as an error of the store."""
        self._bytes_left -= len(data)
        if self._bytes_left < 0:
            raise BadBundleError("$", "as many bytes as Content-Length says", "more")
        rest = memoryview(data)
        while rest:  # a disk that is nearly full writes a part, and refuses the next
            rest = rest[self._file.write(rest) or 0 :]
        self._digest.update(data)

    def finish(self, sha256: str) -> None:
        """Check that all bytes are there and have this digest. Raises `BadBundleError`, and OSError as `write` does."""
        if self._bytes_left:
            raise BadBundleError("$", "as many bytes as Content-Length says", f"{self._bytes_left} fewer")
        if (digest := self._digest.hexdigest()) != sha256:
            raise BadBundleError("$", f"bytes with SHA-256 {sha256}", f"bytes with {digest}")
        os.fsync(self._file.fileno())


class BundleRepository:
    """Store of bundles in `folder`, which is made if it is missing. `split_versions` returns those that are served now.

    Safe to call from several threads and processes. Every method may wait for the disk. Raises `BundleWriteError`.
    """

    def __init__(
        self,
        folder: Path,
        split_versions: Callable[[], Collection[str]],
        config: BundleStoreConfig | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config or BundleStoreConfig()
        self._blobs, self._incoming, self._record = folder / "blobs", folder / "incoming", folder / "current.json"
        self._split_versions, self._clock = split_versions, clock
        with _typed_errors():
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._incoming.mkdir(exist_ok=True)
        self._commit_lock = FileLock(folder / "lock", timeout=self.config.lock_s)  # each thread has its own hold on it
        self._load_lock, self._reserve_lock = Lock(), Lock()
        self._bytes_reserved = 0
        self._loaded_stamp: tuple[int, ...] | None = None
        self._current: ServedBundle | None = None
        self.current()

    def has(self, sha256: str) -> bool:
        """Return whether the file is there, and keep it for another `keep_s` if so.

        Raises `BadBundleError` when `sha256` is no digest.
        """
        try:
            os.utime(self._path(sha256), (self._clock(),) * 2)
        except OSError:
            return False
        return True

    @contextmanager
    def incoming(self, sha256: str, bytes: int) -> Iterator[IncomingFile]:
        """Open a new file to write in the block. After the block the file is in the store; if the block fails, nothing is.

        Raises `BadBundleError`, `StoreFullError`, `BundleWriteError`.
        """
        path = self._path(sha256)
        part = self._incoming / os.urandom(16).hex()
        with _typed_errors(), self._reserve(bytes):
            try:
                with part.open("xb", buffering=0) as file:
                    new = IncomingFile(file, bytes)
                    yield new
                    new.finish(sha256)
                os.replace(part, path)
                sync_folder(self._blobs)
            finally:
                part.unlink(missing_ok=True)

    def commit(self, publish: BundlePublish) -> BundleReceipt:
        """Serve this bundle from now on, in all processes. Raises `BundleStoreError`; then nothing has changed."""
        manifest = self._check(publish)
        with _typed_errors(), self._commit_lock:
            record = self._read_record()
            before = None if record is None else record.publish()
            if before is not None:
                check_newer(manifest, publish, before)
            missing = tuple(sorted({entry.sha256 for entry in manifest.files if not self.has(entry.sha256)}))
            if missing:
                raise MissingFilesError(missing)
            for entry in manifest.files:
                if (size := self._path(entry.sha256).stat().st_size) != entry.bytes:
                    raise BadBundleError("$.manifest.files", f"{entry.bytes} bytes for `{entry.path[:200]}`", f"{size}")
            if record is None or before is None:
                self._write_record(StoredBundle(**asdict(publish), is_first=True))
            elif publish.manifest != before.manifest:
                record = StoredBundle(**asdict(publish), former=before)
                self._write_record(record)
            elif publish != before:  # another release of the same bundle
                self._write_record(replace(record, signatures=publish.signatures, release=publish.release))
            self._remove_unnamed(publish, before, None if record is None else record.former)
        return receipt_of(publish, manifest)

    def rollback(self) -> None:
        """Serve the bundle from before the last `commit` again, in all processes. It can be done once after each.

        After the first bundle it is none of the store: `current` then returns None. Raises `StaleBundleError` when there is no
        way back, and `BundleStoreError` as `commit` does; then nothing has changed. Devices that installed the later bundle
        keep it, because they never go back to a lower serial.
        """
        with _typed_errors(), self._commit_lock:
            record = self._read_record()
            if record is None or (record.former is None and not record.is_first):
                raise StaleBundleError("url", "a bundle that was served before", "none")
            if record.former is None:
                self._record.unlink()
                sync_folder(self._record.parent)
                return
            manifest = self._check(record.former)
            missing = tuple(sorted({entry.sha256 for entry in manifest.files if not self.has(entry.sha256)}))
            if missing:
                raise MissingFilesError(missing)
            self._write_record(StoredBundle(**asdict(record.former)))

    def _check(self, publish: BundlePublish) -> BundleManifest:
        """Return the manifest of a record that passes the checks which need no other record. Raises `BundleStoreError`."""
        manifest = check_publish(publish, self._split_versions(), self.config.bundle_bytes_max)
        if self.config.keys is not None:
            check_signed(publish, self.config.keys)
        elif not self.config.unverified:
            raise UntrustedError(
                "$.signatures", "a server with keys that verify bundles, or the option to accept any", "one without"
            )
        check_serials(publish, int(self._clock()) + self.config.serial_ahead_s)
        return manifest

    def is_loaded(self) -> bool:
        """Return whether `current` returns at once, because nothing was committed since its last call. Takes microseconds."""
        return self._stamp() == self._loaded_stamp

    def current(self) -> ServedBundle | None:
        """Return the bundle that is served now, None before the first.

        When the record or a file is damaged, the error is logged and the bundle before stays.
        """
        with self._load_lock:
            while (stamp := self._stamp()) != self._loaded_stamp:
                try:
                    self._current = self._load()
                except (OSError, WireError, ContractError, BundleFilesError) as error:
                    if stamp != self._stamp():  # replaced in the meantime, and its files were removed
                        continue
                    _logger.error("The uploaded bundle cannot be read; the one before stays: %s", error)
                self._loaded_stamp = stamp
            return self._current

    def _load(self) -> ServedBundle | None:
        record = self._read_record()
        if record is None:
            return None
        manifest = from_json(record.manifest, BundleManifest)
        files = {entry.path: BundleFile(self._path(entry.sha256), entry) for entry in manifest.files}
        for file in files.values():
            file.check()
        return ServedBundle(record.publish(), files)

    def _write_record(self, record: StoredBundle) -> None:
        write_atomically(self._record, msgspec.json.encode(record))

    def _read_record(self) -> StoredBundle | None:
        try:
            data = self._record.read_bytes()
        except FileNotFoundError:
            return None
        try:
            return from_json(data, StoredBundle)
        except ContractError as error:
            raise BundleWriteError("a damaged record of the bundle") from error

    def _remove_unnamed(self, *named: BundlePublish | None) -> None:
        """Remove files that none of these records names and that are older than `keep_s`."""
        manifests = (from_json(publish.manifest, BundleManifest) for publish in named if publish is not None)
        keep = {entry.sha256 for manifest in manifests for entry in manifest.files}
        oldest = self._clock() - self.config.keep_s
        for folder in (self._blobs, self._incoming):
            for found in os.scandir(folder):
                try:
                    if found.name not in keep and found.stat().st_mtime < oldest:
                        os.unlink(found)
                except OSError as error:  # the caller does not depend on it
                    _logger.warning("A file that no bundle names cannot be removed: %s", error.strerror)

    def _bytes_taken(self) -> int:
        return self._bytes_reserved + sum(found.stat().st_size for found in os.scandir(self._blobs))

    @contextmanager
    def _reserve(self, bytes: int) -> Iterator[None]:
        """Reserve space for an upload, after removing unnamed files if there is not enough. Raises `StoreFullError`."""
        bytes_max = self.config.store_bytes_max
        with self._reserve_lock:
            if bytes + self._bytes_taken() > bytes_max:
                with self._commit_lock:
                    record = self._read_record()
                    self._remove_unnamed(record, None if record is None else record.former)
            if bytes + (taken := self._bytes_taken()) > bytes_max:
                raise StoreFullError(f"{taken} of {bytes_max} bytes taken, {bytes} more")
            self._bytes_reserved += bytes
        try:
            yield
        finally:
            with self._reserve_lock:
                self._bytes_reserved -= bytes

    def _path(self, sha256: str) -> Path:
        if not is_digest(sha256):
            raise BadBundleError("url", "a SHA-256 of 64 hex digits", f"`{sha256[:80]}`")
        return self._blobs / sha256

    def _stamp(self) -> tuple[int, ...] | None:
        try:
            status = os.stat(self._record)
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


@contextmanager
def _typed_errors() -> Iterator[None]:
    """Raise `StoreFullError` or `BundleWriteError` for an OSError of the block."""
    try:
        yield
    except OSError as error:
        got = error.strerror or type(error).__name__  # without the path, which is the operator's business
        raise (StoreFullError if error.errno in _NO_SPACE else BundleWriteError)(got) from error
