"""Bundles that were uploaded: files under their digests, and one record of which bundle is served.

::

    FOLDER/blobs/<sha256>      the files of bundles, each checked before it has this name
    FOLDER/incoming/           files on their way in
    FOLDER/current.json        `BundlePublish`: manifest, signatures and release that are served

No name in it comes from outside but a digest of 64 hex digits. The record is replaced in one step and is all that makes a
bundle current, so that an upload which ends half-way leaves what was. All worker processes look at the record at each request.

Errors: see `bundle_publish`.
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

from pocketrank.cloud.files import sync_folder, write_atomically
from pocketrank.cloud.serving.bundles.files import BundleFile
from pocketrank.cloud.serving.bundles.publish import (
    BadBundleError,
    BundlePublish,
    BundleReceipt,
    BundleWriteError,
    MissingFilesError,
    StoreFullError,
    check_newer,
    check_publish,
    is_digest,
)
from pocketrank.cloud.serving.http.wire import WireError
from pocketrank.device.codec import from_json
from pocketrank.device.contract import BundleManifest, ContractError

__all__ = ["BundleRepository", "BundleStoreConfig", "IncomingFile", "StoredBundle"]

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BundleStoreConfig:
    """What the store takes."""

    bundle_bytes_max: int = 256 << 20
    """All files of a bundle: it is served from memory, and phones would not want more."""
    store_bytes_max: int = 1 << 30
    """All files in the store: the bundle that is served, the one before and what is on its way."""
    lock_s: float = 30.0
    """Longest wait for another commit."""
    keep_s: float = 3600.0
    """A file that no bundle names is kept for so long: its bundle may still be on its way."""


class StoredBundle:
    """One bundle in memory, served as `BundleFiles` are."""

    def __init__(self, publish: BundlePublish, files: dict[str, BundleFile]) -> None:
        self.manifest = BundleFile.of(publish.manifest)
        self.signatures = None if publish.signatures is None else BundleFile.of(publish.signatures)
        """Those of the manifest, None of a bundle that is not signed."""
        self._release = None if publish.release is None else BundleFile.of(publish.release)
        self._files = files

    def get(self, path: str) -> BundleFile | None:
        """The file that the manifest names so, or None."""
        return self._files.get(path)

    def release(self) -> BundleFile | None:
        """The release that was uploaded with the bundle, or None."""
        return self._release


class IncomingFile:
    """A file on its way in. Bytes go to the disk as they come."""

    def __init__(self, file: RawIOBase, bytes: int) -> None:
        self._file, self._left, self._digest = file, bytes, hashlib.sha256()

    def write(self, data: bytes) -> None:
        """Take the next bytes. Raises `BadBundleError`, `StoreFullError`, `BundleWriteError`."""
        self._left -= len(data)
        if self._left < 0:
            raise BadBundleError("$", "as many bytes as Content-Length says", "more")
        rest = memoryview(data)
        with _on_disk():
            while rest:  # a disk that is nearly full takes a part, and refuses the next
                rest = rest[self._file.write(rest) or 0 :]
        self._digest.update(data)

    def finish(self, sha256: str) -> None:
        """All is there. Raises `BadBundleError` when it is not what was announced."""
        if self._left:
            raise BadBundleError("$", "as many bytes as Content-Length says", f"{self._left} fewer")
        if (digest := self._digest.hexdigest()) != sha256:
            raise BadBundleError("$", f"bytes with SHA-256 {sha256}", f"some with {digest}")
        with _on_disk():
            os.fsync(self._file.fileno())


class BundleRepository:
    """The store in `folder`, made when missing. `split_versions` says which are served now. Raises `BundleWriteError`.

    Safe to call from several threads and processes. Everything here may wait for the disk.
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
        with _on_disk():
            self._blobs.mkdir(parents=True, exist_ok=True)
            self._incoming.mkdir(exist_ok=True)
        self._commits = FileLock(folder / "lock", timeout=self.config.lock_s)  # each thread has its own hold on it
        self._loading, self._reserving = Lock(), Lock()
        self._reserved = 0
        self._seen: tuple[int, ...] | None = None
        self._current: StoredBundle | None = None
        self.current()

    def has(self, sha256: str) -> bool:
        """Whether the file is there; it is then kept for a while. Raises `BadBundleError` when that is no digest."""
        try:
            os.utime(self._path(sha256), (self._clock(),) * 2)
        except OSError:
            return False
        return True

    @contextmanager
    def incoming(self, sha256: str, bytes: int) -> Iterator[IncomingFile]:
        """A new file to write in the block; it is in the store after the block, or nothing of it when that fails.

        Raises `BadBundleError`, `StoreFullError`, `BundleWriteError`.
        """
        path = self._path(sha256)
        part = self._incoming / os.urandom(16).hex()
        with self._room(bytes):
            try:
                with _on_disk():
                    file = part.open("xb", buffering=0)
                with file:
                    new = IncomingFile(file, bytes)
                    yield new
                    new.finish(sha256)
                with _on_disk():
                    os.replace(part, path)
                    sync_folder(self._blobs)
            finally:
                part.unlink(missing_ok=True)

    def commit(self, publish: BundlePublish) -> BundleReceipt:
        """Serve this bundle from now on, in all processes. Raises `BundleStoreError`; then all is as it was."""
        manifest = check_publish(publish, self._split_versions(), self.config.bundle_bytes_max)
        with _on_disk(), self._commits:
            before = self._read_record()
            if before is not None:
                check_newer(manifest, publish, before)
            missing = tuple(sorted({entry.sha256 for entry in manifest.files if not self.has(entry.sha256)}))
            if missing:
                raise MissingFilesError(missing)
            for entry in manifest.files:
                if (size := self._path(entry.sha256).stat().st_size) != entry.bytes:
                    raise BadBundleError("$.manifest.files", f"{entry.bytes} bytes for `{entry.path[:200]}`", f"{size}")
            if publish != before:
                write_atomically(self._record, msgspec.json.encode(publish))
            self._clean(publish, before)
        return BundleReceipt(
            serial=manifest.serial,
            manifest_sha256=hashlib.sha256(publish.manifest).hexdigest(),
            files=len(manifest.files),
            bytes=sum(entry.bytes for entry in manifest.files),
        )

    def fresh(self) -> bool:
        """Whether `current` answers at once, because nothing was committed since it was last asked. Takes microseconds."""
        return self._stamp() == self._seen

    def current(self) -> StoredBundle | None:
        """The bundle that is served now, None before the first. One that cannot be read leaves the one before, and an error
        in the log.
        """
        if self.fresh():
            return self._current
        with self._loading:
            while (stamp := self._stamp()) != self._seen:
                try:
                    self._current = self._load()
                except (OSError, WireError, ContractError) as error:
                    if stamp != self._stamp():  # replaced meanwhile, and its files are gone
                        continue
                    _logger.error("the uploaded bundle cannot be read; the one before stays: %s", error)
                self._seen = stamp
            return self._current

    def _load(self) -> StoredBundle | None:
        publish = self._read_record()
        if publish is None:
            return None
        manifest, files = from_json(publish.manifest, BundleManifest), {}
        for entry in manifest.files:
            files[entry.path] = file = BundleFile.of(self._path(entry.sha256).read_bytes())
            if file.sha256 != entry.sha256:
                raise BadBundleError("$.manifest.files", f"SHA-256 {entry.sha256}", file.sha256)
        return StoredBundle(publish, files)

    def _read_record(self) -> BundlePublish | None:
        try:
            data = self._record.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BundleWriteError(error.strerror or type(error).__name__) from error
        try:
            return from_json(data, BundlePublish)
        except ContractError as error:
            raise BundleWriteError("a record of the bundle that is damaged") from error

    def _clean(self, *named: BundlePublish | None) -> None:
        manifests = (from_json(publish.manifest, BundleManifest) for publish in named if publish is not None)
        keep = {entry.sha256 for manifest in manifests for entry in manifest.files}
        before = self._clock() - self.config.keep_s
        for folder in (self._blobs, self._incoming):
            for found in os.scandir(folder):
                try:
                    if found.name not in keep and found.stat().st_mtime < before:
                        os.unlink(found)
                except OSError as error:  # what this is called for goes on
                    _logger.warning("a file that no bundle names cannot be removed: %s", error.strerror)

    def _taken(self) -> int:
        with _on_disk():
            return self._reserved + sum(found.stat().st_size for found in os.scandir(self._blobs))

    @contextmanager
    def _room(self, wanted: int) -> Iterator[None]:
        most = self.config.store_bytes_max
        with self._reserving:
            if wanted + self._taken() > most:
                with _on_disk(), self._commits:
                    self._clean(self._read_record())
            if wanted + (taken := self._taken()) > most:
                raise StoreFullError(f"{taken} of {most} bytes taken, {wanted} more")
            self._reserved += wanted
        try:
            yield
        finally:
            with self._reserving:
                self._reserved -= wanted

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
def _on_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        got = error.strerror or type(error).__name__  # without the path, which is the operator's business
        raise (StoreFullError if error.errno in _FULL else BundleWriteError)(got) from error
