"""Qdrant by its client's local mode, which shares the client's models and filters with a server but not its wire, its graph,
its shards or its payload indexes: no Qdrant server can be had where this was written, so none of those is tested. Of the wire
there is a server that is not there, one that never answers, and one that answers what a stub here says: what it is worth is the
deadline and the errors, not that Qdrant would say the same."""

import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import monotonic

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from pocketrank.cloud.vectors.index import Attributes, IndexConfigError, IndexUnavailableError, RetrievalError, WidthError
from pocketrank.cloud.vectors.qdrant import QdrantIndex
from pocketrank.cloud.vectors.qdrant_config import QdrantConfig
from tests.cloud.vectors.clusters import attributes, vectors


def test_a_folder_keeps_the_collection_and_its_width(tmp_path: Path) -> None:
    url = str(tmp_path / "qdrant")
    index = QdrantIndex(url, "items-1", QdrantConfig(batch_rows=7))
    index.upsert(np.arange(20), vectors(20, 0), attributes(20, 1))
    before = index.search(vectors(1, 2)[0], 5)
    with pytest.raises(IndexUnavailableError, match="nobody else has open"):
        QdrantIndex(url, "items-1")
    index.close()
    again = QdrantIndex(url, "items-1")
    assert len(again) == 20
    assert again.search(vectors(1, 2)[0], 5).ids.tolist() == before.ids.tolist()
    with pytest.raises(WidthError, match="a width of 16"):
        again.upsert(np.arange(1), np.ones((1, 3)), Attributes.unknown(1))
    again.close()


def test_versions_do_not_meet(tmp_path: Path) -> None:
    url = str(tmp_path / "qdrant")
    for version, width in (("1", 3), ("2", 4)):
        index = QdrantIndex(url, f"items-{version}")
        index.upsert(np.arange(2), np.eye(2, width), Attributes.unknown(2))
        index.close()
    for version, width in (("1", 3), ("2", 4)):
        index = QdrantIndex(url, f"items-{version}")
        assert len(index) == 2
        assert index.search(np.eye(2, width, dtype=np.float32)[1], 1).ids.tolist() == [1]
        index.close()


def test_a_collection_of_something_else_is_refused(tmp_path: Path) -> None:
    client = QdrantClient(path=str(tmp_path))
    client.create_collection("items-1", models.VectorParams(size=3, distance=models.Distance.COSINE))
    client.close()
    with pytest.raises(IndexConfigError, match="compared by inner product"):
        QdrantIndex(str(tmp_path), "items-1")


@pytest.fixture
def nobody() -> Iterator[str]:
    """The address of a port that refuses."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}"


def test_a_server_that_is_not_there_is_unavailable(nobody: str) -> None:
    with pytest.raises(IndexUnavailableError, match=r"an answer from Qdrant.*items-1"):
        QdrantIndex(nobody, "items-1")


def test_a_server_that_never_answers_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        url = f"http://127.0.0.1:{sock.getsockname()[1]}"
        with pytest.raises(IndexUnavailableError, match="timed out"):
            QdrantIndex(url, "items-1", QdrantConfig(timeout_s=0.5))


class Stub(BaseHTTPRequestHandler):
    """Has a collection of width 3, refuses rows, and answers searches when it is let."""

    answer = threading.Event()
    status = 503
    searches = 0

    def do_GET(self) -> None:
        vectors = {"size": 3, "distance": "Dot"}
        config = {
            "params": {"vectors": vectors},
            "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
            "optimizer_config": {"deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0,
                                 "flush_interval_sec": 5},
        }  # fmt: skip
        about = {"status": "green", "optimizer_status": "ok", "segments_count": 1, "config": config, "payload_schema": {}}
        self._send(200, {"exists": True} if self.path.endswith("/exists") else about)

    def do_POST(self) -> None:
        type(self).searches += 1
        self.answer.wait(30)
        self._send(200, {"points": [{"id": 7, "version": 1, "score": 0.5}]})

    def do_PUT(self) -> None:
        self._send(self.status, None)

    def _send(self, status: int, result: object) -> None:
        self.rfile.read(int(self.headers.get("content-length", 0)))
        body = json.dumps({"result": result, "status": "ok", "time": 0.0}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def stub() -> Iterator[tuple[QdrantIndex, type[Stub]]]:
    handler = type("Stub", (Stub,), {"answer": threading.Event()})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        index = QdrantIndex(f"http://127.0.0.1:{server.server_address[1]}", "items-1", QdrantConfig(retry_s=100.0))
        yield index, handler
        index.close()
        handler.answer.set()
        server.shutdown()
        thread.join()


def test_a_search_waits_no_longer_than_its_deadline(
    stub: tuple[QdrantIndex, type[Stub]], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, handler = stub
    with pytest.raises(IndexUnavailableError, match="timed out"):
        index.search(np.ones(3, np.float32), 1, deadline_s=0.05)
    handler.answer.set()
    monkeypatch.setattr("pocketrank.cloud.vectors.qdrant.monotonic", lambda: monotonic() + 101)
    found = index.search(np.ones(3, np.float32), 1, deadline_s=30.0)
    assert (found.ids.tolist(), found.scores.tolist()) == ([7], [0.5])


def test_one_search_waits_for_a_server_that_hangs_and_the_others_fail_at_once(
    stub: tuple[QdrantIndex, type[Stub]], monkeypatch: pytest.MonkeyPatch
) -> None:
    index, handler = stub
    ahead_s = [0.0]
    monkeypatch.setattr("pocketrank.cloud.vectors.qdrant.monotonic", lambda: monotonic() + ahead_s[0])
    for _ in range(3):
        before = handler.searches
        with pytest.raises(IndexUnavailableError, match="timed out"):
            index.search(np.ones(3, np.float32), 1, deadline_s=0.05)
        for _ in range(20):
            with pytest.raises(IndexUnavailableError, match="none a moment ago"):
                index.search(np.ones(3, np.float32), 1, deadline_s=30.0)
        assert handler.searches == before + 1
        ahead_s[0] += 101
    handler.answer.set()
    for _ in range(3):
        assert index.search(np.ones(3, np.float32), 1, deadline_s=30.0).ids.tolist() == [7]


@pytest.mark.parametrize(
    ("status", "kind"), [(503, IndexUnavailableError), (429, IndexUnavailableError), (400, RetrievalError)]
)
def test_a_server_that_refuses_rows_is_told_from_one_that_is_unwell(
    stub: tuple[QdrantIndex, type[Stub]], status: int, kind: type[Exception]
) -> None:
    index, handler = stub
    handler.status = status
    with pytest.raises(RetrievalError, match="an answer from Qdrant") as caught:
        index.upsert(np.arange(1), np.ones((1, 3)), Attributes.unknown(1))
    assert caught.type is kind
