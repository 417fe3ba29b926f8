"""Qdrant by its client's local mode, which shares the client's models and filters with a server but not its wire, its graph,
its shards or its payload indexes: no Qdrant server can be had where this was written, so none of those is tested. Of the wire
there is only a server that is not there, and one that accepts and never answers."""

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from cloud.retrieval.index import Attributes, IndexConfigError, IndexUnavailableError
from cloud.retrieval.qdrant import QdrantIndex
from cloud.retrieval.qdrant_config import QdrantConfig
from tests.cloud.retrieval.clusters import attributes, vectors


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
    with pytest.raises(Exception, match="a width of 16"):
        again.upsert(np.arange(1), np.ones((1, 3)), Attributes.unknown(1))
    again.close()


def test_versions_do_not_meet(tmp_path: Path) -> None:
    url = str(tmp_path / "qdrant")
    for version, width in (("1", 3), ("2", 4)):
        index = QdrantIndex(url, f"items-{version}")
        index.upsert(np.arange(2), np.eye(2, width), Attributes.unknown(2))
        index.close()
    first = QdrantIndex(url, "items-1")
    first.drop()
    assert len(first) == 0
    first.close()
    second = QdrantIndex(url, "items-2")
    assert len(second) == 2
    second.close()


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
