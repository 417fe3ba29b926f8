"""The lower halves that are still answered: one user tower and one table of item vectors a split version.

The vectors are in an `EmbeddingStore`, so that they can be updated while pages are made and can be shared by many servers; the
towers are this process's own. A store that failed may come back empty, as a cache does that was killed: it is looked at in a
thread, and filled again from the run where it lacks rows, before pages use it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock, Thread
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.pipeline.stage import Deadline
from pocketrank.cloud.published.ids import IdLookup
from pocketrank.cloud.published.published import Published, PublishedRecord
from pocketrank.cloud.published.tower import UserTower
from pocketrank.cloud.stores.base import EmbeddingStore, StoredRows, StoreError, UnknownVersionError

__all__ = ["Split", "Splits", "VectorsUnavailableError"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Split:
    """One lower half."""

    version: str
    tower: UserTower
    users: IdLookup

    @classmethod
    def of(cls, folder: Path, published: Published, record: PublishedRecord) -> Split:
        """That of the published half in `folder`. Raises `PublishedError`."""
        return cls(record.split_version, UserTower(folder, published, record), IdLookup(published.user_id))


class VectorsUnavailableError(Exception):
    """The store cannot be reached, or was not a moment ago."""


_NO_PAST = StoredRows(np.zeros((0, 0), np.float16), np.zeros(0, np.bool_))


class Splits:
    """The `splits` that live, with their vectors in `store`. Safe to call from several threads."""

    def __init__(
        self,
        splits: Sequence[Split],
        store: EmbeddingStore,
        *,
        refill: Callable[[], object] | None = None,
        retry_s: float = 0.5,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        """After a failure the store is left alone for `retry_s`: pages must not all wait for it one after the other.

        `refill` makes sure that the store has the rows of all `splits`, or raises `StoreError`. With it a store that failed is
        away until that was done, which is tried at once if it was well for `retry_s` before: one late answer then costs a few
        pages. Without it, it is away until `retry_s` are over.
        """
        self._splits = {split.version: split for split in splits}
        self._store, self._retry_s, self._clock = store, retry_s, clock
        self._away_until = self._well_since = -np.inf
        self._refill, self._refilling, self._lock, self._closed = refill, False, Lock(), Event()
        self._thread: Thread | None = None

    def __contains__(self, version: object) -> bool:
        return version in self._splits

    @property
    def versions(self) -> frozenset[str]:
        """Those that are answered."""
        return frozenset(self._splits)

    @property
    def away(self) -> bool:
        """Whether the store failed a moment ago, or is filled again."""
        return self._refilling or self._clock() < self._away_until

    def items(self, version: str, ids: NDArray[np.int64], deadline: Deadline) -> StoredRows:
        """Vectors of the items with `ids` [n]. Raises `VectorsUnavailableError`."""
        if self.away:
            raise VectorsUnavailableError
        try:
            return self._store.get(version, ids, deadline_s=max(1e-3, deadline.left()))
        except StoreError as error:
            _logger.warning("vectors of %s cannot be had: %s", version, error)
            self._lost()
            raise VectorsUnavailableError from error

    def _lost(self) -> None:
        now = self._clock()
        if self._refill is None:
            self._away_until = now + self._retry_s
            return
        with self._lock:
            if not self._refilling and not self._closed.is_set():
                self._refilling = True
                pause = 0.0 if now - self._well_since > self._retry_s else self._retry_s
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
                    _logger.debug("the store cannot be filled: %s", error)
                    pause = self._retry_s
                else:
                    _logger.info("vectors can be had again")
                    return
        finally:
            self._well_since, self._refilling = self._clock(), False

    def close(self) -> None:
        """Stop looking after the store; it stays open, and may be closed once this returns."""
        with self._lock:
            self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def check(self) -> None:
        """Ask the store for what it holds. Raises `StoreError` when it does not answer or lacks a version."""
        missing = sorted(self.versions - set(self._store.versions()))
        if missing:
            raise UnknownVersionError("the store", f"vectors of {', '.join(missing)}", "none")

    def user(
        self, version: str, user_id: int, ids: NDArray[np.int64], feedback: NDArray[np.float32], deadline: Deadline
    ) -> NDArray[np.float32]:
        """The vector [D] of a user whose past is `ids` [e] with `feedback` [e, F], oldest first. Raises
        `VectorsUnavailableError`.
        """
        split = self._splits[version]
        ids, feedback = ids[-split.tower.history_max :], feedback[-split.tower.history_max :]
        vectors, found = self.items(version, ids, deadline) if len(ids) else _NO_PAST  # which needs no store
        return split.tower(split.users.one(user_id), vectors, feedback, found)
