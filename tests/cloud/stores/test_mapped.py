import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cloud.stores.base import StoreConfigError, StoreError, StoreWriteError, UnknownVersionError
from pocketrank.cloud.stores.mapped import MappedStore
from pocketrank.cloud.stores.table import TableConfig
from tests.cloud.stores.conformance import StoreConformance, constant_rows, scanned
from tests.cloud.stores.test_memory import Clock

TIGHT = TableConfig(grace_rows=512, chunk_rows=128, rows_min=8)
"""Little room and grace, so that every test makes tables grow and reuses rows."""

ROOT = Path(__file__).parents[3]

_COMMON = """
import sys
from pathlib import Path
import numpy as np
from pocketrank.cloud.stores.mapped import MappedStore
from pocketrank.cloud.stores.table import TableConfig
store = MappedStore(Path(sys.argv[1]), TableConfig(grace_rows=512, chunk_rows=128, rows_min=8))
def constant(values):
    return np.repeat(np.asarray(values, np.float16)[:, None], 16, axis=1)
"""

_WRITER = (
    _COMMON
    + """
start = int(sys.argv[2])
store.create("v", 16)
for turn in range(start, 10**6):
    store.put("v", np.arange(200), constant(np.full(200, turn % 2000)))
    more = np.arange(1000, 1000 + 37 * (turn % 50))
    store.put("v", more, constant(more % 2000)) if turn % 2 else store.delete("v", more)
    print(turn, flush=True)
"""
)

_READER = (
    _COMMON
    + """
rng, reads, ids = np.random.default_rng(), 0, np.arange(200)
print("ready", flush=True)
while True:
    got = store.get("v", rng.integers(0, 200, 60))
    if not got.found.all() or (got.vectors != got.vectors[:, :1]).any():
        print("torn", got, flush=True)
        sys.exit(1)
    reads += 1
    if got.vectors.max() >= 1999:
        print(reads)
        sys.exit(0)
"""
)


def python(script: str, *arguments: object, **options: object) -> "subprocess.Popen[str]":
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


class TestMappedStore(StoreConformance):
    @pytest.fixture
    def store(self, tmp_path: Path, clock: Clock) -> Iterator[MappedStore]:
        opened = MappedStore(tmp_path / "tables", TIGHT, clock)
        yield opened
        opened.close()

    @pytest.fixture
    def clock(self) -> Clock:
        return Clock()

    @pytest.fixture
    def let_expire(self, clock: Clock) -> Callable[[], None]:
        def passes() -> None:
            clock.now += self.TTL_S + 1

        return passes


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "tables"


def test_tables_are_kept_after_closing(folder: Path) -> None:
    store = MappedStore(folder, TIGHT)
    ids = np.arange(3000) * 7919
    store.create("v", 16, ttl_s=1e6)
    store.put("v", ids, constant_rows(ids % 1999))
    store.delete("v", ids[::3])
    before, kept = store.versions(), scanned(store, "v")
    store.close()
    again = MappedStore(folder, TIGHT)
    assert again.versions() == before
    assert scanned(again, "v") == kept
    again.put("v", ids, constant_rows(ids % 1777))
    assert again.get("v", ids).vectors.tobytes() == constant_rows(ids % 1777).tobytes()
    again.close()


def test_a_second_writer_is_rejected_and_readers_are_not(folder: Path) -> None:
    writer, other = MappedStore(folder, TIGHT), MappedStore(folder, TIGHT)
    writer.create("v", 16)
    writer.put("v", np.arange(3), constant_rows(np.arange(3)))
    assert other.get("v", np.arange(3)).found.all()
    for call in (
        lambda: other.create("w", 16),
        lambda: other.put("v", np.arange(3), constant_rows(np.arange(3))),
        lambda: other.delete("v", np.arange(3)),
        lambda: other.drop("v"),
    ):
        with pytest.raises(StoreWriteError, match="another process"):
            call()
    writer.close()
    other.put("v", np.arange(3, 6), constant_rows(np.arange(3, 6)))
    assert other.get("v", np.arange(6)).found.all()
    other.close()


def test_a_reader_follows_growth_drop_and_a_new_table(folder: Path) -> None:
    writer, reader = MappedStore(folder, TIGHT), MappedStore(folder, TIGHT)
    with pytest.raises(UnknownVersionError):
        reader.get("v", np.arange(1))
    writer.create("v", 16)
    assert not reader.get("v", np.arange(1)).found.any()
    for size in (10, 3000, 9000):
        writer.put("v", np.arange(size), constant_rows(np.arange(size) % 1999))
        assert reader.get("v", np.arange(size)).vectors.tobytes() == constant_rows(np.arange(size) % 1999).tobytes()
    assert len(list((folder / "v-v").iterdir())) == 1
    writer.drop("v")
    with pytest.raises(UnknownVersionError):
        reader.get("v", np.arange(1))
    writer.create("v", 8)
    assert reader.get("v", np.arange(1)).vectors.shape == (1, 8)
    writer.close()
    reader.close()


