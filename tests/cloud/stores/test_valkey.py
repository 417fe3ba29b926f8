import os
import signal
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from valkey.crc import key_slot

from pocketrank.cloud.stores.base import EmbeddingStore, StoreError, StoreUnavailableError, StoreWriteError, UnknownVersionError
from pocketrank.cloud.stores.opening import open_store
from pocketrank.cloud.stores.valkey import ValkeyStore
from tests.cloud.stores.conformance import StoreConformance, constant_rows, scanned
from tests.valkey import ValkeyCluster, ValkeyServer, valkey_cluster, valkey_server, wait_until

IDS = np.arange(300)
ROWS = constant_rows(IDS)


@pytest.fixture(scope="module")
def server() -> Iterator[ValkeyServer]:
    with valkey_server() as started:
        yield started


@pytest.fixture(scope="module")
def cluster() -> Iterator[ValkeyCluster]:
    with valkey_cluster() as started:
        yield started


def flush(*servers: ValkeyServer) -> None:
    for server in servers:
        with server.client() as client:
            client.flushall()


def keys(*servers: ValkeyServer) -> set[bytes]:
    found: set[bytes] = set()
    for server in servers:
        with server.client() as client:
            found |= set(client.keys())
    return found


class Remote(StoreConformance):
    TTL_S = 2.0

    @pytest.fixture
    def let_expire(self, store: EmbeddingStore) -> Callable[[], None]:
        return lambda: wait_until(lambda: "short" not in store.versions(), "the expiry of the version")


class TestValkeyStore(Remote):
    @pytest.fixture
    def store(self, server: ValkeyServer) -> Iterator[EmbeddingStore]:
        flush(server)
        opened = open_store(server.url)
        yield opened
        opened.close()

    def test_a_version_leaves_no_keys_behind(self, server: ValkeyServer, store: EmbeddingStore) -> None:
        store.create("v", 16, ttl_s=0.2)
        store.put("v", IDS, ROWS)
        assert len(keys(server)) == 3
        wait_until(lambda: keys(server) == {b"pr:versions"}, "the end of all keys")
        assert store.versions() == {}
        assert keys(server) == set()
        store.create("w", 16)
        store.put("w", IDS, ROWS)
        store.drop("w")
        assert keys(server) == set()


class TestValkeyClusterStore(Remote):
    @pytest.fixture
    def store(self, cluster: ValkeyCluster) -> Iterator[EmbeddingStore]:
        flush(*cluster.nodes)
        opened = open_store(cluster.url)
        yield opened
        opened.close()

    def test_rows_are_on_all_nodes_and_leave_no_keys_behind(self, cluster: ValkeyCluster, store: EmbeddingStore) -> None:
        store.create("v", 16, ttl_s=0.5)
        store.put("v", np.arange(2000), constant_rows(np.arange(2000)))
        counts = [len(keys(node)) for node in cluster.nodes]
        assert min(counts) >= 4
        wait_until(lambda: keys(*cluster.nodes) == {b"pr:versions"}, "the end of all keys")

    def test_a_slot_that_moves_to_another_node_is_followed(self, cluster: ValkeyCluster, store: EmbeddingStore) -> None:
        store.create("v", 16)
        store.put("v", IDS, ROWS)
        source, target = cluster.nodes[:2]
        key = sorted(k for k in keys(source) if k.startswith(b"pr:v:"))[0]
        slot = key_slot(key)
        with source.client() as one, target.client() as two:
            names = [client.execute_command("CLUSTER MYID") for client in (one, two)]
            two.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", names[0])
            one.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", names[1])
            try:
                assert store.get("v", IDS).vectors.tobytes() == ROWS.tobytes()
                one.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
                assert store.get("v", IDS).vectors.tobytes() == ROWS.tobytes()  # ASK
                store.put("v", IDS, ROWS + 1)
                assert store.get("v", IDS).vectors.tobytes() == (ROWS + 1).tobytes()
            finally:
                for client in (two, one):
                    client.execute_command("CLUSTER SETSLOT", slot, "NODE", names[1])
        other = open_store(cluster.url)
        for reader in (store, other):
            assert reader.get("v", IDS).vectors.tobytes() == (ROWS + 1).tobytes()  # MOVED
        assert len(scanned(store, "v")) == len(IDS)
        other.close()


def test_another_process_sees_a_drop_and_a_new_table(server: ValkeyServer) -> None:
    flush(server)
    here, there = open_store(server.url), open_store(server.url)
    here.create("v", 16)
    here.put("v", IDS, ROWS)
    assert there.get("v", IDS).found.all()
    here.drop("v")
    with pytest.raises(UnknownVersionError):
        there.get("v", IDS)
    here.create("v", 16)
    here.put("v", IDS, ROWS)
    assert there.get("v", IDS).found.all()
    here.drop("v")
    here.create("v", 4)
    here.put("v", IDS, ROWS[:, :4])
    assert there.get("v", IDS).vectors.tobytes() == ROWS[:, :4].tobytes()
    here.close()
    there.close()


