"""Files as teams have them: each is read right, or refused in one line with file, row and column, and leaves nothing behind."""

import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.feather as feather
import pyarrow.parquet as pq
import pytest

from pocketrank.cloud.data.import_log import import_log
from pocketrank.cloud.data.log import StoredLog, open_log
from pocketrank.cloud.data.schema import DataError

NOON = 1_700_000_000
"""A time in seconds: 14 November 2023, 22:13:20 UTC."""
HEADER = "user_id,item_id,time,liked,watch_ms"
ROWS = [f"u{i},{i},{NOON + i},{i % 2},{1000 * i}" for i in range(1, 6)]
"""Five impressions, of users `u1` to `u5` and items 1 to 5."""


def rows_with(*changed: str, at: int = 3, header: str = HEADER) -> str:
    """The CSV of `ROWS`, with `changed` in the place of row `at`."""
    rows = [*ROWS[: at - 1], *changed, *ROWS[at:]]
    return "\n".join([header, *rows]) + "\n"


def write_data_file(folder: Path, table: str = '"log.csv"', **values: str) -> Path:
    """A data file of one table; `values` are those of its keys."""
    keys = {
        "time_zone": "UTC",
        "time_unit": "s",
        "impressions": "SELECT * FROM log",
        "items": "",
        "users": "",
        "like": "liked",
    } | values
    lines = ['name = "small"', f"time_zone = {keys['time_zone']!r}", f"time_unit = {keys['time_unit']!r}"]
    lines = [line for line in lines if not line.endswith("''")]
    lines += ["[tables]", f"log = {table}"]
    for query in ("impressions", "items", "users"):
        if keys[query]:
            lines += [f"[{query}]", f"sql = '''{keys[query]}'''"]
    lines += ["[labels]", f"like = '''{keys['like']}'''", "[tasks]", "like = 1.0"]
    path = folder / "data.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def import_from(path: Path) -> StoredLog:
    return import_log(path, path.parent / "made" / "log")


def texts(log: StoredLog, kind: str, codes: list[int]) -> list[str]:
    known = {(row["kind"], row["code"]): row["text"] for row in log.ids.to_pylist()}
    return [known[kind, code] for code in codes]


def column(log: StoredLog, name: str) -> list[Any]:
    """Values of the impressions, with texts for the codes of users."""
    values = [value for part in log.parts() for value in part[name].to_pylist()]
    return texts(log, name, values) if name == "user_id" and len(log.ids) else values


USERS = ["u1", "u2", "u3", "u4", "u5"]
NEXT_ROW = f"u3,3,{NOON + 3},1,3000"

