"""Draft of a data file for the tables in a folder, by the names of their columns and by a look at their values.

A draft is a beginning: comments say what was guessed, and what is left to decide.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import duckdb
import msgspec

from pocketrank.cloud.data.column_checks import is_float
from pocketrank.cloud.data.data_file import DataFile
from pocketrank.cloud.data.id_codes import WHOLE_NUMBERS
from pocketrank.cloud.data.schema import DataError
from pocketrank.cloud.data.source_tables import SourceTables, fetch, quoted

__all__ = ["draft_data_file"]

_ENDING = r"\.(csv|tsv)(\.(gz|zst))?$|\.(parquet|pq|arrow|feather|ipc)$"
_PART = re.compile(r"[-_.]?(part)?[-_.]?\d[\d._-]*")
_ID = r"([_-]?(id|key|code|no|num|uuid|sk))?s?"
_NAMES = {
    "user_id": rf"(user|uid|member|customer|client|visitor|viewer|account|reader|listener|reviewer|person|profile){_ID}|u_?id",
    "item_id": rf"(item|movie|video|product|article|news|song|track|clip|post|book|ad|asin|sku|content){_ID}|i_?id|vid",
    "time": r"time|ts|timestamp|date|datetime|day|(event|created?|view|play|rated?|impression|server|request)[_-]?"
    r"(time|ts|date|at|on)(stamp)?([_-]?(ms|s))?|time[_-]?(ms|s|stamp|us|ns)|unix.*",
    "watch": r"(watch|play|view|dwell|listen|stay|read|consum)\w*([_-]?(time|duration|ms|s|sec|seconds|length))*",
    "rating": r"(rating|stars|score|overall|grade)s?",
    "event": r"(event|action|behaviou?r|interaction|activity)([_-]?(type|name|kind))?|type",
    "session_id": rf"(session|visit){_ID}",
    "page_id": rf"(page|request|impression|slate|list){_ID}",
    "position": r"(position|pos|rank|slot)(_?in_?\w+)?",
    "author_id": rf"(author|creator|artist|seller|brand|channel|uploader|publisher|owner|shop){_ID}",
    "category": r"(main_?)?(genre|categor(y|ies)|topic|tag|section|department|class)s?(_?(id|name))?",
    "upload_time": r"(upload|publish|release|created?|added)\w*|year",
    "duration_ms": r"(duration|length|runtime)\w*|\w*_(duration|length)(_\w+)?",
}
_TEXT_KINDS = 1000
"""Largest number of different texts of a category."""
_EVENTS = 20
"""Largest number of different events."""
_UNITS = ((1e17, "ns"), (1e14, "us"), (1e11, "ms"), (1e8, "s"))


@dataclass
class _Table:
    """A table of a folder, and what its columns look like."""

    name: str
    files: str
    types: dict[str, str]
    rows: int
    distinct: dict[str, int]
    ends: dict[str, tuple[Any, Any]]
    lists: dict[str, str]
    """SQL of the values of columns of several, such as lists and texts like `Comedy|Drama`."""
    roles: dict[str, str] = field(default_factory=dict)
    """Column by what it seems to be, a key of `_NAMES`."""

    def unique(self, role: str) -> bool:
        """Whether a role's column has another value in nearly each row; counts are estimates."""
        column = self.roles.get(role)
        return column is not None and self.distinct[column] > 0.9 * self.rows


def draft_data_file(folder: Path, start: Path | None = None) -> str:
    """Return the text of a data file for the tables in `folder`, with paths that begin at `start`, by default that folder.

    Raises `DataError` for a folder without tables, and for a file that cannot be read.
    """
    groups = _groups(folder)
    if not groups:
        raise DataError(str(folder), "expected a folder with files of CSV, Parquet or Arrow, got none")
    with duckdb.connect() as db:
        tables = [_look(db, folder, name, pattern) for name, pattern in groups.items()]
    shown = [table for table in tables if {"user_id", "item_id"} <= table.roles.keys()]
    log = max(shown or tables, key=lambda table: ("time" in table.roles, table.rows))
    others = [table for table in tables if table is not log]
    items = next((one for one in others if one.unique("item_id") and "user_id" not in one.roles), None)
    users = next((one for one in others if one.unique("user_id") and "item_id" not in one.roles), None)
    if start is not None and start.resolve() != folder.resolve():
        for table in tables:
            table.files = os.path.relpath(folder.resolve() / table.files, start.resolve())
    return "\n".join(_lines(folder, tables, log, items, users)) + "\n"


def _groups(folder: Path) -> dict[str, str]:
    """Return patterns of files by the name of their table. Files whose names differ by numbers alone are one table."""
    if not folder.is_dir():
        raise DataError(str(folder), "expected a folder with tables, got none")
    found: dict[str, list[str]] = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and re.search(_ENDING, file.name, re.IGNORECASE):
            relative = file.relative_to(folder)
            inside = relative.parts[0] if len(relative.parts) > 1 else None
            stem = re.sub(_ENDING, "", relative.name, flags=re.IGNORECASE)
            found.setdefault(inside or _PART.sub("_", stem).strip("_") or "table", []).append(relative.as_posix())
    groups = {}
    for name, files in found.items():
        ending = re.search(_ENDING, files[0], re.IGNORECASE)
        pattern = files[0]
        if "/" in files[0]:
            pattern = name
        elif len(files) > 1:
            pattern = f"{name}*{ending[0] if ending else ''}"
        groups[re.sub(r"\W", "_", name if not name[:1].isdigit() else f"t_{name}")] = pattern
    return groups


