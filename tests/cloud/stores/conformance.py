"""Conformance tests of embedding stores, for every backend.

The tests of a backend inherit `StoreConformance` and provide the fixtures `store` and `let_expire`, a function that returns
after more than `TTL_S` seconds of the store's clock.
"""

from collections.abc import Callable
from itertools import count
from threading import Event, Thread

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pocketrank.cloud.stores.base import EmbeddingStore, StoreInputError, TableInfo, UnknownVersionError

__all__ = ["StoreConformance", "constant_rows", "scanned"]

WIDTH = 16
EXTREMES = np.array([0, -1, 1, np.iinfo(np.int64).min, np.iinfo(np.int64).max, -(2**40), 2**40], np.int64)

_names = count()


def ints(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


def rows(n: int, seed: int = 0, width: int = WIDTH) -> NDArray[np.float16]:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float16)


def constant_rows(values: NDArray[np.int64], width: int = WIDTH) -> NDArray[np.float16]:
    """Return rows of one value each: a torn row has two values."""
    return np.repeat(values.astype(np.float16)[:, None], width, axis=1)


def scanned(store: EmbeddingStore, version: str) -> dict[int, bytes]:
    """Return all rows of a scan by id; it must have each id once."""
    found: dict[int, bytes] = {}
    for ids, vectors in store.scan(version):
        assert ids.dtype == np.int64
        assert vectors.dtype == np.float16
        assert len(ids) == len(vectors) > 0
        for id_, vector in zip(ids.tolist(), vectors, strict=True):
            assert id_ not in found
            found[id_] = vector.tobytes()
    return found


