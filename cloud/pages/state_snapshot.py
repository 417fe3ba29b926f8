"""A snapshot of all users' states beside the feedback log, so that a start replays only what the log accepted after it.

The file is a header and blocks, each with its length and checksum in front, and an empty block at the end. The header names the
log, the place in it up to which its events are in the states, and a fingerprint of what the states depend on beside them
(`UserStates.fingerprint`). A block has some users: MessagePack of their ids, places, experiments and numbers of rows, and then
their rows. Counts of all users (`LiveCounts`), where there are any, follow in blocks of their own. Published history is not in
the file. A file that is damaged, of another log, run, version or configuration is ignored with one line in the log of the
process.

The file is for its owner alone, and is replaced as a whole. Its neighbour `.lock` is locked by the one process that writes it:
`forget` waits for that process, whose states may still hold the user.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec
import numpy as np
from filelock import FileLock, Timeout

from pocketrank.cloud.files import replacing, sync_folder
from pocketrank.cloud.pages.live_counts import SavedCounts
from pocketrank.cloud.pages.user_state import KeptUser, Rows, UserStates, logged_rows
from pocketrank.cloud.streams.feedback_log import FeedbackLog, LogMark

__all__ = ["SnapshotConfig", "SnapshotHeader", "StateSnapshot"]

_VERSION = 1
_MAGIC = b"pocketrank states"
_BLOCK_BYTES = 1 << 20
_OWNER_ONLY = 0o600

_Users = dict[int, tuple[int, list[tuple[str | None, int]]]]
"""By id: the place of the user's last event, and for each experiment the number of rows."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SnapshotConfig:
    """When snapshots are written, beside those at each stop."""

    events: int = 500_000
    """Number of events after which the next one is written. A start replays about so many, at some 10 µs each."""
    every_s: float = 3600.0
    """Time in seconds after which the next one is written, if anything has changed."""
    check_s: float = 10.0
    """Pause in seconds between two looks at whether one is due."""


class SnapshotHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is of."""

    version: int = _VERSION
    mark: LogMark
    place: int
    """Place up to which the log's events are in the states."""
    first: int
    """First place of the log when it was written. Events before it were expired."""
    events: int
    """Number of events that the states were made of, those that have left them since included."""
    unreadable: int
    """Number of records up to `place` that could not be read."""
    fingerprint: bytes
    items: int | None = None
    """Number of items of the catalogue, on which the fingerprint depends."""
    row_words: int = 6
    """Width of a row of the states in words of 8 bytes."""


class _DamagedError(Exception):
    """A file that is not what was written."""


class StateSnapshot:
    """The snapshot in the file at `path`, which need not exist."""

    def __init__(self, path: Path, config: SnapshotConfig | None = None) -> None:
        self.path, self.config = path, config or SnapshotConfig()
        self.is_unfit = False
        """Whether the file was found to be of no use, and was not written since."""

    def header(self) -> SnapshotHeader | None:
        """Return the header; None without a file that has one."""
        try:
            with self.path.open("rb") as file:
                return _header(file)
        except (OSError, _DamagedError):
            return None

    def load(self, states: UserStates, log: FeedbackLog) -> SnapshotHeader | None:
        """Put the states of the file into `states`; return its header. None, and no change, when there is none that is right.

        Raises `LogOpenError`.
        """
        try:
            with self.path.open("rb") as file:
                header = _header(file)
                if reason := _unfit(header, states, log):
                    raise _DamagedError(reason)
                first, _ = log.ends()
                users: dict[int, KeptUser] = {}
                for some, rows in _blocks(file):
                    _take(users, some, rows, first, states.row_words)
                counts = None if states.counts is None else list(_counts(file))
        except FileNotFoundError:
            return None
        except (OSError, _DamagedError) as error:
            self.is_unfit = True
            _logger.warning("the snapshot %s is ignored, and the feedback log is replayed from its start: %s", self.path, error)
            return None
        states.restore(users, header.place, header.events, counts or ())
        return header

    def save(
        self,
        header: SnapshotHeader,
        parts: Iterable[dict[int, KeptUser]],
        pause: Callable[[], object],
        shared: Iterable[SavedCounts] | None = None,
    ) -> None:
        """Write the users of `parts`, with a `pause` after each, and the `shared` counts, if any. Call it within `turn`.

        Raises OSError.
        """
        self._remove_parts()
        with replacing(self.path, _OWNER_ONLY) as new, new.open("wb") as file:
            _put(file, _MAGIC + msgspec.msgpack.encode(header))
            users, rows, size = _Users(), list[bytes](), 0
            for part in parts:
                for user_id, user in part.items():
                    counts = list[tuple[str | None, int]]()
                    for experiment, window in user.windows.items():
                        kept = logged_rows(window, header.first)
                        if len(kept):
                            counts.append((experiment, len(kept)))
                            rows.append(kept.tobytes())
                            size += len(rows[-1])
                    if counts:
                        users[user_id] = user.place, counts
                if size >= _BLOCK_BYTES:
                    _put(file, _block(users, rows))
                    users, rows, size = {}, [], 0
                pause()
            if users:
                _put(file, _block(users, rows))
            _put(file, b"")
            if shared is not None:
                for of_day in shared:
                    _put(file, msgspec.msgpack.encode(of_day))
                _put(file, b"")
        self.is_unfit = False

    def forget(self, user_id: int) -> bool:
        """Leave nothing of the user in the file; return whether it held any. Waits for a process that is writing it.

        A file that cannot be read is removed, and one with counts of all users too. Raises OSError.
        """
        with self.turn(wait=True):
            self._remove_parts()
            try:
                with self.path.open("rb") as file:
                    held = [user_id in users for users, _ in _read(file)]
                    if not any(held):
                        return False
                    if file.read(1):
                        raise _DamagedError("it has counts of all users")
                    file.seek(0)
                    with replacing(self.path, _OWNER_ONLY) as new, new.open("wb") as to:
                        header = _header(file)
                        _put(to, _MAGIC + msgspec.msgpack.encode(header))
                        for users, rows in _blocks(file):
                            _put(to, _without(user_id, users, rows, 8 * header.row_words))
                        _put(to, b"")
            except FileNotFoundError:
                return False
            except _DamagedError:
                self.path.unlink()
                sync_folder(self.path.parent)
            return True

    def _remove_parts(self) -> None:
        """Remove what a process that was killed while it wrote has left."""
        for part in self.path.parent.glob(f"{self.path.name}.*.part"):
            part.unlink()

    @contextmanager
    def turn(self, *, wait: bool = False) -> Iterator[bool]:
        """Whether this process may write the file within the block. With `wait` it waits until it may. Raises OSError."""
        lock = FileLock(f"{self.path}.lock", timeout=-1 if wait else 0, mode=_OWNER_ONLY)
        try:
            lock.acquire()
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()


