from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pocketrank.cloud.data.schema import PAGES, DataError, ImpressionLog
from pocketrank.cloud.data.validate import TIMES_MS, validate
from tests.cloud.data.folders import NOON
from tests.cloud.data.logs import small_log

TIMES = [NOON, NOON + 1, NOON + 2]


def paged(**changes: Any) -> ImpressionLog:
    pages = pa.table({"page_id": [5, 6], "item_id": [[10, 11], [11]]}, schema=PAGES)
    return small_log(TIMES, pages=pages, **({"page_id": [5, None, 6], "item_id": [11, 10, 11]} | changes))


def changed(table: str, column: str, values: list[Any]) -> ImpressionLog:
    log = paged()
    whole = getattr(log, table)
    field = whole.schema.field(column)
    return replace(log, **{table: whole.set_column(whole.schema.get_field_index(column), field, pa.array(values, field.type))})


def test_valid_logs_pass() -> None:
    validate(paged())
    validate(small_log([]))
    validate(small_log([NOON, NOON], item_id=[10, 10]))
    validate(changed("items", "vector", [None, [1.0]]))
    validate(changed("users", "categories", [None, None]))


@pytest.mark.parametrize(
    ("table", "column", "values", "row"),
    [
        ("impressions", "user_id", [1, None, 1], 2),
        ("impressions", "impression_ms", [NOON, NOON + 2, NOON + 1], 3),
        ("impressions", "impression_ms", [1_650_000_000, NOON + 1, NOON + 2], 1),
        ("impressions", "impression_ms", [NOON, NOON + 1, TIMES_MS[1] + 1], 3),
        ("impressions", "watch_ms", [0, -1, 0], 2),
        ("impressions", "item_id", [11, 12, 11], 2),
        ("impressions", "page_id", [5, None, 7], 3),
        ("impressions", "item_id", [11, 10, 10], 3),
        ("impressions", "ended", [0, 3, 4], 3),
        ("impressions", "volume", [0.0, 1.5, None], 2),
        ("impressions", "position", [None, -1, None], 2),
        ("items", "item_id", [10, 10], 2),
        ("items", "duration_ms", [-1, 0], 1),
        ("items", "category", [1, -1], 2),
        ("items", "vector", [[1.0, 2.0], [1.0]], 2),
        ("items", "vector", [[1.0, 2.0], [1.0, np.nan]], 2),
        ("items", "vector", [[1.0, None], [1.0, 2.0]], 1),
        ("users", "user_id", [2, 2], 2),
        ("users", "categories", [[1, 2], [1]], 2),
        ("users", "categories", [[1, 2], [1, -1]], 2),
        ("users", "floats", [[np.inf], [1.0]], 1),
        ("history", "like", [[True]], 1),
        ("history", "item_id", [[10, None]], 1),
        ("pages", "page_id", [5, 5], 2),
        ("pages", "item_id", [[10, 11], [12]], 2),
    ],
)
def test_a_violation_is_named(table: str, column: str, values: list[Any], row: int) -> None:
    with pytest.raises(DataError) as caught:
        validate(changed(table, column, values))
    assert (caught.value.file, caught.value.column, caught.value.row) == (table, column, row)


def test_rows_of_one_instant_are_sorted_by_user_and_item() -> None:
    with pytest.raises(DataError, match="impressions, row 2"):
        validate(small_log([NOON, NOON], user_id=[2, 1]))
    with pytest.raises(DataError, match="impressions, row 2"):
        validate(small_log([NOON, NOON], item_id=[11, 10]))


def test_the_schema_is_exact() -> None:
    log = paged()
    for broken, message in [
        (log.items.drop_columns("vector"), r"column `vector`: expected list<.*>, got no such column"),
        (log.items.append_column("new", pa.array([1, 2])), "column `new`: expected no such column, got int64"),
        (log.items.set_column(3, "category", pa.array([1, 2], pa.int64())), "expected int32, got int64"),
        (log.items.select(log.items.column_names[::-1]), "expected columns in the order"),
    ]:
        with pytest.raises(DataError, match=message):
            validate(replace(log, items=broken))
    floats = log.impressions.set_column(9, "click", pa.array([0.0, 1.0, 0.5]))
    with pytest.raises(DataError, match="column `click`: expected bool, got double"):
        validate(replace(log, impressions=floats))