class StoreConformance:
    TTL_S = 60.0
    """Time to live of versions in the tests of expiry."""

    @pytest.fixture
    def version(self, store: EmbeddingStore) -> str:
        """A new version `WIDTH` wide."""
        store.create("v1", WIDTH)
        return "v1"

    def test_rows_come_back_bit_by_bit_in_the_order_asked(self, store: EmbeddingStore, version: str) -> None:
        ids, vectors = np.arange(100, 400), rows(300)
        vectors[7] = np.nan
        vectors[8, ::2], vectors[8, 1::2] = np.inf, -np.inf
        vectors[9] = -0.0
        store.put(version, ids, vectors)
        shuffled = np.random.default_rng(1).permutation(300)
        got = store.get(version, ids[shuffled])
        assert got.found.all()
        assert (got.vectors.dtype, got.vectors.shape) == (np.float16, (300, WIDTH))
        assert got.vectors.tobytes() == vectors[shuffled].tobytes()

    def test_any_int64_is_an_id(self, store: EmbeddingStore, version: str) -> None:
        assert not store.get(version, EXTREMES).found.any()
        vectors = rows(len(EXTREMES))
        store.put(version, EXTREMES, vectors)
        got = store.get(version, EXTREMES[::-1])
        assert got.found.all()
        assert got.vectors.tobytes() == vectors[::-1].tobytes()
        assert scanned(store, version) == {i: v.tobytes() for i, v in zip(EXTREMES.tolist(), vectors, strict=True)}

    def test_an_unknown_id_is_zeros_and_not_found(self, store: EmbeddingStore, version: str) -> None:
        store.put(version, ints(1, 2), rows(2) + 1)
        got = store.get(version, ints(3, 1, -1, 2, 2**62))
        assert got.found.tolist() == [False, True, False, True, False]
        assert not got.vectors[~got.found].any()
        none = store.get(version, ints(5, 6))
        assert not none.found.any()
        assert none.vectors.shape == (2, WIDTH)
        assert not none.vectors.any()

    def test_no_ids_are_no_rows(self, store: EmbeddingStore, version: str) -> None:
        got = store.get(version, ints())
        assert (got.vectors.shape, got.found.shape) == ((0, WIDTH), (0,))
        store.put(version, ints(), np.zeros((0, WIDTH), np.float16))
        store.delete(version, ints())
        assert store.versions() == {version: TableInfo(WIDTH, 0, None)}
        assert scanned(store, version) == {}

    def test_repeats_are_read_each_time_and_written_the_last_time(self, store: EmbeddingStore, version: str) -> None:
        vectors = rows(4)
        store.put(version, ints(5, 6, 5, 5), vectors)
        got = store.get(version, ints(5, 5, 6, 5))
        assert got.vectors.tobytes() == vectors[[3, 3, 1, 3]].tobytes()
        store.delete(version, ints(5, 5))
        assert store.get(version, ints(5, 6)).found.tolist() == [False, True]

    def test_rows_are_replaced_and_deleted(self, store: EmbeddingStore, version: str) -> None:
        ids, first, second = np.arange(50), rows(50, 1), rows(50, 2)
        store.put(version, ids, first)
        store.put(version, ids[:20], second[:20])
        store.delete(version, np.arange(10, 30))
        store.delete(version, ints(999))
        got = store.get(version, ids)
        assert got.found.tolist() == [i < 10 or i >= 30 for i in range(50)]
        assert got.vectors[:10].tobytes() == second[:10].tobytes()
        assert got.vectors[30:].tobytes() == first[30:].tobytes()
        store.put(version, ints(15), second[15:16])
        assert store.get(version, ints(15)).vectors.tobytes() == second[15].tobytes()
        assert store.versions()[version].rows == len(scanned(store, version)) == 31

    def test_other_floats_are_rounded_to_fp16(self, store: EmbeddingStore, version: str) -> None:
        vectors = np.linspace(-3, 3, WIDTH, dtype=np.float64)[None]
        store.put(version, ints(1), vectors)
        assert store.get(version, ints(1)).vectors.tobytes() == vectors.astype(np.float16).tobytes()

    def test_a_table_larger_than_any_batch(self, store: EmbeddingStore, version: str) -> None:
        ids = np.random.default_rng(3).choice(2**50, 6000, replace=False) - 2**49
        vectors = rows(6000)
        for part in np.array_split(np.arange(6000), 7):
            store.put(version, ids[part], vectors[part])
        got = store.get(version, ids)
        assert got.found.all()
        assert got.vectors.tobytes() == vectors.tobytes()
        assert scanned(store, version) == {i: v.tobytes() for i, v in zip(ids.tolist(), vectors, strict=True)}
        assert store.versions()[version].rows == 6000

    def test_versions_are_separate(self, store: EmbeddingStore) -> None:
        store.create("a", 4)
        store.create("b.2", 8)
        store.put("a", ints(1), rows(1, width=4))
        store.put("b.2", ints(1, 2), rows(2, width=8))
        assert store.versions() == {"a": TableInfo(4, 1, None), "b.2": TableInfo(8, 2, None)}
        store.drop("a")
        assert store.versions() == {"b.2": TableInfo(8, 2, None)}
        assert store.get("b.2", ints(1)).found.all()
        store.create("a", 6)
        assert not store.get("a", ints(1)).found.any()
        assert store.get("a", ints(1)).vectors.shape == (1, 6)

    def test_create_keeps_what_is_there(self, store: EmbeddingStore, version: str) -> None:
        store.put(version, ints(1), rows(1))
        store.create(version, WIDTH)
        assert store.get(version, ints(1)).found.all()
        with pytest.raises(StoreInputError, match="width"):
            store.create(version, WIDTH + 1)
        assert store.versions() == {version: TableInfo(WIDTH, 1, None)}

    def test_an_unknown_version_is_an_error(self, store: EmbeddingStore, version: str) -> None:
        for name in ("v2", "", "../v1", "v1/..", "x" * 500, "v{1}"):
            calls: list[Callable[[], object]] = [
                lambda name=name: store.get(name, ints(1)),
                lambda name=name: store.get(name, ints()),
                lambda name=name: store.put(name, ints(1), rows(1)),
                lambda name=name: store.delete(name, ints(1)),
                lambda name=name: list(store.scan(name)),
            ]
            for call in calls:
                with pytest.raises(UnknownVersionError):
                    call()
            store.drop(name)
        assert list(store.versions()) == [version]

    @pytest.mark.parametrize("name", ["", "../v", "a/b", "a b", "{a}", "ä", "x" * 129, "a\n"])
    def test_an_invalid_name_is_rejected(self, store: EmbeddingStore, name: str) -> None:
        with pytest.raises(StoreInputError):
            store.create(name, WIDTH)
        assert store.versions() == {}

    @pytest.mark.parametrize("width", [0, -1, 1 << 20])
    def test_an_invalid_width_is_rejected(self, store: EmbeddingStore, width: int) -> None:
        with pytest.raises(StoreInputError):
            store.create("v", width)
        assert store.versions() == {}

    @pytest.mark.parametrize(
        ("ids", "vectors"),
        [
            (ints(1, 2), rows(2, width=WIDTH + 1)),
            (ints(1, 2), rows(3)),
            (ints(1), rows(1)[0]),
            (np.array([[1]]), rows(1)),
            (ints(1), np.full((1, WIDTH), 1e6, np.float32)),
        ],
        ids=["width", "rows", "no rows", "ids of two axes", "past fp16"],
    )
    def test_invalid_rows_are_rejected(
        self, store: EmbeddingStore, version: str, ids: NDArray[np.int64], vectors: NDArray[np.float16]
    ) -> None:
        with pytest.raises(StoreInputError):
            store.put(version, ids, vectors)
        assert store.versions() == {version: TableInfo(WIDTH, 0, None)}

    def test_a_version_expires(self, store: EmbeddingStore, let_expire: Callable[[], None]) -> None:
        store.create("short", WIDTH, ttl_s=self.TTL_S)
        store.create("long", WIDTH, ttl_s=1000 * self.TTL_S)
        store.create("renewed", WIDTH, ttl_s=self.TTL_S)
        for name in ("short", "long", "renewed"):
            store.put(name, ints(1, 2), rows(2))
        store.create("renewed", WIDTH)
        expiries = {name: info.expires_s for name, info in store.versions().items()}
        assert expiries["renewed"] is None
        assert expiries["short"] is not None
        assert expiries["long"] is not None
        assert expiries["long"] - expiries["short"] == pytest.approx(999 * self.TTL_S, abs=60)
        assert store.get("short", ints(1)).found.all()
        let_expire()
        assert list(store.versions()) == ["long", "renewed"]
        for call in (store.get, store.delete):
            with pytest.raises(UnknownVersionError):
                call("short", ints(1))
        with pytest.raises(UnknownVersionError):
            store.put("short", ints(1), rows(1))
        assert store.get("long", ints(1, 2)).found.all()
        assert store.get("renewed", ints(1, 2)).found.all()
        store.create("short", WIDTH + 1)
        assert store.versions()["short"] == TableInfo(WIDTH + 1, 0, None)

    @settings(
        max_examples=10,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.differing_executors],
    )
    @given(
        steps=st.lists(
            st.tuples(
                st.sampled_from(["put", "delete", "create"]),
                st.lists(st.one_of(st.integers(-5, 5), st.integers(-(2**63), 2**63 - 1)), max_size=12),
            ),
            max_size=8,
        )
    )
    def test_it_is_a_dictionary_of_rows(self, store: EmbeddingStore, steps: list[tuple[str, list[int]]]) -> None:
        version, kept = f"h{next(_names)}", dict[int, bytes]()
        store.create(version, 3)
        for seed, (step, ids) in enumerate(steps):
            if step == "put":
                vectors = rows(len(ids), seed, 3)
                store.put(version, np.array(ids, np.int64), vectors)
                kept |= {id_: vector.tobytes() for id_, vector in zip(ids, vectors, strict=True)}
            elif step == "delete":
                store.delete(version, np.array(ids, np.int64))
                kept = {id_: row for id_, row in kept.items() if id_ not in ids}
            else:
                store.create(version, 3)
            asked = list(kept) + ids
            got = store.get(version, np.array(asked, np.int64))
            assert got.found.tolist() == [id_ in kept for id_ in asked]
            assert all(row.tobytes() == kept.get(id_, bytes(6)) for id_, row in zip(asked, got.vectors, strict=True))
        assert scanned(store, version) == kept
        assert store.versions()[version].rows == len(kept)
        store.drop(version)

    def test_readers_see_each_row_whole_while_it_changes(self, store: EmbeddingStore, version: str) -> None:
        ids, others = np.arange(200), np.arange(1000, 9000)
        store.put(version, ids, constant_rows(np.zeros(200, np.int64)))
        done, wrong, reads = Event(), list[str](), [0, 0]

        def read(reader: int) -> None:
            rng = np.random.default_rng(reader)
            seen = np.zeros(200)
            while not done.is_set() and not wrong:
                picked = rng.integers(0, 200, 60)
                got = store.get(version, ids[picked])
                values = got.vectors[:, 0].astype(np.float64)
                if not got.found.all() or (got.vectors != got.vectors[:, :1]).any() or (values < seen[picked]).any():
                    wrong.append(f"{got}")
                np.maximum.at(seen, picked, values)
                reads[reader] += 1

        readers = [Thread(target=read, args=(i,)) for i in range(2)]
        for reader in readers:
            reader.start()
        turn = 0
        while turn < 60 or (min(reads) < 20 and not wrong and all(r.is_alive() for r in readers)):
            turn += 1
            store.put(version, ids, constant_rows(np.full(200, min(turn, 2000))))
            if turn % 2:  # other rows are written and deleted, and the table grows
                store.put(version, others[: turn * 50], rows(min(len(others), turn * 50)))
            else:
                store.delete(version, others[: turn * 10])
        done.set()
        for reader in readers:
            reader.join(60)
        assert not wrong
        assert min(reads) >= 20

    def test_writers_in_threads_lose_nothing(self, store: EmbeddingStore, version: str) -> None:
        def write(writer: int) -> None:
            for turn in range(20):
                ids = np.arange(50) + 1000 * writer + 50 * turn
                store.put(version, ids, constant_rows(ids % 2000))

        writers = [Thread(target=write, args=(i,)) for i in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(60)
        ids = np.concatenate([np.arange(1000) + 1000 * i for i in range(4)])
        got = store.get(version, ids)
        assert got.found.all()
        assert got.vectors.tobytes() == constant_rows(ids % 2000).tobytes()
        assert store.versions()[version].rows == 4000

    def test_a_store_may_be_closed_twice(self, store: EmbeddingStore) -> None:
        store.close()
        store.close()