READ: dict[str, tuple[str | bytes, dict[str, Any], dict[str, list[Any]]]] = {
    "plain": (rows_with(ROWS[2]), {}, {"user_id": USERS, "item_id": [1, 2, 3, 4, 5], "like": [True, False, True, False, True]}),
    "crlf": (rows_with(ROWS[2]).replace("\n", "\r\n"), {}, {"watch_ms": [1000, 2000, 3000, 4000, 5000]}),
    "no line break at the end": (rows_with(ROWS[2]).rstrip("\n"), {}, {"item_id": [1, 2, 3, 4, 5]}),
    "byte order mark": ("\ufeff" + rows_with(ROWS[2]), {}, {"user_id": USERS}),
    "utf-16": (
        rows_with(ROWS[2]).encode("utf-16"),
        {"table": '{ files = "log.csv", encoding = "utf-16" }'},
        {"user_id": USERS},
    ),
    "latin-1": (
        rows_with(f"ü,3,{NOON + 3},1,3000").encode("latin-1"),
        {"table": '{ files = "log.csv", encoding = "latin-1" }'},
        {"user_id": ["u1", "u2", "ü", "u4", "u5"]},
    ),
    "semicolons": (
        rows_with(ROWS[2]).replace(",", ";"),
        {"table": '{ files = "log.csv", delimiter = ";" }'},
        {"user_id": USERS, "watch_ms": [1000, 2000, 3000, 4000, 5000]},
    ),
    "quotes": (rows_with(f'"u,""3""\n",3,{NOON + 3},1,3000'), {}, {"user_id": ["u1", "u2", 'u,"3"\n', "u4", "u5"]}),
    "single quotes": (
        rows_with(f"'u,3',3,{NOON + 3},1,3000"),
        {"table": """{ files = "log.csv", quote = "'" }"""},
        {"user_id": ["u1", "u2", "u,3", "u4", "u5"]},
    ),
    "no header": (
        rows_with(ROWS[2]).partition("\n")[2],
        {"table": '{ files = "log.csv", columns = ["user_id", "item_id", "time", "liked", "watch_ms"] }'},
        {"user_id": USERS, "item_id": [1, 2, 3, 4, 5]},
    ),
    "empty lines": (rows_with(ROWS[2], "", ""), {}, {"item_id": [1, 2, 3, 4, 5]}),
    "unknown label": (rows_with(f"u3,3,{NOON + 3},,3000"), {}, {"like": [True, False, None, False, True]}),
    "unknown label by its own text": (
        rows_with(f"u3,3,{NOON + 3},NULL,3000"),
        {"table": '{ files = "log.csv", nulls = ["", "NULL"] }'},
        {"like": [True, False, None, False, True]},
    ),
    "labels as true and false": (
        rows_with(ROWS[2]).replace(",0,", ",false,").replace(",1,", ",true,").replace("u1,true", "u1,1"),
        {},
        {"like": [True, False, True, False, True]},
    ),
    "labels as floats": (
        rows_with(f"u3,3,{NOON + 3},1.0,3000"),
        {},
        {"like": [True, False, True, False, True]},
    ),
    "unknown watch time": (rows_with(f"u3,3,{NOON + 3},1,"), {}, {"watch_ms": [1000, 2000, 0, 4000, 5000]}),
    "watch time as float": (rows_with(f"u3,3,{NOON + 3},1,2999.6"), {}, {"watch_ms": [1000, 2000, 3000, 4000, 5000]}),
    "space around a number": (rows_with(f"u3, 3 ,{NOON + 3},1, 3000"), {}, {"watch_ms": [1000, 2000, 3000, 4000, 5000]}),
    "beyond what floats hold": (rows_with(f"u3,{2**53 + 1},{NOON + 3},1,3000"), {}, {"item_id": [1, 2, 2**53 + 1, 4, 5]}),
    "19 digits": (rows_with(f"u3,{2**63 - 1},{NOON + 3},1,3000"), {}, {"item_id": [1, 2, 2**63 - 1, 4, 5]}),
    "negative ids": (rows_with(f"u3,-3,{NOON + 3},1,3000"), {}, {"item_id": [1, 2, -3, 4, 5]}),
    "20 digits": (rows_with(f"u3,{2**64 + 1},{NOON + 3},1,3000"), {}, {"item": ["1", "2", str(2**64 + 1), "4", "5"]}),
    "20 digits as text": (
        rows_with(f"u3,{2**64},{NOON + 3},1,3000"),
        {"table": '{ files = "log.csv", types = { item_id = "VARCHAR" } }'},
        {"item": ["1", "2", str(2**64), "4", "5"]},
    ),
    "20 digits as a number": (
        rows_with(f"u3,{2**64 + 1},{NOON + 3},1,3000"),
        {"table": '{ files = "log.csv", types = { item_id = "HUGEINT" } }'},
        {"item": ["1", "2", str(2**64 + 1), "4", "5"]},
    ),
    "leading zeros": (rows_with(f"u3,007,{NOON + 3},1,3000"), {}, {"item": ["1", "2", "007", "4", "5"]}),
    "ids that are numbers and text": (rows_with(f"u3,x3,{NOON + 3},1,3000"), {}, {"item": ["1", "2", "x3", "4", "5"]}),
    "ids that differ by a blank": (
        rows_with(f'"u2 ",3,{NOON + 3},1,3000'),
        {},
        {"user_id": ["u1", "u2", "u2 ", "u4", "u5"]},
    ),
    "ids that differ by case": (rows_with(f"U2,3,{NOON + 3},1,3000"), {}, {"user_id": ["u1", "u2", "U2", "u4", "u5"]}),
    "ids of many scripts": (rows_with(f"用户😀,3,{NOON + 3},1,3000"), {}, {"user_id": ["u1", "u2", "用户😀", "u4", "u5"]}),
    "an id of 256 letters": (
        rows_with(f"{'ü' * 256},3,{NOON + 3},1,3000"),
        {},
        {"user_id": ["u1", "u2", "ü" * 256, "u4", "u5"]},
    ),
    "rows out of order": ("\n".join([HEADER, *reversed(ROWS)]), {}, {"user_id": USERS}),
    "rows twice": ("\n".join([HEADER, *ROWS, *ROWS]), {}, {"user_id": USERS}),
    "rows twice but for a column that is not used": (
        "\n".join([HEADER + ",x", *(f"{row},1" for row in ROWS), f"{ROWS[4]},2"]),
        {},
        {"user_id": [*USERS, "u5"]},
    ),
    "a day without rows": (
        rows_with(f"u3,3,{NOON + 3 * 86_400},1,3000"),
        {},
        {"impression_ms": [1000 * (NOON + i) for i in (1, 2, 4, 5, 3 * 86_400)]},
    ),
    "times in milliseconds": (
        "\n".join([HEADER, f"u1,1,{NOON}123,1,0"]),
        {"time_unit": "ms"},
        {"impression_ms": [NOON * 1000 + 123]},
    ),
    "times in microseconds": (
        "\n".join([HEADER, f"u1,1,{NOON}123999,1,0"]),
        {"time_unit": "us"},
        {"impression_ms": [NOON * 1000 + 123]},
    ),
    "times in nanoseconds": (
        "\n".join([HEADER, f"u1,1,{NOON}123999999,1,0"]),
        {"time_unit": "ns"},
        {"impression_ms": [NOON * 1000 + 123]},
    ),
    "times with a fraction": (
        "\n".join([HEADER, f"u1,1,{NOON}.25,1,0"]),
        {},
        {"impression_ms": [NOON * 1000 + 250]},
    ),
    "local times": (
        "\n".join([HEADER, "u1,1,2023-07-01 12:00:00,1,0", "u2,2,2023-12-01 12:00:00,1,0"]),
        {"time_zone": "America/New_York"},
        {"impression_ms": [1_688_227_200_000, 1_701_450_000_000]},
    ),
    "times with a zone": (
        "\n".join([HEADER, "u1,1,2023-07-01T12:00:00+02:00,1,0", "u2,2,2023-07-01T10:00:00Z,0,0"]),
        {"time_zone": "America/New_York"},
        {"impression_ms": [1_688_205_600_000, 1_688_205_600_000]},
    ),
    "an hour that the clocks skip": (  # 02:30 on this day is 03:30 of summer time
        "\n".join([HEADER, "u1,1,2023-03-12 02:30:00,1,0"]),
        {"time_zone": "America/New_York"},
        {"impression_ms": [1_678_606_200_000]},
    ),
    "an hour that the clocks show twice": (
        "\n".join([HEADER, "u1,1,2023-11-05 00:59:59,1,0", "u2,2,2023-11-05 01:30:00,1,0"]),
        {"time_zone": "America/New_York"},
        {"impression_ms": [1_699_160_399_000, 1_699_165_800_000]},
    ),
    "dates": ("\n".join([HEADER, "u1,1,2023-07-01,1,0"]), {"time_zone": "Asia/Tokyo"}, {"impression_ms": [1_688_137_200_000]}),
    "a time in the future": ("\n".join([HEADER, "u1,1,2090-01-01,1,0"]), {}, {"impression_ms": [3_786_912_000_000]}),
    "tabs": (
        rows_with(ROWS[2]).replace(",", "\t"),
        {"table": '{ files = "log.csv", delimiter = "\\t" }'},
        {"user_id": USERS},
    ),
    "a label that is text": (
        rows_with(f"u3,3,{NOON + 3},yes,3000"),
        {"like": "liked IN ('1', 'yes')"},
        {"like": [True, False, True, False, True]},
    ),
}


