"""Random sequences of a base, increments, expiry and rollbacks, beside a plain dict that knows only what was published."""

from collections import Counter

import numpy as np

from pocketrank.cloud.training.row_table import RowConfig, RowTable

IDS, WIDTH = 12, 2


def check_sequence(rng: np.random.Generator) -> int:
    """Run one random sequence, and hold what its increments make of the base to a full export after each of them; return the
    number of rows that were published."""
    base = {id: rng.random(WIDTH, np.float32) for id in rng.permutation(IDS)[: IDS // 2].tolist()}
    optimizer = "ftrl" if rng.random() < 0.5 else "adagrad"
    table = RowTable(WIDTH, RowConfig(optimizer=optimizer, admit=int(rng.integers(1, 3)), expire_ms=2))  # type: ignore[arg-type]
    unknown, served, kept, rows = np.zeros(WIDTH, np.float32), dict(base), dict[int, bytes | None](), 0
    for now_ms in range(int(rng.integers(2, 6))):
        action = rng.random()
        if action < 0.7:
            times = Counter(rng.integers(0, IDS, int(rng.integers(1, 5))).tolist())
            had = [id in table for id in times]
            slots = table.use(times, now_ms)
            made = [id for id, was, slot in zip(times, had, slots.tolist(), strict=True) if slot >= 0 and not was]
            assert not table.of(made).any(), "a new row inherits nothing"
            table.update(list(times), slots, rng.normal(size=(len(times), WIDTH)).astype(np.float32))
        elif action < 0.85:
            table.expire(now_ms)
        elif kept:
            table.restore(kept)
        if rng.random() < 0.3:
            kept = {id: table.pack(id) for id in range(IDS)}
        if rng.random() < 0.6:
            ids, gone = table.taken()
            rows += len(ids) + len(gone)
            for id, added in zip(ids, table.of(ids), strict=True):
                served[id] = base.get(id, unknown) + added
            for id in gone:
                served.pop(id, None)  # it may have come and gone in between
                if id in base:
                    served[id] = base[id]
            everything = sorted({*base, *table.ids()})
            assert sorted(served) == everything
            export = np.array([base.get(id, unknown) for id in everything]) + table.of(everything)
            assert np.array_equal([served[id] for id in everything], export)
    return rows
