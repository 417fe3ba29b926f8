"""The queries of a data file: their rows as tables of DuckDB, and errors that name the row of a file that is to blame.

Errors::

    DataError                  names file, row and column of what is wrong, or the place in the data file
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import duckdb

from pocketrank.cloud.data.column_checks import Check, counts
from pocketrank.cloud.data.schema import DataError
from pocketrank.cloud.data.source_tables import SourceTables, duckdb_errors, fetch, quoted, text_literal

__all__ = ["ROW_ERRORS", "Queries", "QueryResult", "query_error", "short"]

ROW_ERRORS = (duckdb.ConversionException, duckdb.OutOfRangeException, duckdb.InvalidInputException)
"""Errors of a query that a value of a row may cause."""
_NULL = "\0"


@dataclass(frozen=True)
class QueryResult:
    """The table `q_NAME` with the rows of a query, and the types of its columns."""

    name: str
    sql: str
    types: dict[str, str]

    @property
    def table(self) -> str:
        """Name of the table."""
        return f"q_{self.name}"


class Queries:
    """Runs the queries of one data file."""

    def __init__(self, db: duckdb.DuckDBPyConnection, path: Path, tables: SourceTables) -> None:
        """`tables` are those that the queries of the data file `path` read."""
        self._db, self._path, self._tables = db, path, tables

    def run(self, name: str, sql: str, required: Sequence[str]) -> QueryResult:
        """Make the table of a query and check the columns that it must have. Raises `DataError`."""
        distinct = "" if name == "impressions" else "DISTINCT "
        try:
            self._db.execute(f"CREATE TABLE q_{name} AS SELECT {distinct}* FROM ({sql}\n)")
        except ROW_ERRORS as error:
            with duckdb_errors(self._path, f"$.{name}.sql"):
                self.raise_at(f"SELECT * FROM ({sql}\n)", sql, error)
        except duckdb.Error as error:
            self.raise_odd_text(sql, error)
            with duckdb_errors(self._path, f"$.{name}.sql"):
                raise
        types = {row[0]: str(row[1]) for row in fetch(self._db, f"DESCRIBE q_{name}")}
        result = QueryResult(name, sql, types)
        for column in required:
            if column not in types:
                raise query_error(self._path, name, f"expected a column `{column}`, got {', '.join(types)}", column)
            if types[column] == '"NULL"':
                raise query_error(self._path, name, "expected a column with values, got NULL alone", column)
        if name == "impressions" and not fetch(self._db, f"SELECT count(*) FROM {result.table}")[0][0]:
            raise DataError(str(self._path), "$.impressions.sql: expected rows, got none")
        return result

    def raise_at(self, sql: str, names: str, error: duckdb.Error) -> NoReturn:
        """Raise the error of a query, with its place in the files if a single row is to blame."""
        text = " ".join(str(error).split())
        if "CSV Error on Line" in text:
            raise error
        message = re.split(r" LINE \d+:", text)[0]
        value = next(iter(re.findall(r"""['"](.*?)['"]""", message)), message)

        def failure() -> str | None:
            try:
                fetch(self._db, f"SELECT count(COLUMNS(*)) FROM ({sql})")
            except duckdb.Error:
                return value
            return None

        place = self._tables.locate(names, failure)
        if place is None:
            raise error
        raise DataError(place.file, message, row=place.row, column=place.column) from error

    def raise_odd_text(self, sql: str, error: duckdb.Error) -> None:
        """Raise for a text among numbers, which may be why SQL of the right form fails."""
        if isinstance(error, duckdb.BinderException) and (odd := self._tables.odd_text(sql)):
            place, value = odd
            message = f"expected a number, as in other rows, got {short(value)}"
            raise DataError(place.file, message, row=place.row, column=place.column) from error

    def check(self, result: QueryResult, checks: Sequence[Check]) -> None:
        """Raise for the first check that fails, at the row of a file."""
        where = f"$.{result.name}.sql"
        with duckdb_errors(self._path, where):
            for check, number in zip(
                checks, fetch(self._db, f"SELECT {counts(checks)} FROM {result.table} AS q")[0], strict=True
            ):
                if number:
                    column = quoted(check.column)
                    wrong = fetch(self._db, f"SELECT {column} FROM {result.table} AS q WHERE {check.wrong} LIMIT 1")
                    self.raise_value(where, check, result.sql, short(wrong[0][0]), result.sql)

    def raise_value(self, where: str, check: Check, sql: str, got: str, names: str) -> NoReturn:
        """Raise for a value that a check finds in a query; `names` has the names of the tables that it reads."""
        wanted = f"SELECT CAST(q.{quoted(check.column)} AS VARCHAR) FROM ({sql}\n) AS q WHERE {check.wrong} LIMIT 1"

        def failure() -> str | None:
            found = fetch(self._db, wanted)
            return None if not found else _NULL if found[0][0] is None else str(found[0][0])

        message = f"expected {check.expected}, got {got}"
        place = self._tables.locate(names, failure) if "q_impressions" not in sql else None
        if place is None:
            raise DataError(str(self._path), f"{where}: {message}", column=check.column)
        raise DataError(place.file, message, row=place.row, column=place.column or check.column)

    def check_unique(self, result: QueryResult, column: str) -> None:
        """Raise for the first id that several rows have."""
        twice = f"SELECT {column} FROM {result.table} GROUP BY {column} HAVING count(*) > 1 ORDER BY {column} LIMIT 1"
        if found := fetch(self._db, twice):
            value = found[0][0]
            check = Check(column, f"q.{column} = {text_literal(str(value))}", f"one row for each {column}")
            several = f"several that differ for {short(value)}"
            self.raise_value(f"$.{result.name}.sql", check, result.sql, several, result.sql)


def short(value: object) -> str:
    """Return a value as errors show it."""
    return "nothing" if value is None else f"`{str(value)[:40]}`" if isinstance(value, str) else str(value)[:60]


def query_error(path: Path, name: str, message: str, column: str) -> DataError:
    """Return the error of a column that a query of the data file `path` returns."""
    return DataError(str(path), f"$.{name}.sql: {message}", column=column)
