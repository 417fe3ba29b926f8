"""One version's table in one file, for another store or another day.

::

    bytes 0..7       "PRsnap01"
    bytes 8..1023    JSON of `SnapshotInfo` and `sha256`, then spaces
    from 1024 on     rows, each: the id, 8 bytes little-endian; D values, fp16 little-endian

`sha256` is the hexadecimal digest of all rows as they are in the file, followed by the JSON of `SnapshotInfo` alone. The file
ends with the last row: a reader knows from its size whether it is whole before it reads a row.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.stores.base import EmbeddingStore, SnapshotError, StoreInputError, UnknownVersionError

__all__ = ["SnapshotInfo", "load_snapshot", "save_snapshot"]

_MAGIC = b"PRsnap01"
_HEADER = 1024
_CHUNK_ROWS = 8192


class SnapshotInfo(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is in a snapshot."""

    version: str
    """The split version."""
    width: int
    """D, values a row."""
    rows: int
    """Rows in the file."""

    @property
    def row_bytes(self) -> int:
        """Size of a row with its id."""
        return 8 + 2 * self.width


class _Header(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    snapshot: SnapshotInfo
    sha256: str


def save_snapshot(store: EmbeddingStore, version: str, path: Path) -> SnapshotInfo:
    """Write the table of `version` to `path`, which appears whole or not at all. The store may change meanwhile.

    Raises `SnapshotError` when the file cannot be written, and what the store raises.
    """
    if (table := store.versions().get(version)) is None:
        raise UnknownVersionError(str(path), "a version with a table", repr(version[:200]))
    unfinished = path.with_name(path.name + ".part")
    try:
        with unfinished.open("wb") as file:
            file.write(bytes(_HEADER))
            digest, rows = hashlib.sha256(), 0
            for ids, vectors in store.scan(version):
                part = np.concatenate([_bytes(ids, "<i8"), _bytes(vectors, "<f2")], axis=1).tobytes()
                digest.update(part)
                file.write(part)
                rows += len(ids)
            info = SnapshotInfo(version=version, width=table.width, rows=rows)
            digest.update(msgspec.json.encode(info))
            header = _MAGIC + msgspec.json.encode(_Header(snapshot=info, sha256=digest.hexdigest()))
            file.seek(0)
            file.write(header.ljust(_HEADER))
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    except OSError as error:
        raise SnapshotError(str(path), "a file that can be written", str(error)) from error
    finally:
        unfinished.unlink(missing_ok=True)
    return info


def load_snapshot(store: EmbeddingStore, path: Path, *, ttl_s: float | None = None, replace: bool = False) -> SnapshotInfo:
    """Put a snapshot's rows into the store, as a new version that lives for `ttl_s` seconds, or for ever.

    The whole file is checked before the store is touched: `SnapshotError` leaves it as it was. A version that is there already
    is refused with `StoreInputError`, or dropped first with `replace`. When the store fails in between, the version is dropped.
    """
    try:
        with path.open("rb") as file:
            info = _checked(file, path)
            if info.version in store.versions():
                if not replace:
                    raise StoreInputError(str(path), "a version that the store does not have", repr(info.version))
                store.drop(info.version)
            try:
                store.create(info.version, info.width, ttl_s=ttl_s)
                for ids, vectors in _rows(file, info):
                    store.put(info.version, ids, vectors)
            except BaseException:
                store.drop(info.version)
                raise
    except OSError as error:
        raise SnapshotError(str(path), "a snapshot", str(error)) from error
    return info


def _checked(file: BinaryIO, path: Path) -> SnapshotInfo:
    header = file.read(_HEADER)
    if not header.startswith(_MAGIC):
        raise SnapshotError(str(path), f"a file that begins with {_MAGIC!r}", repr(header[: len(_MAGIC)]))
    try:
        stated = msgspec.json.decode(header[len(_MAGIC) :], type=_Header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise SnapshotError(str(path), "the header of a snapshot", str(error)) from error
    info = stated.snapshot
    size, due = os.fstat(file.fileno()).st_size, _HEADER + info.rows * info.row_bytes
    if info.width < 1 or info.rows < 0 or size != due:
        raise SnapshotError(str(path), f"{due} bytes for {info.rows} rows of {info.width} values", f"{size} bytes")
    digest = hashlib.sha256()
    while part := file.read(_CHUNK_ROWS * 8):
        digest.update(part)
    digest.update(msgspec.json.encode(info))
    if digest.hexdigest() != stated.sha256:
        raise SnapshotError(str(path), f"rows with SHA-256 {stated.sha256}", digest.hexdigest())
    return info


def _rows(file: BinaryIO, info: SnapshotInfo) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float16]]]:
    file.seek(_HEADER)
    while part := file.read(_CHUNK_ROWS * info.row_bytes):
        rows = np.frombuffer(part, np.uint8).reshape(-1, info.row_bytes)
        ids = np.ascontiguousarray(rows[:, :8]).view("<i8")[:, 0].astype(np.int64)
        yield ids, np.ascontiguousarray(rows[:, 8:]).view("<f2").astype(np.float16)


def _bytes(values: NDArray[np.generic], dtype: str) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values, dtype).view(np.uint8).reshape(len(values), -1)