@pytest.mark.parametrize("kind", ["single", "cluster"])
def test_a_dead_server_is_an_error_and_is_used_again_after_a_restart(kind: str) -> None:
    with valkey_server() if kind == "single" else valkey_cluster() as servers:
        store = open_store(servers.url)
        store.create("v", 16)
        store.put("v", IDS, ROWS)
        servers.kill()
        for call in (
            lambda: store.get("v", IDS, deadline_s=5),
            lambda: store.put("v", IDS, ROWS),
            lambda: store.create("w", 16),
            store.versions,
        ):
            with pytest.raises(StoreUnavailableError):
                call()
        servers.restart()
        with pytest.raises(UnknownVersionError):  # nothing is kept on disk
            store.get("v", IDS)
        store.create("v", 16)
        store.put("v", IDS, ROWS)
        assert store.get("v", IDS).vectors.tobytes() == ROWS.tobytes()
        store.close()


def test_a_restart_between_two_calls_is_not_noticed() -> None:
    with valkey_server() as server:
        store = open_store(server.url)
        store.create("v", 16)
        server.restart()
        store.create("v", 16)
        store.put("v", IDS, ROWS)
        assert store.get("v", IDS).found.all()
        store.close()


def test_a_dead_node_of_a_cluster_fails_the_calls_that_need_it() -> None:
    with valkey_cluster() as cluster:
        store = open_store(cluster.url)
        store.create("v", 16)
        store.put("v", IDS, ROWS)
        cluster.nodes[1].kill()
        with pytest.raises(StoreUnavailableError):
            store.get("v", IDS)
        cluster.nodes[1].restart()
        cluster.wait()
        wait_until(lambda: not store.get("v", IDS).found.all(), "an answer")
        store.put("v", IDS, ROWS)
        assert store.get("v", IDS).found.all()
        store.close()


def test_a_server_that_hangs_does_not_hold_a_reader_past_its_deadline() -> None:
    with valkey_server() as server:
        store = open_store(server.url)
        store.create("v", 16)
        store.put("v", IDS, ROWS)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            for deadline_s in (0.05, 0.0, -1.0):
                with pytest.raises(StoreUnavailableError, match="none in time"):
                    store.get("v", IDS, deadline_s=deadline_s)
            fresh = open_store(server.url)
            with pytest.raises(StoreUnavailableError, match="none in time"):
                fresh.get("v", IDS, deadline_s=0.05)
            fresh.close()
            assert time.monotonic() - began < 30  # not the minutes of a socket that waits for ever
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        assert store.get("v", IDS, deadline_s=10).vectors.tobytes() == ROWS.tobytes()
        store.close()


def test_a_server_without_memory_rejects_rows() -> None:
    with valkey_server(["--maxmemory", "3mb", "--maxmemory-policy", "noeviction"]) as server:
        store = open_store(server.url)
        store.create("v", 1024)
        store.put("v", np.arange(50), np.ones((50, 1024), np.float16))
        with pytest.raises(StoreWriteError, match="maxmemory"):
            store.put("v", np.arange(10_000), np.ones((10_000, 1024), np.float16))
        assert store.get("v", np.arange(50)).found.all()
        store.close()


def test_a_password_is_required_and_is_in_no_error() -> None:
    with valkey_server(["--requirepass", "se/cret@1"]) as server:
        url = server.url.replace("//", "//:se%2Fcret%401@")
        store = open_store(url)
        store.create("v", 16)
        store.put("v", IDS, ROWS)
        assert store.get("v", IDS).found.all()
        wrong = open_store(server.url.replace("//", "//default:another@"))
        with pytest.raises(StoreError) as caught:
            wrong.get("v", IDS)
        server.kill()
        with pytest.raises(StoreUnavailableError) as late:
            store.get("v", IDS)
        assert "another" not in str(caught.value)
        assert "cret" not in str(late.value)
        store.close()
        wrong.close()


def test_databases_are_separate(server: ValkeyServer) -> None:
    flush(server)
    zero, three = open_store(server.url), open_store(server.url.removesuffix("/0") + "/3")
    zero.create("v", 16)
    assert three.versions() == {}
    zero.close()
    three.close()


def test_a_single_server_is_rejected_as_a_cluster(server: ValkeyServer) -> None:
    store = open_store(f"valkey-cluster://127.0.0.1:{server.port}")
    assert isinstance(store, ValkeyStore)
    with pytest.raises(StoreError, match="a cluster"):
        store.get("v", IDS)
    store.close()
