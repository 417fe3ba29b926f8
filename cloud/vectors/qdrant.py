"""The index for more than one machine: a collection of a Qdrant server or cluster, through Qdrant's own client.

Qdrant shards and replicates the vectors and keeps them on disk; several page servers share one collection. In the client's
local mode (a folder, or `:memory:`) Python code in this process searches by brute force, for tests and to try it out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.common.client_exceptions import ResourceExhaustedResponse
from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

from pocketrank.cloud.vectors.index import (
    AGE_UNKNOWN,
    ANY,
    NONE,
    AttributeFilter,
    Attributes,
    Found,
    IndexConfigError,
    IndexUnavailableError,
    RetrievalError,
    VectorIndex,
    checked_query,
    checked_rows,
    raise_closed,
)
from pocketrank.cloud.vectors.qdrant_config import QdrantConfig

__all__ = ["QdrantIndex"]

_CONFLICT, _TOO_MANY, _SERVER_ERROR = 409, 429, 500
_MEMORY = ":memory:"


class QdrantIndex(VectorIndex):
    """One collection. Equal scores are in no particular order; recall depends on the collection's HNSW graph."""

    remote = True

    def __init__(self, url: str, collection: str, config: QdrantConfig | None = None, *, api_key: str | None = None) -> None:
        """Open `collection`, whose name must hold the version of the vectors: those of two versions cannot be compared.

        `url` is `http://host:6333`, `:memory:` or a folder. A collection that does not exist is created with the first rows.
        Raises `IndexUnavailableError`, and `IndexConfigError` for a collection with other vectors or another distance.
        """
        self._config, self._collection, self._where = config or QdrantConfig(), collection, f"{url}/{collection}"
        self._local = not url.startswith(("http://", "https://"))
        self._lock = threading.RLock() if self._local else None  # the local mode is not thread-safe
        self._deadline, self._closed = threading.local(), False
        self._retry_at, self._retry_lock = 0.0, threading.Lock()
        with self._calling():
            self._client = self._connect(url, api_key)
            self._width = self._find()

    def upsert(self, ids: NDArray[np.int64], vectors: NDArray[np.floating], attributes: Attributes) -> None:
        """See `VectorIndex.upsert`. Rows are sent in batches; when one fails, those before it stay."""
        ids, rows, attributes = checked_rows(ids, vectors, attributes, self._width)
        if not len(ids):
            return
        payloads = [
            {"author": author, "category": category} | ({} if created == AGE_UNKNOWN else {"created_ms": created})
            for author, category, created in zip(*(column.tolist() for column in attributes), strict=True)
        ]
        with self._calling():
            if self._width is None:
                self._width = self._make(rows.shape[1])
            for start in range(0, len(ids), self._config.batch_rows):
                part = slice(start, start + self._config.batch_rows)
                batch = models.Batch(ids=ids[part].tolist(), vectors=rows[part].tolist(), payloads=payloads[part])
                self._client.upsert(self._collection, batch, wait=True)

    def delete(self, ids: NDArray[np.int64]) -> None:
        """See `VectorIndex.delete`."""
        known = _points(ids)
        with self._calling():
            if self._width is None:
                return
            for start in range(0, len(known), self._config.batch_rows):
                selector = models.PointIdsList(points=known[start : start + self._config.batch_rows])
                self._client.delete(self._collection, selector, wait=True)

    def search(
        self,
        query: NDArray[np.float32],
        k: int,
        *,
        where: AttributeFilter = ANY,
        exclude: NDArray[np.int64] = NONE,
        deadline_s: float | None = None,
    ) -> Found:
        """See `VectorIndex.search`. To connect, to send and to receive may each take up to `deadline_s`."""
        query = checked_query(query, self._width)
        with self._breaker(), self._calling(deadline_s):
            if k <= 0 or self._width is None or where.categories == () or where.authors == ():
                return Found.nothing()
            answer = self._client.query_points(
                self._collection,
                query=query,
                query_filter=_filter(where, _points(exclude)),
                limit=k,
                with_payload=False,
            )
        ids = np.array([point.id for point in answer.points], np.int64)
        return Found(ids, np.array([point.score for point in answer.points], np.float32))

    def check(self) -> None:
        """See `VectorIndex.check`."""
        with self._calling():
            self._client.collection_exists(self._collection)

    def __len__(self) -> int:
        with self._calling():
            return 0 if self._width is None else self._client.count(self._collection, exact=True).count

    def close(self) -> None:
        """Close the connection; the collection stays."""
        if not self._closed:
            self._closed = True
            self._client.close()

    def _connect(self, url: str, api_key: str | None) -> QdrantClient:
        if url == _MEMORY:
            return QdrantClient(_MEMORY)
        if self._local:
            try:
                return QdrantClient(path=str(Path(url)), force_disable_check_same_thread=True)
            except (RuntimeError, OSError) as error:
                raise IndexUnavailableError(self._where, "a folder that nobody else has open", str(error)) from error
        # The check of the server's version would send one more request and print warnings on stderr.
        timeout = int(np.ceil(self._config.timeout_s))
        client = QdrantClient(url=url, api_key=api_key, timeout=timeout, check_compatibility=False)
        client.http.client.add_middleware(self._within)
        return client

    def _within(self, request: httpx.Request, send: Any) -> httpx.Response:
        """Apply the deadline of the call to its request; the client's own timeout is in whole seconds."""
        if (deadline_s := getattr(self._deadline, "s", None)) is not None:
            request.extensions["timeout"] = httpx.Timeout(deadline_s).as_dict()
        response: httpx.Response = send(request)
        return response

    def _find(self) -> int | None:
        """Return the width of the collection; None when it does not exist."""
        if not self._client.collection_exists(self._collection):
            return None
        found = self._client.get_collection(self._collection).config.params.vectors
        if not isinstance(found, models.VectorParams) or found.distance != models.Distance.DOT:
            raise IndexConfigError(self._where, "one vector per point, compared by inner product", str(found))
        return found.size

    def _make(self, width: int) -> int:
        """Create the collection, unless another process just did, and return its width."""
        params = models.VectorParams(size=width, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16)
        config = self._config
        try:
            self._client.create_collection(
                self._collection, params, shard_number=config.shards, replication_factor=config.replicas
            )
        except UnexpectedResponse as error:
            if error.status_code != _CONFLICT:
                raise
        if not self._local:  # the local mode has no payload indexes and warns about each
            for name in Attributes._fields:
                self._client.create_payload_index(self._collection, name, models.PayloadSchemaType.INTEGER)
        return self._find() or width

    @contextmanager
    def _breaker(self) -> Iterator[None]:
        """Fail at once for a while after a search that got no answer, but for one that tries (a circuit breaker)."""
        with self._retry_lock:
            now = monotonic()
            if now < self._retry_at:
                raise IndexUnavailableError(self._where, "an answer from Qdrant", "none a moment ago")
            if self._retry_at:
                self._retry_at = now + self._config.retry_s  # this search tries, and the others wait for what becomes of it
        try:
            yield
        except IndexUnavailableError:
            self._retry_at = monotonic() + self._config.retry_s
            raise
        self._retry_at = 0.0

    @contextmanager
    def _calling(self, deadline_s: float | None = None) -> Iterator[None]:
        """Raise the client's errors as those of `VectorIndex`. Sets the deadline; in local mode one call runs at a time."""
        if self._closed:
            raise_closed(self._where)
        if self._lock is not None:
            self._lock.acquire()
        self._deadline.s = deadline_s
        try:
            yield
        except (ResponseHandlingException, ResourceExhaustedResponse) as error:
            raise IndexUnavailableError(self._where, "an answer from Qdrant", _one_line(error)) from error
        except UnexpectedResponse as error:
            unavailable = error.status_code is None or error.status_code == _TOO_MANY or error.status_code >= _SERVER_ERROR
            kind = IndexUnavailableError if unavailable else RetrievalError
            raise kind(self._where, "an answer from Qdrant", _one_line(error)) from error
        finally:
            self._deadline.s = None
            if self._lock is not None:
                self._lock.release()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _points(ids: NDArray[np.int64]) -> list[Any]:
    """Return the ids that Qdrant accepts, which are not negative."""
    known = np.unique(np.asarray(ids, np.int64))
    return list(known[known >= 0].tolist())


def _filter(where: AttributeFilter, exclude: list[Any]) -> models.Filter | None:
    if where == ANY and not exclude:
        return None
    must: list[models.Condition] = []
    must_not: list[models.Condition] = []
    for name, only, never in (
        ("category", where.categories, where.categories_not),
        ("author", where.authors, where.authors_not),
    ):
        if only is not None:
            must.append(models.FieldCondition(key=name, match=models.MatchAny(any=list(only))))
        if never:
            must_not.append(models.FieldCondition(key=name, match=models.MatchAny(any=list(never))))
    if where.created_from_ms is not None:
        must.append(models.FieldCondition(key="created_ms", range=models.Range(gte=where.created_from_ms)))
    if exclude:
        must_not.append(models.HasIdCondition(has_id=exclude))
    return models.Filter(must=must, must_not=must_not)
