"""An impression log from the tables of a data file, read and mapped by DuckDB (Raasveldt & Mühleisen, SIGMOD 2019).

Ids that are whole numbers of 64 bits stay as they are. Others, such as text, are replaced by codes from 1 in the order of their
texts; `MappedLog.ids` has the dictionary. So are categories; code 0 is unknown.

What the queries return, beside the columns of labels:

===========  ========================================================  ====================================================
query        required                                                  optional
===========  ========================================================  ====================================================
impressions  `user_id`, `item_id`, `time`                              `watch_ms`, `session_id`, `page_id`, `position`, `scene`,
                                                                       the fields of a feedback event, any other
items        `item_id`                                                 `duration_ms`, `author_id`, `music_id`, `category`,
                                                                       `upload_time`, `vector`
users        `user_id`                                                 any other: texts and booleans are categories, floats
                                                                       and decimals are numbers
===========  ========================================================  ====================================================

Errors::

    DataError                  names the data file and the query, or the file, the row and the column that cannot be read
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pocketrank.cloud.data.data_file import DataFile, Query, TableFiles, open_data_file
from pocketrank.cloud.data.schema import HISTORY, IMPRESSIONS, ITEMS, LABELS, PAGES, USERS, DataError, ImpressionLog
from pocketrank.cloud.data.validate import validate

__all__ = ["MappedLog", "load_mapped"]

Progress = Callable[[str, float], None]

_UNITS = {"s": "* 1000", "ms": "", "us": "// 1000", "ns": "// 1000000"}
_KINDS = {"csv": r"\.(csv|tsv|txt)(\.(gz|zst))?$", "parquet": r"\.(parquet|pq)$", "arrow": r"\.(arrow|feather|ipc)$"}
_CSV_LINE = re.compile(r"CSV Error on Line: (\d+)")
_CSV_COLUMN = re.compile(r'(?:Error when converting column|Column name:?) "([^"]*)"')
_CSV_FILE = re.compile(r"^\s*file ?= ?(.*)$", re.MULTILINE)
_INTEGERS = {"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"}
_NUMBERS = re.compile(r"FLOAT|DOUBLE|DECIMAL.*")


@dataclass(frozen=True)
class MappedLog:
    """A log, and the ids that its codes stand for."""

    log: ImpressionLog
    ids: dict[str, list[str]] = field(default_factory=dict)
    """By kind (`user_id`, `item_id`, `category`, …): the text of code i + 1. A kind whose ids are numbers is absent."""


def load_mapped(path: Path, *, progress: Progress | None = None) -> MappedLog:
    """Return the validated log of the data file `path`.

    `progress` receives the name of the table that is being made, and the share of all that is done, 0 to 1. Rows of a query
    that are equal in all columns count once. Raises `DataError`.
    """
    file = open_data_file(path)
    with _errors(path, "$.tables"), duckdb.connect() as db:
        db.execute(f"SET TimeZone = {_text(file.time_zone)}")
        mapped = _Mapping(db, path, file).log(progress or (lambda name, share: None))
    try:
        validate(mapped.log)
    except DataError as error:
        where = f"$.{error.file}: row {error.row} in the order of the log" if error.row else f"$.{error.file}"
        raise DataError(str(path), f"{where}: {error.message}", column=error.column) from error
    return mapped


class _Mapping:
    """The tables of one data file, and their dictionaries."""

    def __init__(self, db: duckdb.DuckDBPyConnection, path: Path, file: DataFile) -> None:
        self._db, self._path, self._file = db, path, file
        self._ids: dict[str, list[str]] = {}
        for name, table in file.tables.items():
            with _errors(path, f"$.tables.{name}"):
                self._open(name, TableFiles(files=table) if isinstance(table, str) else table)

    def log(self, progress: Progress) -> MappedLog:
        """Return the log of the queries."""
        file = self._file
        impressions = self._run("impressions", file.impressions, "user_id", "item_id", "time")
        progress("impressions", 0.3)
        items = self._run("items", file.items or _ids_of("item_id"), "item_id")
        users = self._run("users", file.users or _ids_of("user_id"), "user_id")
        progress("ids", 0.5)
        for name, tables in (
            ("user_id", (impressions, users)),
            ("item_id", (impressions, items)),
            ("author_id", (items,)),
            ("music_id", (items,)),
            ("session_id", (impressions,)),
            ("page_id", (impressions,)),
            ("category", (items,)),
        ):
            self._number(name, [table for table in tables if name in table.types])
        progress("items", 0.6)
        item_table = self._items(items)
        progress("users", 0.7)
        user_table = self._users(users)
        progress("impressions", 0.8)
        log = ImpressionLog(
            name=file.name,
            simulated=file.simulated,
            time_zone=file.time_zone,
            tasks=dict(file.tasks),
            impressions=self._impressions(impressions),
            items=item_table,
            users=user_table,
            history=HISTORY.empty_table(),
            pages=PAGES.empty_table(),
        )
        progress("impressions", 1.0)
        return MappedLog(log, self._ids)

    # Files.

    def _open(self, name: str, table: TableFiles) -> None:
        """Give a table's files its name in SQL."""
        found = self._found([table.files] if isinstance(table.files, str) else table.files)
        kinds = {next((kind for kind, ending in _KINDS.items() if re.search(ending, file, re.I)), file) for file in found}
        if len(kinds) > 1 or not kinds <= _KINDS.keys():
            raise DataError(
                str(self._path), f"$.tables.{name}: expected files of CSV, Parquet or Arrow, got {', '.join(sorted(kinds))}"
            )
        (kind,) = kinds
        if kind == "arrow":
            self._db.register(name, ds.dataset(found, format="ipc"))
            return
        read = f"read_csv([{_texts(found)}], {_csv_options(table, found)})"
        if kind == "parquet":
            read = f"read_parquet([{_texts(found)}], hive_partitioning = true, union_by_name = true)"
        self._db.execute(f"CREATE VIEW {_name(name)} AS SELECT * FROM {read}")

    def _found(self, patterns: Sequence[str]) -> list[str]:
        found: list[str] = []
        for pattern in patterns:
            full = self._path.parent / pattern
            files = sorted(str(file) for file in full.rglob("*") if file.is_file()) if full.is_dir() else []
            files = files or sorted(row[0] for row in self._db.execute("SELECT file FROM glob(?)", [str(full)]).fetchall())
            if not files:
                raise DataError(str(full), "expected a file, a folder or a pattern of files, got nothing")
            found += files
        return found

    # Queries.

    def _run(self, name: str, query: Query, *needed: str) -> _Table:
        """Make the table of a query, of which these columns must have values."""
        with _errors(self._path, f"$.{name}.sql"):
            self._db.execute(f"CREATE TABLE q_{name} AS SELECT DISTINCT * FROM ({query.sql}\n)")
            types = {row[0]: str(row[1]) for row in self._db.execute(f"DESCRIBE q_{name}").fetchall()}
        for column in needed:
            if column not in types:
                self._fail(name, f"expected a column `{column}`, got {', '.join(types)}", column)
            if row := self._db.execute(f"SELECT * FROM q_{name} WHERE {column} IS NULL LIMIT 1").fetchone():
                self._fail(name, f"expected a value, got NULL in the row {_shown(types, row)}", column)
        return _Table(name, types)

    def _fail(self, name: str, message: str, column: str) -> None:
        raise DataError(str(self._path), f"$.{name}.sql: {message}", column=column)

    def _number(self, kind: str, tables: Sequence[_Table]) -> None:
        """Make `ids_KIND`: the number of each id that is not one itself. No table where all are whole numbers."""
        if not tables or all(table.types[kind] in _INTEGERS for table in tables):
            return
        ids = " UNION ALL ".join(f"SELECT CAST({kind} AS VARCHAR) AS id FROM q_{table.name}" for table in tables)
        self._db.execute(
            f"CREATE TABLE ids_{kind} AS SELECT id, row_number() OVER (ORDER BY id) AS code "
            f"FROM (SELECT DISTINCT id FROM ({ids}) WHERE id IS NOT NULL)"
        )
        self._ids[kind] = [row[0] for row in self._db.execute(f"SELECT id FROM ids_{kind} ORDER BY code").fetchall()]

    def _joins(self, kinds: Sequence[str]) -> str:
        return "".join(
            f" LEFT JOIN ids_{kind} ON ids_{kind}.id = CAST(q.{kind} AS VARCHAR)" for kind in kinds if kind in self._ids
        )

    def _code(self, kind: str) -> str:
        return f"ids_{kind}.code" if kind in self._ids else f"q.{kind}"

    def _time(self, table: _Table, column: str) -> str:
        """Return SQL for a time in milliseconds since the epoch."""
        kind = table.types[column]
        if kind in _INTEGERS or kind in ("FLOAT", "DOUBLE", "UBIGINT", "HUGEINT") or kind.startswith("DECIMAL"):
            if self._file.time_unit is None:
                raise DataError(str(self._path), "$.time_unit: expected `s`, `ms`, `us` or `ns`, because times are numbers")
            return f"CAST(q.{column} {_UNITS[self._file.time_unit]} AS BIGINT)"
        if kind == "DATE" or kind.startswith("TIMESTAMP"):
            return f"epoch_ms(CAST(q.{column} AS TIMESTAMPTZ))"
        self._fail(table.name, f"expected a number or a time, got {kind}; CAST(… AS TIMESTAMP) makes one", column)
        raise AssertionError

    def _items(self, table: _Table) -> pa.Table:
        """Return `ITEMS`: those of the query, and those of impressions that are not among them."""
        self._unique(table, "item_id")
        columns = {"item_id": self._code("item_id"), "duration_ms": "0"}
        columns |= {name: self._code(name) for name in ("author_id", "music_id", "category") if name in table.types}
        if "duration_ms" in table.types:
            columns["duration_ms"] = "coalesce(CAST(round(q.duration_ms) AS BIGINT), 0)"
        if "upload_time" in table.types:
            columns["upload_ms"] = self._time(table, "upload_time")
        if "vector" in table.types:
            columns["vector"] = "q.vector"
        known = self._select(columns, ITEMS, f"q_items AS q{self._joins(('item_id', 'author_id', 'music_id', 'category'))}")
        others = """(SELECT DISTINCT item_id FROM q_impressions WHERE item_id NOT IN (SELECT item_id FROM q_items)) AS q"""
        unknown = self._select(
            {"item_id": self._code("item_id"), "duration_ms": "0"}, ITEMS, others + self._joins(("item_id",))
        )
        return pa.concat_tables([known, unknown]).combine_chunks().sort_by("item_id")

    def _users(self, table: _Table) -> pa.Table:
        """Return `USERS`."""
        self._unique(table, "user_id")
        categories, floats = [], []
        for name, kind in table.types.items():
            if name == "user_id":
                continue
            if kind in ("VARCHAR", "BOOLEAN") or kind.startswith("ENUM"):
                column = _name(name)
                categories.append(
                    f"CASE WHEN q.{column} IS NULL THEN 0 ELSE dense_rank() OVER (ORDER BY CAST(q.{column} AS VARCHAR) NULLS LAST) END"
                )
            elif _NUMBERS.fullmatch(kind):
                floats.append(f"coalesce(CAST(q.{_name(name)} AS FLOAT), 0)")
            else:
                got = f"got {kind}; CAST it AS VARCHAR for a category, or AS DOUBLE for a number"
                self._fail("users", f"expected text, a boolean or a float, {got}", name)
        columns = {
            "user_id": self._code("user_id"),
            "categories": f"[{', '.join(categories)}]::INTEGER[]",
            "floats": f"[{', '.join(floats)}]::FLOAT[]",
        }
        return self._select(columns, USERS, f"q_users AS q{self._joins(('user_id',))}").sort_by("user_id")

    def _impressions(self, table: _Table) -> pa.Table:
        """Return `IMPRESSIONS` with the labels of the data file."""
        labels = self._file.labels
        own = [name for name in labels if name not in LABELS]
        columns = {name: f"q.{name}" for name in table.types if name in IMPRESSIONS.names and name not in (*LABELS, *labels)}
        columns |= {name: self._code(name) for name in ("user_id", "item_id", "session_id", "page_id") if name in table.types}
        columns["impression_ms"] = self._time(table, "time")
        columns["watch_ms"] = "coalesce(CAST(round(q.watch_ms) AS BIGINT), 0)" if "watch_ms" in table.types else "0"
        for name, condition in labels.items():
            with _errors(self._path, f"$.labels.{name}"):
                kind = self._db.execute(f"SELECT typeof({condition}) FROM ({self._with_duration(table)}) LIMIT 1").fetchone()
                if kind and kind[0] not in ("BOOLEAN", *_INTEGERS):
                    raise DataError(str(self._path), f"$.labels.{name}: expected a condition, got {kind[0]}")
            columns[name] = f"q.label_{name}"
        conditions = ", ".join(f"CAST(({condition}) AS BOOLEAN) AS label_{name}" for name, condition in labels.items())
        source = f"(SELECT *, {conditions} FROM ({self._with_duration(table)})) AS q"
        schema = pa.schema([*IMPRESSIONS, *(pa.field(name, pa.bool_()) for name in own)])
        joins = self._joins(("user_id", "item_id", "session_id", "page_id"))
        return self._select(columns, schema, source + joins, order="impression_ms, user_id, item_id")

    def _with_duration(self, table: _Table) -> str:
        if "duration_ms" in table.types or self._file.items is None or "duration_ms" not in self._types("items"):
            return "SELECT * FROM q_impressions"
        return "SELECT q_impressions.*, d.duration_ms FROM q_impressions LEFT JOIN q_items AS d USING (item_id)"

    def _types(self, name: str) -> dict[str, str]:
        return {row[0]: str(row[1]) for row in self._db.execute(f"DESCRIBE q_{name}").fetchall()}

    def _unique(self, table: _Table, column: str) -> None:
        twice = f"SELECT {column} FROM q_{table.name} GROUP BY {column} HAVING count(*) > 1 ORDER BY {column} LIMIT 1"
        if row := self._db.execute(twice).fetchone():
            self._fail(table.name, f"expected one row for each {column}, got several that differ for {row[0]!r}", column)

    def _select(self, columns: dict[str, str], schema: pa.Schema, source: str, order: str = "") -> pa.Table:
        """Return the columns of a source as a table of `schema`, with nulls where there is none."""
        name = next(name for name, known in _SCHEMAS.items() if known.names[0] in schema.names)
        chosen = ", ".join(f"{sql} AS {column}" for column, sql in columns.items())
        with _errors(self._path, f"$.{name}.sql"):
            found = self._db.sql(f"SELECT {chosen} FROM {source}{f' ORDER BY {order}' if order else ''}").to_arrow_table()
        arrays = []
        for one in schema:
            if one.name not in columns:
                arrays.append(pa.nulls(len(found), one.type))
                continue
            try:
                arrays.append(found[one.name].cast(one.type))
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise DataError(str(self._path), f"$.{name}.sql: expected {one.type}, got: {error}", column=one.name) from error
        return pa.Table.from_arrays(arrays, schema=schema)