@pytest.mark.parametrize("name", READ)
def test_a_file_is_read_right(tmp_path: Path, name: str) -> None:
    content, options, expected = READ[name]
    (tmp_path / "log.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    log = import_from(write_data_file(tmp_path, **options))
    for wanted, values in expected.items():
        if wanted == "item":
            assert texts(log, "item_id", column(log, "item_id")) == values
        else:
            assert column(log, wanted) == values


Refusal = tuple[str | bytes, dict[str, Any], int | None, str | None, str]
REFUSED: dict[str, Refusal] = {
    "no user": (rows_with(f",3,{NOON + 3},1,3000"), {}, 3, "user_id", "expected a value, got nothing"),
    "no item": (rows_with(f"u3,,{NOON + 3},1,3000"), {}, 3, "item_id", "expected a value, got nothing"),
    "no time": (rows_with("u3,3,,1,3000"), {}, 3, "time", "expected a value, got nothing"),
    "a time that is text": (rows_with("u3,3,noon,1,3000"), {}, 3, "time", "expected a number or a time, got `noon`"),
    "milliseconds as seconds": (rows_with(f"u3,3,{NOON}000,1,3000"), {}, 3, "time", "expected a time from 1990 to 2099"),
    "seconds as milliseconds": (rows_with(ROWS[2]), {"time_unit": "ms"}, 1, "time", "expected a time from 1990 to 2099"),
    "a time of 19 digits": (rows_with(f"u3,3,{2**63 - 1},1,3000"), {}, 3, "time", "expected a time from 1990 to 2099"),
    "a negative time": (rows_with("u3,3,-1,1,3000"), {}, 3, "time", "got -1"),
    "a time that is not a number": (rows_with("u3,3,nan,1,3000"), {}, 3, "time", "got nan"),
    "a time that is infinite": (rows_with("u3,3,inf,1,3000"), {}, 3, "time", "got inf"),
    "a date of long ago": (
        "\n".join([HEADER, "u1,1,2023-07-01,1,0", "u1,1,1000-01-01,1,0"]),
        {},
        2,
        "time",
        "expected a time from 1990 to 2099, got 1000-01-01",
    ),
    "a number of which the unit is unknown": (rows_with(ROWS[2]), {"time_unit": ""}, None, None, "$.time_unit: expected `s`"),
    "times that are text alone": (
        "\n".join([HEADER, "u1,1,1/7/23 noon,1,0"]),
        {},
        None,
        "time",
        "strptime(time, '%d/%m/%Y %H:%M:%S') makes one",
    ),
    "an unknown zone": (rows_with(ROWS[2]), {"time_zone": "Mars/Olympus"}, None, None, "Expected an IANA time zone"),
    "a zone by its letters": (rows_with(ROWS[2]), {"time_zone": "PDT"}, None, None, "Expected an IANA time zone"),
    "a label that is sometimes text": (rows_with(f"u3,3,{NOON + 3},yes,3000"), {}, 3, "liked", "expected 0 or 1, got `yes`"),
    "a label that is 2": (rows_with(f"u3,3,{NOON + 3},2,3000"), {}, 3, "liked", "expected 0 or 1, got 2"),
    "a label that is compared as a number": (
        rows_with(f"u3,3,{NOON + 3},yes,3000"),
        {"like": "liked > 0"},
        3,
        "liked",
        "expected a number, as in other rows, got `yes`",
    ),
    "a watch time that is text": (
        rows_with(f"u3,3,{NOON + 3},1,long"),
        {},
        3,
        "watch_ms",
        "expected a whole number from 0, got `long`",
    ),
    "a negative watch time": (rows_with(f"u3,3,{NOON + 3},1,-1"), {}, 3, "watch_ms", "expected a whole number from 0, got -1"),
    "a watch time that is not a number": (rows_with(f"u3,3,{NOON + 3},1,nan"), {}, 3, "watch_ms", "got nan"),
    "an infinite watch time": (rows_with(f"u3,3,{NOON + 3},1,inf"), {}, 3, "watch_ms", "got inf"),
    "a decimal comma": (rows_with(f'u3,3,{NOON + 3},1,"3000,5"'), {}, 3, "watch_ms", "got `3000,5`"),
    "ids with a fraction": (rows_with(f"u3,3.5,{NOON + 3},1,3000"), {}, None, "item_id", "CAST(item_id AS BIGINT)"),
    "an empty id": (
        rows_with(f'"",3,{NOON + 3},1,3000'),
        {"table": '{ files = "log.csv", nulls = ["NULL"] }'},
        3,
        "user_id",
        "expected an id of 1 to 256 characters, got ``",
    ),
    "an id of 257 letters": (
        rows_with(f"{'x' * 257},3,{NOON + 3},1,3000"),
        {},
        3,
        "user_id",
        "expected an id of 1 to 256 characters",
    ),
    "a field too many": (rows_with(f"u3,3,{NOON + 3},1,3000,7"), {}, 3, None, "Expected Number of Columns: 5 Found: 6"),
    "a field too few": (rows_with(f"u3,3,{NOON + 3},1"), {}, 3, None, "Expected Number of Columns: 5 Found: 4"),
    "a quotation that is not closed": (rows_with(f'"u3,3,{NOON + 3},1,3000'), {}, 3, None, "quote"),
    "a quotation mark within": (rows_with(f'"u"3,3,{NOON + 3},1,3000'), {}, 3, None, "quote"),
    "bytes that are not UTF-8": (
        rows_with("u3").encode().replace(b"u3", b"\xff\xfe,3,1700000003,1,3000"),
        {},
        3,
        None,
        "utf-8",
    ),
    "a field that is too large": (rows_with(f"{'x' * 3_000_000},3,{NOON + 3},1,3000"), {}, 3, None, "Maximum line size"),
    "a column twice": (
        rows_with(ROWS[2], header="user_id,item_id,time,liked,liked"),
        {},
        None,
        "liked",
        "expected each column once",
    ),
    "a column twice but for its case": (
        rows_with(ROWS[2], header="user_id,item_id,time,liked,Liked"),
        {},
        None,
        "Liked",
        "each column once",
    ),
    "another separator": (
        rows_with(ROWS[2]).replace(",", ";"),
        {},
        None,
        "user_id",
        "expected a column `user_id`, got user_id;item_id",
    ),
    "no such column": (
        rows_with(ROWS[2], header="uid,item_id,time,liked,watch_ms"),
        {},
        None,
        "user_id",
        "expected a column `user_id`, got uid",
    ),
    "nothing": ("", {}, None, None, "log.csv"),
    "a header alone": (HEADER + "\n", {}, None, None, "$.impressions.sql: expected rows, got none"),
    "a type that the column does not have": (
        rows_with(ROWS[2]),
        {"table": '{ files = "log.csv", types = { user_id = "BIGINT" } }'},
        1,
        "user_id",
        "u1",
    ),
    "a cast that a row does not take": (
        rows_with(f"u3,x,{NOON + 3},1,3000"),
        {"impressions": "SELECT * REPLACE (CAST(item_id AS BIGINT) AS item_id) FROM log"},
        3,
        "item_id",
        "Could not convert string",
    ),
    "a column that the SQL renames": (
        rows_with(f"u3,3,{NOON + 3},1,-7"),
        {"impressions": "SELECT user_id, item_id, time, liked, w AS watch_ms FROM (SELECT *, watch_ms AS w FROM log)"},
        3,
        "watch_ms",
        "expected a whole number from 0, got -7",
    ),
    "a position with a fraction": (
        rows_with(f"u3,3,{NOON + 3},1,1.5"),
        {"impressions": "SELECT * RENAME (watch_ms AS position) FROM log"},
        3,
        "watch_ms",
        "expected a whole number from 0 to 2.14748e+09, got 1.5",
    ),
    "a score beyond 1": (
        rows_with(f"u3,3,{NOON + 3},1,1.5").replace("000\n", "\n").replace(",5000", ",0"),
        {"impressions": "SELECT * RENAME (watch_ms AS pxtr_like) FROM log WHERE watch_ms < 2"},
        3,
        "watch_ms",
        "expected a number from 0 to 1, got 1.5",
    ),
    "a score of no label": (
        rows_with(ROWS[2]),
        {"impressions": "SELECT * RENAME (watch_ms AS pxtr_click) FROM log"},
        None,
        "pxtr_click",
        "expected scores of labels, pxtr_like, got `pxtr_click`",
    ),
    "SQL that is none": (
        rows_with(ROWS[2]),
        {"impressions": "SELEC * FROM log"},
        None,
        None,
        "$.impressions.sql: Parser Error",
    ),
    "SQL of another table": (
        rows_with(ROWS[2]),
        {"impressions": "SELECT * FROM logs"},
        None,
        None,
        "$.impressions.sql: Catalog Error",
    ),
    "a label of an unknown column": (rows_with(ROWS[2]), {"like": "love = 1"}, None, None, "$.labels.like: Binder Error"),
    "an item with two categories": (
        rows_with(ROWS[2]),
        {"items": "SELECT 1 AS item_id, liked AS category FROM log"},
        1,
        "item_id",
        "expected one row for each item_id, got several that differ for 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_is_refused(tmp_path: Path, name: str) -> None:
    content, options, row, where, message = REFUSED[name]
    (tmp_path / "log.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    path = write_data_file(tmp_path, **options)
    with pytest.raises(DataError) as caught:
        import_from(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.row, caught.value.column) == (row, where)
    assert caught.value.file == str(tmp_path / "log.csv" if row else path) or caught.value.file.endswith("log.csv")
    assert not list((tmp_path / "made").glob("*"))


def write_table(file: Path, **columns: Any) -> None:
    values = {"user_id": USERS, "item_id": [1, 2, 3, 4, 5], "time": [NOON + i for i in range(1, 6)], "liked": [True] * 5}
    table = pa.table(values | columns)
    if file.suffix == ".parquet":
        pq.write_table(table, file, row_group_size=2)
    else:
        feather.write_feather(table, file, compression="uncompressed")


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
def test_a_wrong_value_of_a_typed_file_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "parts").mkdir()
    write_table(tmp_path / "parts" / f"a{suffix}")
    write_table(tmp_path / "parts" / f"b{suffix}", user_id=["v1", "v2", "v3", None, "v5"])
    with pytest.raises(DataError) as caught:
        import_from(write_data_file(tmp_path, '"parts"'))
    assert caught.value.file == str(tmp_path / "parts" / f"b{suffix}")
    assert (caught.value.row, caught.value.column) == (4, "user_id")
    write_table(tmp_path / "parts" / f"b{suffix}", user_id=["v1", "v2", "v3", "v4", "v5"])
    assert sorted(column(import_from(tmp_path / "data.toml"), "user_id")) == [*USERS, "v1", "v2", "v3", "v4", "v5"]


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kept", [0, 4, 300, -20])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    file = tmp_path / f"log{suffix}"
    write_table(file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"log{suffix}") as caught:
        import_from(write_data_file(tmp_path, f'"log{suffix}"'))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "made").glob("*"))


@pytest.mark.parametrize("damage", ["truncated", "not gzip", "empty"])
def test_a_damaged_compressed_file_is_named(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(("\n".join([HEADER, *(f"u{i},{i},{NOON + i},1,{i * i * i}" for i in range(20_000))])).encode())
    content = {"truncated": packed[: len(packed) // 2], "not gzip": b"user_id,item_id", "empty": b""}[damage]
    (tmp_path / "log.csv.gz").write_bytes(content)
    with pytest.raises(DataError, match=r"log\.csv\.gz") as caught:
        import_from(write_data_file(tmp_path, '"log.csv.gz"'))
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "made").glob("*"))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_is_read(tmp_path: Path, suffix: str) -> None:
    with pa.output_stream(tmp_path / f"log.csv{suffix}", compression="detect") as stream:
        stream.write(rows_with(ROWS[2]).encode())
    assert column(import_from(write_data_file(tmp_path, f'"log.csv{suffix}"')), "user_id") == USERS


def test_the_second_file_and_its_row_are_named(tmp_path: Path) -> None:
    (tmp_path / "log1.csv").write_text(rows_with(ROWS[2]))
    (tmp_path / "log2.csv").write_text(rows_with(ROWS[2], f"u3,3,{NOON},2,0"))
    with pytest.raises(DataError, match=r"log2\.csv, row 4, column `liked`: expected 0 or 1, got 2"):
        import_from(write_data_file(tmp_path, '"log*.csv"'))


def test_a_file_without_a_column_has_unknown_values(tmp_path: Path) -> None:
    (tmp_path / "log1.csv").write_text(rows_with(ROWS[2]))
    (tmp_path / "log2.csv").write_text(f"user_id,item_id,time\nu6,6,{NOON + 6}\n")
    log = import_from(write_data_file(tmp_path, '"log*.csv"'))
    assert column(log, "like") == [True, False, True, False, True, None]


def test_folders_of_days_are_columns(tmp_path: Path) -> None:
    for day in ("2023-11-14", "2023-11-15"):
        (tmp_path / "log" / f"day={day}").mkdir(parents=True)
        (tmp_path / "log" / f"day={day}" / "part.csv").write_text("user_id,item_id,liked\nu1,1,1\n")
    log = import_from(write_data_file(tmp_path, '"log"', impressions="SELECT *, day AS time FROM log"))
    assert column(log, "impression_ms") == [1_699_920_000_000, 1_700_006_400_000]


def test_a_wrong_item_is_named_in_the_items_of_a_join(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(rows_with(ROWS[2]))
    (tmp_path / "items.csv").write_text("item_id,length\n1,10\n2,20\n3,-30\n4,40\n5,50\n")
    joined = "SELECT log.*, length AS buffering_ms FROM log JOIN items USING (item_id)"
    path = write_data_file(tmp_path, '"log.csv"\nitems = "items.csv"', impressions=joined)
    with pytest.raises(DataError, match=r"items\.csv, row 3, column `length`: expected a whole number from 0, got -30"):
        import_from(path)


def test_files_of_several_kinds_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(rows_with(ROWS[2]))
    write_table(tmp_path / "log.parquet")
    with pytest.raises(DataError, match="expected files of CSV, Parquet or Arrow, got csv, parquet"):
        import_from(write_data_file(tmp_path, '"log.*"'))
    with pytest.raises(DataError, match=r"none\.csv: expected a file, a folder or a pattern of files, got nothing"):
        import_from(write_data_file(tmp_path, '"none.csv"'))


def test_a_log_that_is_there_survives_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text(rows_with(ROWS[2]))
    first = import_from(write_data_file(tmp_path)).digest()
    (tmp_path / "log.csv").write_text(rows_with(f",3,{NOON},1,1"))
    with pytest.raises(DataError):
        import_from(tmp_path / "data.toml")
    assert open_log(tmp_path / "made" / "log").digest() == first
    assert [file.name for file in (tmp_path / "made").iterdir()] == ["log"]
