from pathlib import Path

import pytest

from pocketrank.cloud.stores.base import StoreConfigError
from pocketrank.cloud.stores.mapped import MappedStore
from pocketrank.cloud.stores.memory import MemoryStore
from pocketrank.cloud.stores.opening import open_store
from pocketrank.cloud.stores.valkey import ValkeyStore


def test_a_url_names_a_store(tmp_path: Path) -> None:
    assert isinstance(open_store("memory:"), MemoryStore)
    mapped = open_store(f"mmap:{tmp_path}/a b")
    assert isinstance(mapped, MappedStore)
    assert (tmp_path / "a b").is_dir()


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("valkey://host", "valkey://host:6379/0"),
        ("valkey://host:1/2", "valkey://host:1/2"),
        ("valkey://user:pass@host:1/2", "valkey://host:1/2"),
        ("valkeys://:pass@host", "valkeys://host:6379/0"),
        ("valkey-cluster://a:1,b:2,c", "valkey-cluster://a:1,b:2,c:6379"),
        ("valkeys-cluster://user:pass@a:1,b:2", "valkeys-cluster://a:1,b:2"),
        ("valkey-cluster://[::1]:1", "valkey-cluster://::1:1"),
    ],
)
def test_servers_are_named_without_secrets(url: str, where: str) -> None:
    store = open_store(url)
    assert isinstance(store, ValkeyStore)
    assert store.where == where
    store.close()


@pytest.mark.parametrize(
    "url",
    [
        "", "memory", "memory:x", "mmap:", "redis://host", "valkey:host", "valkey://", "valkey://:secret@", "valkey://a,b",
        "valkey://host:port", "valkey://host:secret@/0", "valkey://host:70000", "valkey://host/x", "valkey://host/-1",
        "valkey-cluster://a:1,b:2/3", "valkey-cluster://a,,b", "valkey-cluster://", "secret://x",
    ],
)  # fmt: skip
def test_a_url_without_a_store_is_rejected(url: str) -> None:
    with pytest.raises(StoreConfigError) as caught:
        open_store(url)
    if "://:secret" in url or ":secret@" in url:
        assert "secret" not in str(caught.value)