def _unfit(header: SnapshotHeader, states: UserStates, log: FeedbackLog) -> str:
    """Return why a file cannot be used; empty when it can."""
    _, last = log.ends()
    now = log.mark(header.place)
    if header.mark.log_id != now.log_id:
        return "it is of another log"
    # A log that was not synced before a power cut, or that went on from a backup. A record may also have been deleted since.
    if header.place > last:
        return "the log ends before it"
    if now.record is not None and header.mark.record != now.record:
        return "the log went on from an older copy"
    if header.fingerprint != states.fingerprint(header.items):
        return "the run or the limits have changed"
    return ""


def _put(file: IO[bytes], data: bytes) -> None:
    file.write(len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little"))
    file.write(data)


def _get(file: IO[bytes]) -> bytes:
    size, crc32 = file.read(4), file.read(4)
    length = int.from_bytes(size, "little")
    data = file.read(length) if length < 1 << 31 else b""
    if len(crc32) < 4 or len(data) != length or zlib.crc32(data) != int.from_bytes(crc32, "little"):
        raise _DamagedError("it is damaged")
    return data


def _header(file: IO[bytes]) -> SnapshotHeader:
    data = _get(file)
    if not data.startswith(_MAGIC):
        raise _DamagedError("it is no snapshot")
    try:
        header = msgspec.msgpack.decode(data.removeprefix(_MAGIC), type=SnapshotHeader)
    except msgspec.MsgspecError:
        header = None
    if header is None or header.version != _VERSION:
        raise _DamagedError("it is of another version")
    return header


def _block(users: _Users, rows: Iterable[bytes]) -> bytes:
    index = msgspec.msgpack.encode(users)
    return b"".join((len(index).to_bytes(4, "little"), index, *rows))


def _read(file: IO[bytes]) -> Iterator[tuple[_Users, memoryview]]:
    """Yield the blocks after the header, which is read first."""
    _header(file)
    yield from _blocks(file)


def _blocks(file: IO[bytes]) -> Iterator[tuple[_Users, memoryview]]:
    while data := _get(file):
        at = 4 + int.from_bytes(data[:4], "little")
        yield msgspec.msgpack.decode(data[4:at], type=_Users), memoryview(data)[at:]


def _counts(file: IO[bytes]) -> Iterator[SavedCounts]:
    """Yield the counts that follow the users."""
    while data := _get(file):
        yield msgspec.msgpack.decode(data, type=SavedCounts)


def _take(users: dict[int, KeptUser], some: _Users, data: memoryview, first: int, row_words: int) -> None:
    """Add the users of a block, without events before the place `first`."""
    rows, at = np.frombuffer(data, np.int64).reshape(-1, row_words), 0
    for user_id, (place, counts) in some.items():
        windows: dict[str | None, Rows] = {}
        for experiment, count in counts:
            kept = logged_rows(rows[at : at + count], first)
            if len(kept):
                windows[experiment] = kept.copy()  # a view would keep the block in memory
            at += count
        if windows:
            users[user_id] = KeptUser(place, windows)


def _without(user_id: int, users: _Users, data: memoryview, row_bytes: int) -> bytes:
    rows, at = list[bytes](), 0
    for other, (_, counts) in users.items():
        size = row_bytes * sum(count for _, count in counts)
        if other != user_id:
            rows.append(bytes(data[at : at + size]))
        at += size
    return _block({other: user for other, user in users.items() if other != user_id}, rows)
