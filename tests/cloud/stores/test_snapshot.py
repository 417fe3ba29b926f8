import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cloud.stores.base import SnapshotError, StoreError, StoreInputError, StoreWriteError, UnknownVersionError
from pocketrank.cloud.stores.mapped import MappedStore
from pocketrank.cloud.stores.memory import MemoryStore
from pocketrank.cloud.stores.opening import open_store
from pocketrank.cloud.stores.snapshot import SnapshotInfo, load_snapshot, save_snapshot
from tests.cloud.stores.conformance import constant_rows, scanned
from tests.cloud.stores.test_mapped import python
from tests.valkey import valkey_server

IDS = np.arange(-500, 2500)
HEADER = 1024


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    made.create("v", 16)
    made.put("v", IDS, constant_rows(IDS % 1999))
    return made


@pytest.fixture
def path(store: MemoryStore, tmp_path: Path) -> Path:
    save_snapshot(store, "v", tmp_path / "v.snapshot")
    return tmp_path / "v.snapshot"


def test_a_snapshot_goes_from_store_to_store(store: MemoryStore, path: Path, tmp_path: Path) -> None:
    whole = scanned(store, "v")
    mapped = open_store(f"mmap:{tmp_path / 'tables'}")
    assert load_snapshot(mapped, path) == SnapshotInfo(version="v", width=16, rows=3000)
    assert scanned(mapped, "v") == whole
    with valkey_server() as server:
        remote = open_store(server.url)
        save_snapshot(mapped, "v", path)
        load_snapshot(remote, path, ttl_s=1000)
        assert scanned(remote, "v") == whole
        assert remote.versions()["v"].expires_s is not None
        save_snapshot(remote, "v", path)
        remote.close()
    back = MemoryStore()
    load_snapshot(back, path)
    assert scanned(back, "v") == whole
    mapped.close()


def test_an_empty_table_has_a_snapshot(tmp_path: Path) -> None:
    empty, other = MemoryStore(), MemoryStore()
    empty.create("v", 3)
    save_snapshot(empty, "v", tmp_path / "empty")
    load_snapshot(other, tmp_path / "empty")
    assert other.versions() == empty.versions()


def test_no_version_no_snapshot(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(UnknownVersionError):
        save_snapshot(store, "w", tmp_path / "w")
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_is_there_is_replaced_only_when_asked(store: MemoryStore, path: Path) -> None:
    whole = scanned(store, "v")
    store.put("v", np.array([10**6]), constant_rows(np.array([1])))
    with pytest.raises(StoreInputError, match="does not have"):
        load_snapshot(store, path)
    assert store.versions()["v"].rows == 3001
    load_snapshot(store, path, replace=True)
    assert scanned(store, "v") == whole


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda data: b"",
    "header cut off": lambda data: data[:500],
    "rows cut off": lambda data: data[:-1],
    "no rows": lambda data: data[:HEADER],
    "longer": lambda data: data + b"\0",
    "foreign": lambda data: b"\x89PNG\r\n\x1a\n" + data[8:],
    "another format": lambda data: data.replace(b"PRsnap01", b"PRsnap02"),
    "a bit of a row": lambda data: data[:5000] + bytes([data[5000] ^ 1]) + data[5001:],
    "a bit of an id": lambda data: data[:HEADER] + bytes([data[HEADER] ^ 1]) + data[HEADER + 1 :],
    "another version": lambda data: data.replace(b'"version":"v"', b'"version":"w"'),
    "another checksum": lambda data: data.replace(b'"sha256":"', b'"sha256":"0').replace(b'"}  ', b'"} ', 1),
    "half the width": lambda data: data.replace(b'"width":16', b'"width":8 '),
    "other rows of the same size": lambda data: data.replace(b'"width":16', b'"width":1 ').replace(
        b'"rows":3000', b'"rows":12000'
    ),
    "a huge claim": lambda data: data.replace(b'"rows":3000', b'"rows":3000000000000'),
    "a claim past 64 bits": lambda data: data.replace(b'"rows":3000', b'"rows":' + b"9" * 40),
    "less than no rows": lambda data: data.replace(b'"rows":3000', b'"rows":-1'),
    "no JSON": lambda data: data[:8] + b"\xff" * (HEADER - 8) + data[HEADER:],
    "another field": lambda data: data.replace(b'"rows":3000', b'"rows":3000,"x":1'),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_snapshot_is_refused_and_changes_nothing(path: Path, damage: str) -> None:
    data = path.read_bytes()
    changed = DAMAGES[damage](data)
    assert changed != data
    path.write_bytes(changed[:HEADER].ljust(HEADER)[:HEADER] + changed[HEADER:] if len(changed) > HEADER else changed)
    other = MemoryStore()
    other.create("v", 16)
    other.put("v", IDS[:5], constant_rows(IDS[:5]))
    before = scanned(other, "v")
    with pytest.raises(SnapshotError):
        load_snapshot(other, path, replace=True)
    assert list(other.versions()) == ["v"]
    assert scanned(other, "v") == before


def test_what_is_not_there_is_no_snapshot(store: MemoryStore, tmp_path: Path) -> None:
    with pytest.raises(SnapshotError):
        load_snapshot(store, tmp_path / "none")
    with pytest.raises(SnapshotError):
        save_snapshot(store, "v", tmp_path / "no folder" / "v")


_FULL = """
import sys, resource
from pathlib import Path
import numpy as np
from pocketrank.cloud.stores.memory import MemoryStore
from pocketrank.cloud.stores.mapped import MappedStore
from pocketrank.cloud.stores.snapshot import load_snapshot, save_snapshot
folder = Path(sys.argv[1])
memory, mapped = MemoryStore(), MappedStore(folder / "tables")
load_snapshot(memory, folder / "v.snapshot")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for call in (lambda: save_snapshot(memory, "v", folder / "v.snapshot"), lambda: load_snapshot(mapped, folder / "v.snapshot")):
    try:
        call()
    except Exception as error:
        print(type(error).__name__)
print(mapped.versions())
"""


def test_a_full_disk_leaves_the_snapshot_before_and_no_version(path: Path) -> None:
    before = path.read_bytes()
    with python(_FULL, path.parent, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        assert process.stdout.read().split() == [SnapshotError.__name__, StoreWriteError.__name__, "{}"]
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.glob("*.part")] == []


def test_a_store_that_fails_in_between_has_no_half_a_version(path: Path, tmp_path: Path) -> None:
    writer = MappedStore(tmp_path / "tables")
    writer.create("w", 1)
    other = MappedStore(tmp_path / "tables")
    with pytest.raises(StoreError):
        load_snapshot(other, path)
    assert list(other.versions()) == ["w"]
    writer.close()
