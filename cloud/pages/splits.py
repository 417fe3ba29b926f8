"""The split versions that are served: one user tower and one table of item vectors for each.

The vectors are in an `EmbeddingStore`, so that they can be updated while pages are made and shared by many servers; each
process has its own towers. A store that failed may be empty when it answers again, as a cache is after a crash. So a thread
checks it and fills in the rows that it lacks from the run before pages use it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.pipeline.stage import Deadline
from pocketrank.cloud.published.ids import IdLookup
from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.cloud.published.tower import UserTower
from pocketrank.cloud.stores.base import EmbeddingStore, StoredRows, StoreError, UnknownVersionError

__all__ = ["Split", "Splits", "VectorsUnavailableError"]

_logger = logging.getLogger(__name__)


class Split:
    """Lower half of one split version, that of the published run in `folder`. Raises `PublishedError`."""

    def __init__(self, folder: Path, published: Published, record: PublishedRecord) -> None:
        self.version, self.users = record.split_version, IdLookup(published.user_id)
        self.tower = UserTower(folder, published, record)
        self._actions = record.actions

    def columns(self, served: Split) -> list[int] | None:
        """Return where this version finds its columns of feedback in that of the run `served`; None where both are the same.

        An action that the served run does not have is at -1, behind the last column.
        """
        if self._actions == served._actions:
            return None
        place = {name: len(HISTORY_FEEDBACK) + i for i, name in enumerate(served._actions)}
        return [*range(len(HISTORY_FEEDBACK)), *(place.get(name, -1) for name in self._actions)]


class VectorsUnavailableError(Exception):
    """The store does not answer, or failed a moment ago and was not checked since."""


_NO_HISTORY = StoredRows(np.zeros((0, 0), np.float16), np.zeros(0, np.bool_))


class Splits:
    """The `splits` that are served, with their vectors in `store`. Safe to call from several threads."""

    def __init__(
        self,
        splits: Sequence[Split],
        store: EmbeddingStore,
        *,
        refill: Callable[[], object] | None = None,
        retry_s: float = 0.5,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """The first of `splits` is that of the served run, from whose states the feedback of users is.

        After a failure the store is unavailable for a while: otherwise page after page would wait for it.

        `refill` makes sure that the store has the rows of all `splits`, or raises `StoreError`. With it, a store that failed is
        unavailable until a refill succeeded. The first attempt is made at once if the store worked for `retry_s` seconds
        before, so that one late answer costs a few pages only. Without it, the store is unavailable for `retry_s`.
        """
        self._splits = {split.version: split for split in splits}
        self._columns = {split.version: split.columns(splits[0]) for split in splits}
        self.versions = frozenset(self._splits)
        """Names of the versions that are served."""
        self._store, self._retry_s, self._clock = store, retry_s, clock
        self._unavailable_until = self._refilled_at = -np.inf
        self._refill, self._refilling, self._lock, self._closed = refill, False, Lock(), Event()
        self._thread: Thread | None = None

    @property
    def unavailable(self) -> bool:
        """Whether the store failed a moment ago, or is being filled."""
        return self._refilling or self._clock() < self._unavailable_until

    def items(self, version: str, ids: NDArray[np.int64], deadline: Deadline) -> StoredRows:
        """Return the vectors of the items with `ids` [n]. Raises `VectorsUnavailableError`."""
        if self.unavailable:
            raise VectorsUnavailableError
        try:
            return self._store.get(version, ids, deadline_s=max(1e-3, deadline.left()))
        except StoreError as error:
            _logger.warning("vectors of %s are unavailable: %s", version, error)
            self._fail()
            raise VectorsUnavailableError from error

    def put(self, version: str, ids: NDArray[np.int64], vectors: NDArray[np.float16]) -> None:
        """Put the vectors [n, D] of items where every process finds them. Of the processes that share files one writes; for the
        others it does nothing, and while the store does not answer either: such items have the vector of the unknown one."""
        try:
            self._store.put(version, ids, vectors)
        except StoreError as error:
            _logger.debug("vectors of new items are not written by this process: %s", error)

    def _fail(self) -> None:
        """Make the store unavailable, and start a thread that fills it unless one runs already."""
        now = self._clock()
        if self._refill is None:
            self._unavailable_until = now + self._retry_s
            return
        with self._lock:
            if not self._refilling and not self._closed.is_set():
                self._refilling = True
                pause = 0.0 if now - self._refilled_at > self._retry_s else self._retry_s
                self._thread = Thread(
                    target=self._fill_again, args=(self._refill, pause), name="pocketrank-refill", daemon=True
                )
                self._thread.start()

    def _fill_again(self, refill: Callable[[], object], pause: float) -> None:
        try:
            while not self._closed.wait(pause):
                try:
                    refill()
                except StoreError as error:
                    _logger.debug("the store cannot be filled yet: %s", error)
                    pause = self._retry_s
                else:
                    _logger.info("vectors are available again")
                    return
        finally:
            self._refilled_at, self._refilling = self._clock(), False

    def close(self) -> None:
        """Stop filling the store. It stays open, and may be closed once this returns."""
        with self._lock:
            self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Raise `StoreError` when the store does not answer or lacks a version that is served."""
        missing = sorted(self.versions - set(self._store.versions()))
        if missing:
            raise UnknownVersionError("the store", f"vectors of {', '.join(missing)}", "none")

    def user(
        self, version: str, user_id: int, ids: NDArray[np.int64], feedback: NDArray[np.float32], deadline: Deadline
    ) -> NDArray[np.float32]:
        """Return the vector [D] of a user with the history `ids` [e] and `feedback` [e, F], oldest first.

        An empty history needs no store. Raises `VectorsUnavailableError`.
        """
        split = self._splits[version]
        ids, feedback = ids[-split.tower.history_max :], feedback[-split.tower.history_max :]
        if (columns := self._columns[version]) is not None:
            feedback = np.pad(feedback, ((0, 0), (0, 1)))[:, columns]
        vectors, found = self.items(version, ids, deadline) if len(ids) else _NO_HISTORY
        return split.tower(split.users.one(user_id), vectors, feedback, found)