def _look(db: duckdb.DuckDBPyConnection, folder: Path, name: str, files: str) -> _Table:
    file = msgspec.convert(
        {
            "name": name, "time_zone": "UTC", "tables": {name: {"files": files}}, "impressions": {"sql": "-"},
            "labels": {"x": "-"}, "tasks": {"x": 1.0},
        },
        DataFile,
    )  # fmt: skip
    sources = SourceTables(db, folder / "data.toml", file, folder)
    sources.open()
    types = {row[0]: str(row[1]) for row in fetch(db, f"DESCRIBE {quoted(name)}")}
    figures = ", ".join(
        f"approx_count_distinct({quoted(one)}), min({quoted(one)}), max({quoted(one)}), "
        + (f"count(*) FILTER (contains({quoted(one)}, '|'))" if type_ == "VARCHAR" else "0")
        for one, type_ in types.items()
    )
    rows, *values = fetch(db, f"SELECT count(*), {figures} FROM {quoted(name)}")[0]
    table = _Table(name, files, types, rows, {}, {}, {})
    for number, (column, type_) in enumerate(types.items()):
        table.distinct[column], low, high, several = values[4 * number : 4 * number + 4]
        table.ends[column] = (low, high)
        if several > rows / 10:
            table.lists[column] = f"string_split({_sql(column)}, '|')"
        elif type_ == "VARCHAR[]":
            table.lists[column] = _sql(column)
    for role, pattern in _NAMES.items():
        matching = [one for one in types if re.fullmatch(pattern, _snake(one)) and one not in table.roles.values()]
        if role == "time":  # the finest
            matching = sorted((one for one in matching if _is_time(table, one)), key=lambda one: -table.distinct[one])
        if matching:
            table.roles[role] = matching[0]
    return table


def _is_time(table: _Table, column: str) -> bool:
    type_, high = table.types[column], table.ends[column][1]
    return type_ == "DATE" or type_.startswith("TIMESTAMP") or (isinstance(high, int | float) and high >= _UNITS[-1][0])


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def _lines(folder: Path, tables: Sequence[_Table], log: _Table, items: _Table | None, users: _Table | None) -> Iterator[str]:
    time = log.roles.get("time")
    yield f"# Drafted from the tables in {folder.name}. Read it, correct it, and then:"
    yield "#"
    yield "#   pocketrank data check FILE.toml      tells what the tables hold, and what looks wrong"
    yield "#   pocketrank train --data FILE.toml --out runs/first"
    yield ""
    yield f"name = {_toml(re.sub(r'[^a-z0-9]+', '-', folder.resolve().name.lower()).strip('-') or 'log')}"
    yield "# Whose clocks tell day and hour? An IANA name, such as Europe/Berlin. Times without a zone are of this one."
    yield 'time_zone = "UTC"'
    if time is not None and (unit := _unit(log, time)):
        yield f'time_unit = "{unit}"  # of `{time}`, by its size'
    yield ""
    yield "[tables]"
    for table in tables:
        yield f"{table.name} = {_toml(table.files)}"
    yield ""
    yield from _impressions(log)
    if items is not None:
        yield from _items(items)
    if users is not None:
        yield from _users(users)
    yield from _labels(log)


def _impressions(log: _Table) -> Iterator[str]:
    yield "# One row for each item that a user was shown, whether they liked it or not."
    yield "[impressions]"
    yield 'sql = """'
    chosen, used = [], set()
    for role in ("user_id", "item_id", "time"):
        column = log.roles.get(role)
        chosen.append(_as(column, role) if column else f"NULL AS {role}  -- which column is it?")
        used.add(column)
    if (column := log.roles.get("watch")) and (log.types[column] in WHOLE_NUMBERS or is_float(log.types[column])):
        seconds = log.ends[column][1] is not None and log.ends[column][1] < 10_000 and "ms" not in column
        unit = "seconds" if seconds else "milliseconds"
        chosen.append(f"{'1000 * ' if seconds else ''}{_sql(column)} AS watch_ms  -- if `{column}` is in {unit}")
        if column == "watch_ms":
            used.add(column)
    for role in ("session_id", "page_id", "position"):
        if (column := log.roles.get(role)) and column not in used:
            chosen.append(_as(column, role))
            used.add(column)
    chosen += [_sql(column) for column in log.types if column not in used and column.lower() not in ("watch_ms", "time")]
    yield from _select(chosen, log.name)
    yield '"""'
    yield ""


