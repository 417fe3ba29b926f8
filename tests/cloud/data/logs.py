"""A small valid log, and changes of it."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from pocketrank.cloud.data.schema import HISTORY, IMPRESSIONS, ITEMS, PAGES, USERS, ImpressionLog


def columns(schema: pa.Schema, rows: int, **given: Sequence[Any]) -> pa.Table:
    """A table of `schema` with nulls where nothing is given."""
    arrays = [
        pa.array(given[field.name], field.type) if field.name in given else pa.nulls(rows, field.type) for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def small_log(
    times: Sequence[int],
    *,
    simulated: bool = False,
    time_zone: str = "Asia/Shanghai",
    pages: pa.Table | None = None,
    **impressions: Sequence[Any],
) -> ImpressionLog:
    """One impression of item 10 by user 1 at each of the sorted `times`; items 10 and 11, users 1 and 2."""
    ones = {"user_id": [1] * len(times), "item_id": [10] * len(times), "impression_ms": times, "watch_ms": [900] * len(times)}
    return ImpressionLog(
        name="small",
        simulated=simulated,
        time_zone=time_zone,
        tasks={"long_view": 1.0, "like": 1.0},
        impressions=columns(IMPRESSIONS, len(times), **(ones | impressions)),
        items=columns(
            ITEMS,
            2,
            item_id=[10, 11],
            duration_ms=[9000, 0],
            category=[None, 3],
            author_id=[None, 4],
            vector=[[0.5, 1.0], [0.0, 2.0]],
        ),
        users=columns(USERS, 2, user_id=[1, 2], categories=[[1, 0], [2, 5]], floats=[[0.5], [0.0]]),
        history=columns(HISTORY, 1, user_id=[1], item_id=[[10, 77]], long_view=[[True, False]], like=[[False, False]]),
        pages=PAGES.empty_table() if pages is None else pages,
    )