def test_another_process_reads_whole_rows_while_they_change(folder: Path) -> None:
    writer = MappedStore(folder, TIGHT)
    width = 512  # so long that a copy of it is easily overtaken
    writer.create("v", width)
    writer.put("v", np.arange(200), constant_rows(np.zeros(200, np.int64), width))
    with python(_READER, folder) as reader:
        assert reader.stdout is not None
        assert reader.stdout.readline() == "ready\n"
        for turn in range(400):
            writer.put("v", np.arange(200), constant_rows(np.full(200, turn), width))
            if turn % 50 == 0:
                more = np.arange(1000, 1000 + 20 * turn)
                writer.put("v", more, constant_rows(more % 1999, width))
        writer.put("v", np.arange(200), constant_rows(np.full(200, 1999), width))
        output = reader.stdout.read()
        assert reader.wait(60) == 0, output
        assert int(output) > 0
    writer.close()


def test_a_writer_killed_at_any_moment_leaves_whole_rows(folder: Path) -> None:
    rng, turn = random.Random(0), 0
    for _ in range(8):
        with python(_WRITER, folder, turn + 1) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randrange(1, 60)):
                turn = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
            turn = max([turn, *map(int, writer.stdout.read().split())])
        reader = MappedStore(folder, TIGHT)
        got = reader.get("v", np.arange(200))
        assert got.found.all()
        assert not (got.vectors != got.vectors[:, :1]).any()
        # All rows of the last reported turn are there; of the next turn there may be any part.
        assert set(got.vectors[:, 0].tolist()) <= {turn % 2000, (turn + 1) % 2000}
        reader.close()
        after = MappedStore(folder, TIGHT)
        after.put("v", np.array([5000]), constant_rows(np.array([1])))
        kept = scanned(after, "v")
        assert after.versions()["v"].rows == len(kept)
        for id_, row in kept.items():
            values = set(np.frombuffer(row, np.float16).tolist())
            assert len(values) == 1
            assert id_ < 200 or id_ == 5000 or values == {id_ % 2000}
        after.delete("v", np.array([5000]))
        after.close()


def test_a_killed_writer_lets_another_one_write(folder: Path) -> None:
    with python(_WRITER, folder, 0) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        other = MappedStore(folder, TIGHT)
        with pytest.raises(StoreWriteError):
            other.drop("v")
        writer.kill()
    other.drop("v")
    assert other.versions() == {}
    other.close()


_FULL = (
    _COMMON
    + """
import resource
store.create("v", 16)
store.put("v", np.arange(200), constant(np.arange(200)))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    store.put("v", np.arange(10**5), constant(np.zeros(10**5)))
except Exception as error:
    print(type(error).__name__)
store.put("v", np.arange(100), constant(np.arange(100) + 1))
got = store.get("v", np.arange(200))
print(got.found.all() and got.vectors[:, 3].tolist() == [i + 1 if i < 100 else i for i in range(200)])
print(store.versions()["v"].rows)
"""
)


def test_a_full_disk_rejects_rows_and_keeps_earlier_ones(folder: Path) -> None:
    with python(_FULL, folder) as writer:
        assert writer.stdout is not None
        assert writer.stdout.read().split() == ["StoreWriteError", "True", "200"]
    assert [path.suffix for path in (folder / "v-v").iterdir()] == [".rows"]


@pytest.mark.parametrize("damage", ["empty", "short", "foreign", "huge"])
def test_a_damaged_table_is_an_error(folder: Path, damage: str) -> None:
    store = MappedStore(folder, TIGHT)
    store.create("v", 16)
    store.close()
    path = next((folder / "v-v").glob("*.rows"))
    whole = path.read_bytes()
    huge = whole[:8] + (2**60).to_bytes(8, "little") + whole[16:]
    path.write_bytes({"empty": b"", "short": whole[:-1], "foreign": b"x" * len(whole), "huge": huge}[damage])
    again = MappedStore(folder, TIGHT)
    with pytest.raises(StoreError, match="a table of embeddings"):
        again.get("v", np.arange(3))
    again.create("w", 16)
    assert list(again.versions()) == ["w"]
    again.drop("v")
    again.create("v", 16)
    assert list(again.versions()) == ["v", "w"]
    again.close()


_FORK = (
    _COMMON
    + """
import os
store.create("v", 16)
store.put("v", np.arange(20), constant(np.arange(20)))
if os.fork() == 0:
    print("child", store.get("v", np.arange(20)).found.all())
    try:
        store.put("v", np.arange(20), constant(np.arange(20)))
    except Exception as error:
        print(type(error).__name__, flush=True)
    os._exit(0)
os.wait()
store.put("v", np.arange(40), constant(np.arange(40)))
print("parent", store.get("v", np.arange(40)).found.all())
"""
)


def test_a_fork_of_the_writer_is_not_the_writer(folder: Path) -> None:
    with python(_FORK, folder) as writer:
        assert writer.stdout is not None
        assert writer.stdout.read().split() == ["child", "True", "StoreWriteError", "parent", "True"]


def test_a_folder_that_cannot_be_made_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreConfigError):
        MappedStore(tmp_path / "file")