_SCHEMAS = {"impressions": IMPRESSIONS, "items": ITEMS, "users": USERS}


@dataclass(frozen=True)
class _Table:
    """The table `q_NAME` of a query, and the types of its columns."""

    name: str
    types: dict[str, str]


def _ids_of(column: str) -> Query:
    return Query(sql=f"SELECT DISTINCT {column} FROM q_impressions")


def _csv_options(table: TableFiles, found: Sequence[str]) -> str:
    delimiter = table.delimiter or ("\t" if ".tsv" in found[0].lower() else ",")
    quote = table.quote or ""
    types = ", ".join(f"{_text(name)}: {_text(kind)}" for name, kind in table.types.items())
    return ", ".join(
        (
            f"delim = {_text(delimiter)}, quote = {_text(quote)}, escape = {_text(quote)}, header = true, auto_detect = true",
            f"nullstr = [{_texts(table.nulls)}], encoding = {_text(table.encoding)}, sample_size = 100000, strict_mode = true",
            "union_by_name = true, null_padding = false, hive_partitioning = true",
            *((f"types = {{{types}}}",) if types else ()),
        )
    )


@contextmanager
def _errors(path: Path, where: str) -> Iterator[None]:
    """Turn an error of DuckDB into a `DataError` at the file, row and column that it names, or else at a place of the data file."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if line := _CSV_LINE.search(text):
            file, column = _CSV_FILE.search(text), _CSV_COLUMN.search(text)
            what = text[line.end() :].split("\n\n")[0].strip().splitlines()
            message = next(
                (one for one in reversed(what) if one and not one.startswith("Original Line")), "a row that cannot be read"
            )
            raise DataError(
                file[1].strip() if file else str(path),
                message,
                row=int(line[1]) - 1,
                column=column[1] if column else None,
            ) from error
        message = " ".join(text.split())
        raise DataError(str(path), f"{where}: {message[:500]}") from error


def _shown(types: dict[str, str], row: Sequence[object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in zip(types, row, strict=True))[:200]


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _texts(values: Sequence[str]) -> str:
    return ", ".join(map(_text, values))


def _name(value: str) -> str:
    return '"' + value.replace('"', '""') + '"'
