"""A synthetic log as CSV, and its data file. `python -m benchmarks.data.synthetic FOLDER ROWS SEED` writes both.

In a process of its own, because what it needs must not count for the subjects.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

__all__ = ["CSV", "DATA_FILE", "write_log"]

CSV = "shown.csv"
DATA_FILE = "data.toml"

_FIRST_MS = 1_700_000_000_000
_DAYS = 14
_LATE_MS = 60_000
"""Largest delay with which a row is written."""
_ITEMS = 100_000
_ROWS_PER_USER = 100
_BLOCK = 1 << 19

_TOML = f"""\
name = "synthetic"
time_zone = "UTC"
time_unit = "ms"

[tables]
shown = "{CSV}"

[impressions]
sql = "SELECT viewer AS user_id, video AS item_id, shown_at AS time, watch_ms, slot AS position, clicked, liked FROM shown"

[labels]
click = "clicked"
like = "liked"
long_view = "watch_ms >= 7000"

[tasks]
long_view = 1.0
like = 1.0
"""


def write_log(folder: Path, rows: int, seed: int) -> None:
    """Write `rows` impressions, block by block, and the data file that describes them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / DATA_FILE).write_text(_TOML)
    users, step = max(1, rows // _ROWS_PER_USER), _DAYS * 86_400_000 / rows
    with (folder / CSV).open("wb") as file:
        for start in range(0, rows, _BLOCK):
            count = min(_BLOCK, rows - start)
            time = _FIRST_MS + step * np.arange(start, start + count)
            block = {
                "viewer": np.char.add("viewer-", rng.integers(0, users, count).astype(str)),
                "video": np.minimum(rng.zipf(1.2, count), _ITEMS),
                "shown_at": time.astype(np.int64) - rng.integers(0, _LATE_MS, count),
                "watch_ms": rng.gamma(1.2, 6000, count).astype(np.int64),
                "slot": rng.integers(0, 30, count),
                "clicked": (rng.random(count) < 0.4).astype(np.int8),
                "liked": (rng.random(count) < 0.02).astype(np.int8),
            }
            pyarrow.csv.write_csv(pa.table(block), file, pyarrow.csv.WriteOptions(include_header=not start))


if __name__ == "__main__":
    write_log(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
