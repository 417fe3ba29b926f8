"""Tables of a data file as views in DuckDB, and the place in their files that is to blame for an error.

A query may do anything with its tables, so nothing of its result says from which row of which file it came. The place is found
by running the query again on fewer and fewer rows: the half of the rows with which it still fails is halved again, until one
is left. That takes as long as reading the table twice, and only happens once something is wrong.

Errors::

    DataError                  a file that is missing or cannot be read; names file, row and column
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pocketrank.cloud.data.data_file import DataFile, TableFiles
from pocketrank.cloud.data.schema import DataError

__all__ = ["Place", "SourceTables", "duckdb_errors", "fetch", "names_table", "quoted", "text_literal"]

_KINDS = {"csv": r"\.(csv|tsv|txt)(\.(gz|zst))?$", "parquet": r"\.(parquet|pq)$", "arrow": r"\.(arrow|feather|ipc)$"}
_CSV_LINE = re.compile(r"CSV Error on Line: (\d+)")
_CSV_COLUMN = re.compile(r'(?:Error when converting column|Column name:?) "([^"]*)"')
_CSV_FILE = re.compile(r"^\s*file ?= ?(.*)$", re.MULTILINE)
_MESSAGE_LENGTH = 400
_HEADER_BYTES = 1 << 20
_SAMPLE_ROWS = 100_000
"""Rows by which DuckDB finds out the types of CSV."""
_FORM_ROWS = 2048
"""Rows by which it finds out whether lines end in `\\r\\n`, and the like, where types are known."""
_PLAIN = frozenset({"BIGINT", "DOUBLE", "BOOLEAN", "VARCHAR"})


@dataclass(frozen=True)
class Place:
    """Row of a file."""

    file: str
    row: int
    """From 1, without the header."""
    column: str | None
    """The column that has the value in question; None if none has exactly this value."""


class SourceTables:
    """The tables of one data file, each a view under its name."""

    def __init__(self, db: duckdb.DuckDBPyConnection, path: Path, file: DataFile, folder: Path) -> None:
        """`folder` is where the paths in the data file `path` begin. Raises `DataError`."""
        self._db, self._path, self._folder = db, path, folder
        self._tables = {
            name: TableFiles(files=table) if isinstance(table, str) else table for name, table in file.tables.items()
        }
        self.files: dict[str, list[str]] = {}
        """The files of each table. A table that may be absent, and is, has none."""
        for name, table in self._tables.items():
            self.files[name] = self._found(table)

    @property
    def absent(self) -> list[str]:
        """Names of optional tables without files."""
        return [name for name, files in self.files.items() if not files]

    def open(self) -> None:
        """Make the views. Raises `DataError`."""
        for name, files in self.files.items():
            if files:
                with duckdb_errors(self._path, f"$.tables.{name}"):
                    try:
                        self._view(name, self._source(name, files))
                    except duckdb.InvalidInputException:
                        self._scan(name)
                        raise
                    self._keep_types(name)

    def locate(self, sql: str, failure: Callable[[], str | None]) -> Place | None:
        """Return the place in the files that makes a query fail; None if no single row does.

        `sql` names the tables that the query reads. `failure` runs it: it returns the value in question, as text, or None if
        nothing is wrong. The views have fewer rows afterwards, so that the query cannot be run again.
        """
        places: list[tuple[Place, dict[str, str | None]]] = []
        for name in (name for name, files in self.files.items() if files and names_table(sql, name)):
            if row := self._halve(name, failure):
                file, number = str(row.pop("#file")), int(row.pop("#row") or 0)
                places.append((Place(file, number, None), row))
        value = failure()
        for place, row in places:
            if columns := [column for column, found in row.items() if found == value]:
                return Place(place.file, place.row, columns[0])
        return places[0][0] if places else None

    def odd_text(self, sql: str) -> tuple[Place, str] | None:
        """Return the first text among numbers, in a column that SQL names, and its place; None if there is none.

        Such a text makes the whole column one of texts, with which SQL that was written for numbers fails.
        """
        for name in (name for name, files in self.files.items() if files and names_table(sql, name)):
            for column, type_ in fetch(self._db, f"SELECT column_name, column_type FROM (DESCRIBE {quoted(name)})"):
                if type_ != "VARCHAR" or not names_table(sql, column):
                    continue
                known, numbers = fetch(
                    self._db, f"SELECT count({quoted(column)}), count(TRY_CAST({quoted(column)} AS DOUBLE)) FROM {quoted(name)}"
                )[0]
                if known / 2 < numbers < known:
                    odd = f"{quoted(column)} IS NOT NULL AND TRY_CAST({quoted(column)} AS DOUBLE) IS NULL"
                    rows = f'SELECT "#file", "#row", {quoted(column)} FROM ({self._numbered(name)}) WHERE {odd}'
                    file, row, value = fetch(self._db, f'{rows} ORDER BY "#n" LIMIT 1')[0]
                    return Place(file, row, column), value
        return None

    # Files.

    def _view(self, name: str, source: str) -> None:
        self._db.execute(f"CREATE OR REPLACE VIEW {quoted(name)} AS SELECT * FROM {source}")

    def _keep_types(self, name: str) -> None:
        """Let queries not find out again the types of one file of CSV, which takes longer than to read a small file.

        Dates and times are left out: what is found out of them is their format, too.
        """
        if len(self.files[name]) > 1 or self._kind(name) != "csv":
            return
        (file,) = self.files[name]
        found = {row[0]: str(row[1]) for row in fetch(self._db, f"DESCRIBE {quoted(name)}")}
        if list(found) == self._header(name, file) and set(found.values()) <= _PLAIN:
            self._view(name, self._source(name, [file], found))

    def _found(self, table: TableFiles) -> list[str]:
        found: list[str] = []
        for pattern in [table.files] if isinstance(table.files, str) else table.files:
            full = self._folder / pattern
            files = sorted(str(file) for file in full.rglob("*") if file.is_file()) if full.is_dir() else []
            files = files or sorted(row[0] for row in fetch(self._db, f"SELECT file FROM glob({text_literal(str(full))})"))
            if not files and not table.optional:
                raise DataError(str(full), "expected a file, a folder or a pattern of files, got nothing")
            found += files
        return found

    def _source(self, name: str, files: Sequence[str], types: dict[str, str] | None = None) -> str:
        """Return SQL that reads these files of a table."""
        table, kind = self._tables[name], self._kind(name)
        if kind == "arrow":
            view = f"#arrow {name} {files[0]}"
            try:
                self._db.register(view, ds.dataset(list(files), format="ipc"))
            except (OSError, ValueError) as error:  # Arrow's errors are among them
                raise DataError(files[0], f"expected an Arrow file, got one that cannot be read: {error}") from error
            return quoted(view)
        if kind == "parquet":
            return f"read_parquet([{_texts(files)}], hive_partitioning = true, union_by_name = true)"
        for file in files:
            self._header(name, file)
        return f"read_csv([{_texts(files)}], {_csv_options(table, files[0], types)})"

    def _kind(self, name: str) -> str:
        kinds = {
            next((kind for kind, ending in _KINDS.items() if re.search(ending, file, re.I)), file) for file in self.files[name]
        }
        if len(kinds) > 1 or not kinds <= _KINDS.keys():
            got = ", ".join(sorted(kinds))
            raise DataError(str(self._path), f"$.tables.{name}: expected files of CSV, Parquet or Arrow, got {got}")
        return kinds.pop()

    def _header(self, name: str, file: str) -> list[str]:
        """Return the names of the columns of CSV. DuckDB gives columns of one name different ones, without a word."""
        table = self._tables[name]
        if table.columns:
            return list(table.columns)
        try:
            with pa.input_stream(file, compression="detect") as stream:
                line = stream.read(_HEADER_BYTES).decode(table.encoding.replace("utf-8", "utf-8-sig"), "replace")
        except OSError as error:
            raise DataError(file, f"expected a CSV file, got one that cannot be read: {error}") from error
        delimiter, lines = _delimiter(table, file), line.splitlines()
        if table.quote:
            rows = csv.reader(lines, delimiter=delimiter, quotechar=table.quote)
        else:
            rows = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE)
        names = [one.strip() for one in next(rows, [])]
        if not names:
            raise DataError(file, "expected a header, got an empty file or line")
        if twice := sorted({one for one in names if [other.lower() for other in names].count(one.lower()) > 1}):
            raise DataError(file, "expected each column once, got two of this name", column=twice[0])
        return names

    def _scan(self, name: str) -> None:
        """Read CSV of which DuckDB could not find out the types, for the error with the row that is the reason."""
        for file in self.files[name]:
            columns = ", ".join(f"{text_literal(one)}: 'VARCHAR'" for one in self._header(name, file))
            options = f"{_csv_dialect(self._tables[name], file)}, auto_detect = false, columns = {{{columns}}}"
            fetch(self._db, f"SELECT count(*) FROM read_csv({text_literal(file)}, {options})")

    # Places.

    def _halve(self, name: str, failure: Callable[[], str | None]) -> dict[str, str | None] | None:
        """Leave in a view only the first row with which the query fails, and return that row; None if there is none."""
        rows = f"#{name}"
        self._db.execute(f"CREATE OR REPLACE TEMP TABLE {quoted(rows)} AS {self._numbered(name)}")
        low, high = 0, self._count(rows)
        while high - low > 1:
            middle = (low + high) // 2
            if self._fails(name, low, middle, failure):
                high = middle
            elif self._fails(name, middle, high, failure):
                low = middle
            else:
                high = low
        if high == low or not self._fails(name, low, high, failure):
            self._restrict(name, 0, self._count(rows))
            return None
        names = [column[0] for column in fetch(self._db, f"DESCRIBE {quoted(rows)}")]
        (values,) = fetch(self._db, f'SELECT COLUMNS(*)::VARCHAR FROM {quoted(rows)} WHERE "#n" = {low}')
        row = dict(zip(names, values, strict=True))
        del row["#n"]
        return row

    def _numbered(self, name: str) -> str:
        """Return SQL for all rows of a table with their file, and their number in it and in all files, from 0."""
        whole = {row[0]: str(row[1]) for row in fetch(self._db, f"DESCRIBE {quoted(name)}")}
        parts = []
        for file in self.files[name]:
            source = self._source(name, [file])
            if self._kind(name) == "csv":  # with the types that were found for all files together
                own = {row[0] for row in fetch(self._db, f"DESCRIBE SELECT * FROM {source}")}
                source = self._source(name, [file], {column: kind for column, kind in whole.items() if column in own})
            parts.append(f'SELECT *, {text_literal(file)} AS "#file", row_number() OVER () AS "#row" FROM {source}')
        return f'SELECT *, row_number() OVER () - 1 AS "#n" FROM ({" UNION ALL BY NAME ".join(parts)})'

    def _count(self, rows: str) -> int:
        return int(fetch(self._db, f"SELECT count(*) FROM {quoted(rows)}")[0][0])

    def _restrict(self, name: str, low: int, high: int) -> None:
        self._db.execute(
            f'CREATE OR REPLACE VIEW {quoted(name)} AS SELECT * EXCLUDE ("#n", "#file", "#row") FROM {quoted("#" + name)} '
            f'WHERE "#n" >= {low} AND "#n" < {high}'
        )

    def _fails(self, name: str, low: int, high: int, failure: Callable[[], str | None]) -> bool:
        self._restrict(name, low, high)
        return failure() is not None


def fetch(db: duckdb.DuckDBPyConnection, sql: str) -> list[tuple[Any, ...]]:
    """Return all rows of a query."""
    return db.execute(sql).fetchall()


@contextmanager
def duckdb_errors(path: Path, where: str) -> Iterator[None]:
    """Turn an error of DuckDB into a `DataError` at the file, row and column that it names, or else at `where` in `path`."""
    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if line := _CSV_LINE.search(text):
            file, column = _CSV_FILE.search(text), _CSV_COLUMN.search(text)
            what = re.split(r"^Possible |^ *file ?=", text[line.end() :], maxsplit=1, flags=re.MULTILINE)[0]
            messages = [one.strip() for one in what.splitlines() if one.strip()]
            messages = [one for one in messages if one.startswith("Error when converting")] or messages
            raise DataError(
                file[1].strip() if file else str(path),
                messages[-1] if messages else "a row that cannot be read",
                row=max(1, int(line[1]) - 1),
                column=column[1] if column else None,
            ) from error
        message = " ".join(text.replace("^", " ").split())
        raise DataError(str(path), f"{where}: {message[:_MESSAGE_LENGTH]}") from error


def names_table(sql: str, name: str) -> bool:
    """Return whether SQL has the name of a table in it."""
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", sql, re.IGNORECASE) is not None


def _csv_dialect(table: TableFiles, file: str) -> str:
    quote = text_literal(table.quote)
    delimiter, encoding = text_literal(_delimiter(table, file)), text_literal(table.encoding)
    header = str(not table.columns).lower()
    return (
        f"delim = {delimiter}, quote = {quote}, escape = {quote}, encoding = {encoding}, header = {header}, "
        f"nullstr = [{_texts(table.nulls)}], strict_mode = true, null_padding = false"
    )


def _delimiter(table: TableFiles, file: str) -> str:
    return table.delimiter or ("\t" if ".tsv" in file.lower() else ",")


def _csv_options(table: TableFiles, file: str, types: dict[str, str] | None) -> str:
    sample = _SAMPLE_ROWS if types is None else _FORM_ROWS
    if types is None:
        types = table.types
    listed = ", ".join(f"{text_literal(name)}: {text_literal(kind)}" for name, kind in types.items())
    return ", ".join(
        (
            _csv_dialect(table, file),
            f"auto_detect = true, sample_size = {sample}, union_by_name = true, hive_partitioning = true",
            *((f"names = [{_texts(table.columns)}]",) if table.columns else ()),
            *((f"types = {{{listed}}}",) if types else ()),
        )
    )


def text_literal(value: str) -> str:
    """Return a text as SQL."""
    return "'" + value.replace("'", "''") + "'"


def _texts(values: Sequence[str]) -> str:
    return ", ".join(map(text_literal, values))


def quoted(name: str) -> str:
    """Return a name as SQL."""
    return '"' + name.replace('"', '""') + '"'
