from collections import Counter

import numpy as np
import pytest

from pocketrank.cloud.training.row_table import RowConfig, RowTable
from tests.cloud.training.row_sequences import check_sequence

CONFIG = RowConfig(admit=1, clip=10.0, discard=1000.0)


def used(table: RowTable, ids: list[int], gradient: np.ndarray, now_ms: int = 0) -> None:
    slots = table.use(Counter(ids), now_ms)
    table.update(list(dict.fromkeys(ids)), slots, gradient.astype(np.float32))


def test_adagrad_is_that_of_the_paper() -> None:
    table, rng = RowTable(3, CONFIG), np.random.default_rng(0)
    value, total = np.zeros(3), np.zeros(3)
    for _ in range(20):
        g = rng.normal(size=3)
        used(table, [7], g[None])
        total += g**2
        value -= CONFIG.learning_rate * g / np.sqrt(total + CONFIG.accumulator)
    assert table.of([7])[0] == pytest.approx(value, rel=1e-4)


def test_ftrl_is_that_of_the_paper() -> None:
    config = RowConfig(optimizer="ftrl", admit=1, clip=10.0, l1=0.3, l2=0.1)
    table, rng = RowTable(1, config), np.random.default_rng(0)
    z = n = w = 0.0
    for _ in range(30):
        g = float(rng.normal())
        used(table, [7], np.array([[g]]))
        sigma = (np.sqrt(n + g * g) - np.sqrt(n)) / config.learning_rate
        z, n = z + g - sigma * w, n + g * g
        rate = (config.accumulator + np.sqrt(n)) / config.learning_rate + config.l2
        w = 0.0 if abs(z) <= config.l1 else -(z - np.sign(z) * config.l1) / rate
    assert table.of([7])[0, 0] == pytest.approx(w, rel=1e-3)


def test_a_row_is_made_once_its_id_was_seen_often_enough() -> None:
    table = RowTable(2, RowConfig(admit=3))
    assert table.use({5: 2}, 0).tolist() == [-1]
    assert 5 not in table
    assert table.use({5: 1, 6: 1}, 0).tolist()[0] >= 0
    assert (5 in table, 6 in table, len(table)) == (True, False, 1)


def test_gradients_are_clipped_and_useless_ones_discarded() -> None:
    table = RowTable(1, RowConfig(admit=1, clip=1.0, discard=100.0))
    used(table, [1, 2, 3, 4], np.array([[50.0], [1000.0], [np.nan], [0.5]]))
    alone = RowTable(1, RowConfig(admit=1))
    used(alone, [1], np.array([[1.0]]))
    assert table.of([1]) == alone.of([1])
    assert table.of([2, 3]).tolist() == [[0.0], [0.0]]
    assert (table.clipped, table.discarded) == (1, 2)
    assert table.taken()[0] == [1, 4]


def test_no_row_inherits_anything_and_churn_takes_no_memory() -> None:
    table, rng = RowTable(4, RowConfig(admit=1, expire_ms=1000)), np.random.default_rng(0)
    rooms = []
    for generation in range(10):
        ids = [1000 * generation + number for number in range(900)]
        used(table, ids, rng.normal(size=(900, 4)), now_ms=10_000 * generation)
        table.expire(10_000 * generation)
        assert sorted(table.ids()) == ids
        rooms.append(table.room)
    assert rooms[-1] <= 1.05 * rooms[1]
    table.expire(10**9)
    assert len(table) == 0
    used(table, [1], np.full((1, 4), 0.5))
    fresh = RowTable(4, RowConfig(admit=1, expire_ms=1000))
    used(fresh, [1], np.full((1, 4), 0.5))
    assert table.pack(1) == fresh.pack(1)


def test_what_is_packed_goes_on_as_if_nothing_happened() -> None:
    rng = np.random.default_rng(0)
    for optimizer in ("adagrad", "ftrl"):
        config = RowConfig(optimizer=optimizer, admit=2)  # type: ignore[arg-type]
        whole, first = RowTable(3, config), RowTable(3, config)
        steps = [(rng.integers(0, 30, 8).tolist(), rng.normal(size=(8, 3))) for _ in range(40)]
        for i, (ids, gradient) in enumerate(steps):
            distinct = gradient[: len(set(ids))]
            used(whole, ids, distinct)
            used(first, ids, distinct)
            if i == 20:
                saved = {id: first.pack(id) for id in range(30)}
                first = RowTable(3, config)
                for id, data in saved.items():
                    if data is not None:
                        first.unpack(id, data)
        assert {id: whole.pack(id) for id in range(30)} == {id: first.pack(id) for id in range(30)}


def test_a_row_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width 2"):
        RowTable(2, CONFIG).unpack(1, bytes(24 + 8))


def test_changes_since_the_last_call_rebuild_the_table() -> None:
    table, rng, plain = RowTable(2, RowConfig(admit=2, expire_ms=50)), np.random.default_rng(0), dict[int, bytes]()
    copies = [{id: table.pack(id) for id in range(40)}]
    for step in range(1500):
        kind = rng.integers(0, 20)
        if kind == 0:
            table.expire(step)
        elif kind == 1:
            copies.append({id: table.pack(id) for id in range(40)})
        elif kind == 2:
            table.restore(kept := copies[rng.integers(len(copies))])
            assert {id: table.pack(id) for id in range(40)} == kept
        elif kind == 3:
            table.drop(int(rng.integers(0, 40)))
        else:
            ids = rng.integers(0, 40, 4).tolist()
            used(table, ids, rng.normal(size=(len(set(ids)), 2)), now_ms=step)
        if rng.integers(0, 3) == 0:
            ids, gone = table.taken()
            plain.update({id: table.of([id]).tobytes() for id in ids})
            for id in gone:
                plain.pop(id, None)
            assert plain == {id: table.of([id]).tobytes() for id in table.ids()}


def test_random_sequences_of_increments_equal_a_full_export() -> None:
    rng = np.random.default_rng(0)
    assert sum(check_sequence(rng) for _ in range(10_000)) > 10_000
