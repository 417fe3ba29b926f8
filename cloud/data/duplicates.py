"""Rows that are equal, of a table that comes sorted in batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

__all__ = ["KEYS", "REST", "without_duplicates"]

KEYS = ("impression_ms", "user_id", "item_id")
"""Columns by which impressions are sorted."""
REST = "rest"
"""Column that tells rows apart and is dropped."""


def without_duplicates(batches: pa.RecordBatchReader) -> Iterator[pa.Table]:
    """Yield sorted rows without those that equal another one. Rows with the same keys are sorted by all columns.

    A table ends before rows that may go on in the next batch.
    """
    held: pa.Table | None = None
    for batch in batches:
        if not len(batch):
            continue
        rows = pa.Table.from_batches([batch]) if held is None else pa.concat_tables([held, pa.Table.from_batches([batch])])
        again = _equal_keys(rows)
        last = int(np.flatnonzero(~again)[-1])
        if last:
            yield _distinct(rows.slice(0, last), again[:last])
        held = rows.slice(last)
    if held is not None:
        yield _distinct(held, _equal_keys(held))


def _equal_keys(rows: pa.Table) -> NDArray[np.bool_]:
    """Return for each row whether it has the keys of the row before."""
    time, *others = (rows[name].to_numpy() for name in KEYS)
    again = np.zeros(len(rows), bool)
    again[1:] = time[1:] == time[:-1]
    tied = np.flatnonzero(again)
    for values in others:
        tied = tied[values[tied] == values[tied - 1]]
    again[:] = False
    again[tied] = True
    return again


def _equal_neighbours(rows: pa.Table, columns: Sequence[str]) -> NDArray[np.bool_]:
    """Return for each row whether it equals the row before in these columns; nulls are equal."""
    again = np.zeros(len(rows), bool)
    again[1:] = True
    for name in columns:
        values = rows[name].combine_chunks()
        before, after = values.slice(0, len(values) - 1), values.slice(1)
        equal = pc.fill_null(pc.equal(before, after), False)
        if values.null_count:
            equal = pc.or_(equal, pc.and_(pc.is_null(before), pc.is_null(after)))
        again[1:] &= equal.to_numpy(zero_copy_only=False)
    return again


def _distinct(rows: pa.Table, again: NDArray[np.bool_]) -> pa.Table:
    """Return each of equal rows once; `again` says which rows have the keys of the row before."""
    if again.any():
        tied = np.flatnonzero(again | np.append(again[1:], False))
        names = [*KEYS, *(name for name in rows.column_names if name not in KEYS)]
        ties = rows.take(pa.array(tied))
        order = np.asarray(pc.sort_indices(ties, [(name, "ascending") for name in names]))
        kept = ~_equal_neighbours(ties.take(pa.array(order)), names)
        places = np.arange(len(rows))
        places[tied] = tied[order]
        keep = np.ones(len(rows), bool)
        keep[tied] = kept
        rows = rows.take(pa.array(places[keep]))
    return rows.drop_columns(REST) if REST in rows.column_names else rows
