"""The index where one machine ends: a collection of a Qdrant server or cluster, through its own client.

Qdrant shards, replicates and keeps the vectors on disk; several page servers share one collection. Its local mode (a folder, or
`:memory:`) runs the same client's own Python code in this process, by brute force: it is for tests and for trying things out.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
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
    """One collection. Equal scores come in no order; recall is what the collection's HNSW graph gives."""

    def __init__(self, url: str, collection: str, config: QdrantConfig | None = None, *, api_key: str | None = None) -> None:
        """Opens `collection`, whose name holds the version of the vectors: those of two versions do not compare.

        `url` is `http://host:6333`, `:memory:` or a folder. The collection is made with the first rows when there is none.
        Raises `IndexUnavailableError`, `IndexConfigError` for a collection of something else.
        """
        self._config, self._collection, self._where = config or QdrantConfig(), collection, f"{url}/{collection}"
        self._local = not url.startswith(("http://", "https://"))
        self._lock = threading.RLock() if self._local else None  # the local mode is not made for several threads
        self._deadline, self._closed = threading.local(), False
        with self._told():
            self._client = self._connect(url, api_key)
            self._width = self._find()

    def upsert(self, ids: NDArray[np.int64], vectors: NDArray[np.floating], attributes: Attributes) -> None:
        """As `VectorIndex.upsert`, batch by batch; one that fails leaves those before it in place."""
        ids, rows, attributes = checked_rows(ids, vectors, attributes, self._width)
        if not len(ids):
            return
        payloads = [
            {"author": author, "category": category} | ({} if created == AGE_UNKNOWN else {"created_ms": created})
            for author, category, created in zip(*(column.tolist() for column in attributes), strict=True)
        ]
        with self._told():
            if self._width is None:
                self._width = self._make(rows.shape[1])
            for start in range(0, len(ids), self._config.batch_rows):
                part = slice(start, start + self._config.batch_rows)
                batch = models.Batch(ids=ids[part].tolist(), vectors=rows[part].tolist(), payloads=payloads[part])
                self._client.upsert(self._collection, batch, wait=True)

    def delete(self, ids: NDArray[np.int64]) -> None:
        """As `VectorIndex.delete`."""
        known = _points(ids)
        with self._told():
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
        """As `VectorIndex.search`. Neither to connect, nor to send, nor to receive may take longer than `deadline_s`."""
        query = checked_query(query, self._width)
        with self._told(deadline_s):
            if k <= 0 or self._width is None or where.categories == () or where.authors == ():
                return Found.nothing()
            answer = self._client.query_points(
                self._collection,
                query=query,
                query_filter=_filter(where, _points(exclude)),
                search_params=models.SearchParams(hnsw_ef=self._config.hnsw_ef),
                limit=k,
                with_payload=False,
            )
        ids = np.array([point.id for point in answer.points], np.int64)
        return Found(ids, np.array([point.score for point in answer.points], np.float32))

    def drop(self) -> None:
        """Delete the collection, for everybody: the end of a version's life."""
        with self._told():
            self._client.delete_collection(self._collection)
            self._width = None

    def __len__(self) -> int:
        with self._told():
            return 0 if self._width is None else self._client.count(self._collection, exact=True).count

    def close(self) -> None:
        """Let go of the connection; the collection stays."""
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
        # Whether versions fit would be asked on the way, in words on stderr.
        timeout = int(np.ceil(self._config.timeout_s))
        client = QdrantClient(url=url, api_key=api_key, timeout=timeout, check_compatibility=False)
        client.http.client.add_middleware(self._within)
        return client

    def _within(self, request: httpx.Request, send: Any) -> httpx.Response:
        """The client's own deadline is in whole seconds."""
        if (deadline_s := getattr(self._deadline, "s", None)) is not None:
            request.extensions["timeout"] = httpx.Timeout(deadline_s).as_dict()
        response: httpx.Response = send(request)
        return response

    def _find(self) -> int | None:
        """The width of the collection; None: there is none."""
        if not self._client.collection_exists(self._collection):
            return None
        found = self._client.get_collection(self._collection).config.params.vectors
        if not isinstance(found, models.VectorParams) or found.distance != models.Distance.DOT:
            raise IndexConfigError(self._where, "one vector a point, compared by inner product", str(found))
        return found.size

    def _make(self, width: int) -> int:
        """A new collection, or the one that another process just made."""
        params = models.VectorParams(size=width, distance=models.Distance.DOT, datatype=models.Datatype.FLOAT16)
        config = self._config
        try:
            self._client.create_collection(
                self._collection, params, shard_number=config.shards, replication_factor=config.replicas
            )
        except UnexpectedResponse as error:
            if error.status_code != _CONFLICT:
                raise
        if not self._local:  # the local mode has no indexes and says so at each
            for name in Attributes._fields:
                self._client.create_payload_index(self._collection, name, models.PayloadSchemaType.INTEGER)
        return self._find() or width

    @contextmanager
    def _told(self, deadline_s: float | None = None) -> Iterator[None]:
        """What the client raises, as errors of ours; within a deadline, and one at a time in local mode."""
        if self._closed:
            raise_closed(self._where)
        if self._lock is not None:
            self._lock.acquire()
        self._deadline.s = deadline_s
        try:
            yield
        except (ResponseHandlingException, ResourceExhaustedResponse) as error:
            raise IndexUnavailableError(self._where, "an answer from Qdrant", _said(error)) from error
        except UnexpectedResponse as error:
            gone = error.status_code is None or error.status_code == _TOO_MANY or error.status_code >= _SERVER_ERROR
            kind = IndexUnavailableError if gone else RetrievalError
            raise kind(self._where, "an answer from Qdrant", _said(error)) from error
        finally:
            self._deadline.s = None
            if self._lock is not None:
                self._lock.release()


def _said(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _points(ids: NDArray[np.int64]) -> list[Any]:
    """Ids as Qdrant takes them, which are not negative."""
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