def _select(columns: Sequence[str], table: str) -> Iterator[str]:
    """Yield a SELECT with a column a line, some of which have a comment."""
    for number, column in enumerate(columns):
        sql, dashes, comment = column.partition("  --")
        yield f"{'       ' if number else 'SELECT '}{sql}{',' if number + 1 < len(columns) else ''}{dashes}{comment}"
    yield f"FROM {_sql(table)}"


def _as(column: str, name: str) -> str:
    return column if column == name else f"{_sql(column)} AS {name}"


def _items(items: _Table) -> Iterator[str]:
    yield "# What is known of an item. Also `music_id`, and `vector`, a list of numbers. Lists of texts are categories."
    yield "[items]"
    yield 'sql = """'
    chosen = [_as(items.roles["item_id"], "item_id")]
    if column := items.roles.get("duration_ms"):
        high = items.ends[column][1]
        seconds = isinstance(high, int | float) and high < 100_000 and "ms" not in column
        chosen.append(f"{'1000 * ' if seconds else ''}{_sql(column)} AS duration_ms")
    if column := items.roles.get("author_id"):
        chosen.append(_as(column, "author_id"))
    if column := items.roles.get("category"):
        several = items.lists.get(column)
        chosen.append(f"{several}[1] AS category  -- the first of several" if several else _as(column, "category"))
    if (column := items.roles.get("upload_time")) and (
        items.types[column] == "DATE" or items.types[column].startswith("TIMESTAMP")
    ):
        chosen.append(_as(column, "upload_time"))
    chosen += [
        _values(items, column)
        for column in items.lists
        if column == items.roles.get("category") or items.types[column] == "VARCHAR[]"
    ]
    yield from _select(chosen, items.name)
    yield '"""'
    yield ""


def _values(table: _Table, column: str) -> str:
    """Return the SQL of a column of lists under a name of its own."""
    name = "categories" if column.lower() == "category" else column
    return (
        table.lists[column]
        if table.types[column] == "VARCHAR[]" and name == column
        else f"{table.lists[column]} AS {_sql(name)}"
    )


def _users(users: _Table) -> Iterator[str]:
    yield "# What is known of a user. Texts are categories; numbers are best of a size near 1, such as ln(1 + a count)."
    yield "[users]"
    yield 'sql = """'
    key, chosen = users.roles["user_id"], []
    for column, type_ in users.types.items():
        if column == key:
            continue
        if column in users.lists:
            chosen.append(_values(users, column))
        elif type_ in WHOLE_NUMBERS or is_float(type_):
            low, high = users.ends[column]
            size = f"ln(1 + {_sql(column)})" if low is not None and low >= 0 and high > 1 else f"CAST({_sql(column)} AS DOUBLE)"
            chosen.append(f"{size} AS {_sql(column)}")
        elif type_ == "BOOLEAN" or (type_ == "VARCHAR" and users.distinct[column] <= _TEXT_KINDS):
            chosen.append(_sql(column))
    yield from _select([_as(key, "user_id"), *chosen], users.name)
    yield '"""'
    yield ""


def _labels(log: _Table) -> Iterator[str]:
    found: dict[str, str] = {}
    for column, type_ in log.types.items():
        if column in (log.roles.get(role) for role in ("user_id", "item_id", "time", "position", "session_id", "page_id")):
            continue
        if type_ == "BOOLEAN" or (type_ in WHOLE_NUMBERS and log.ends[column] == (0, 1)):
            name = re.sub(r"^is_", "", re.sub(r"\W", "_", _snake(column)))
            found[name] = _sql(column)
    rating = log.roles.get("rating")
    if rating is not None and (log.types[rating] in WHOLE_NUMBERS or is_float(log.types[rating])):
        found["like"] = f"{_sql(rating)} >= {_high(log.ends[rating])}"
    if not found and (log.roles.get("watch") is not None):
        found["long_view"] = "watch_ms >= 7000"
    yield "# Conditions over the columns of an impression. NULL is unknown. Names that every model knows: click, like, follow,"
    yield "# comment, share, profile_enter, dislike, effective_view, long_view, has_next. Others are yours."
    yield "[labels]"
    if not found:
        yield 'like = "NULL"  # which column, or condition, is it?'
        found = {"like": ""}
    else:
        for name, condition in found.items():
            yield f"{name} = {_toml(condition)}"
    yield ""
    yield "# Labels that models predict, each with its weight in the order of a page."
    yield "[tasks]"
    for name in found:
        yield f"{name} = 1.0"


def _unit(log: _Table, column: str) -> str | None:
    high = log.ends[column][1]
    if not isinstance(high, int | float):
        return None
    return next((unit for least, unit in _UNITS if high >= least), "s")


def _high(ends: tuple[Any, Any]) -> str:
    """Return four fifths of the highest rating, as 4 is of 5."""
    return f"{0.8 * float(ends[1]):g}"


def _sql(name: str) -> str:
    return name if re.fullmatch(r"[a-z_][a-z0-9_]*", name, re.IGNORECASE) and name.lower() not in _RESERVED else quoted(name)


_RESERVED = {"user", "like", "order", "group", "desc", "asc", "end", "default", "table", "select", "from", "where", "check"}


def _toml(text: str) -> str:
    return msgspec.json.encode(text).decode()
