"""Codes of ids, computed in DuckDB, and the dictionary of the texts that they stand for.

A kind of ids whose columns are all whole numbers of 64 bits has none: such an id is its own code. The code of any other id is
that of `pocketrank.device.contract.ids`, a hash of its text. Of several texts with one hash, the first in the order of texts
keeps it.
"""

from __future__ import annotations

from collections.abc import Sequence

import duckdb
import pyarrow as pa

from pocketrank.cloud.data.schema import IDS
from pocketrank.cloud.data.source_tables import fetch, quoted, text_literal
from pocketrank.device.contract import CODE_BITS, code_choices

__all__ = ["CATEGORY_MAX", "WHOLE_NUMBERS", "IdCodes"]

WHOLE_NUMBERS = frozenset({"TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER"})
"""DuckDB's types whose values are codes themselves."""
CATEGORY_MAX = 1_000_000
"""Largest number that is its own code of a category, because models have a row of weights for each code up to the largest."""


class IdCodes:
    """Dictionaries by kind, which is the name of a column of the log."""

    def __init__(self, db: duckdb.DuckDBPyConnection, bits: int = CODE_BITS) -> None:
        """`bits` are those of a hash that are used."""
        self._db, self._bits = db, bits
        self._kinds: list[str] = []

    def learn(self, kind: str, columns: Sequence[tuple[str, str, str]]) -> None:
        """Make the dictionary of the ids in `columns`: the SQL of a column, its type, and its table."""
        if all(type_ in WHOLE_NUMBERS for _, type_, _ in columns):
            return
        self._learn(kind, columns, _hash_sql("text", self._bits))
        self._settle(kind)

    def learn_categories(self, kind: str, column: str, type_: str, table: str) -> None:
        """Make the dictionary of categories, whose codes are 1, 2, … in the order of their texts.

        Whole numbers from 1 to a million are codes themselves.
        """
        if type_ in WHOLE_NUMBERS:
            low, high = fetch(self._db, f"SELECT min({column}), max({column}) FROM {table}")[0]
            if low is None or (low >= 1 and high <= CATEGORY_MAX):
                return
        self._learn(kind, [(column, type_, table)], "row_number() OVER (ORDER BY text)")

    def key(self, kind: str, column: str) -> str:
        """Return SQL for an id by which tables of different types can be compared."""
        return f"CAST({column} AS VARCHAR)" if kind in self._kinds else column

    def code(self, kind: str, column: str) -> str:
        """Return SQL for the code of an id; it needs the `join` in its FROM clause."""
        return f"{_alias(kind)}.code" if kind in self._kinds else f"CAST({column} AS BIGINT)"

    def join(self, kind: str, column: str) -> str:
        """Return the join that `code` needs."""
        if kind not in self._kinds:
            return ""
        return f" LEFT JOIN {_alias(kind)} ON {_alias(kind)}.text = CAST({column} AS VARCHAR)"

    def table(self) -> pa.Table:
        """Return all dictionaries as `IDS`."""
        if not self._kinds:
            return IDS.empty_table()
        parts = " UNION ALL ".join(
            f"SELECT {text_literal(kind)} AS kind, code, text FROM {_alias(kind)}" for kind in self._kinds
        )
        return self._db.sql(f"SELECT kind, code, text FROM ({parts}) ORDER BY kind, text").to_arrow_table().cast(IDS)

    def _learn(self, kind: str, columns: Sequence[tuple[str, str, str]], code: str) -> None:
        texts = " UNION ALL ".join(f"SELECT CAST({column} AS VARCHAR) AS text FROM {table}" for column, _, table in columns)
        self._db.execute(
            f"CREATE TABLE {_alias(kind)} AS SELECT text, CAST({code} AS BIGINT) AS code "
            f"FROM (SELECT DISTINCT text FROM ({texts}) WHERE text IS NOT NULL)"
        )
        self._kinds.append(kind)

    def _settle(self, kind: str) -> None:
        """Give the texts that share a hash with an earlier one codes of their own."""
        table = _alias(kind)
        shared = f"SELECT code FROM {table} GROUP BY code HAVING count(*) > 1"
        later = (
            f"SELECT text FROM (SELECT text, row_number() OVER (PARTITION BY code ORDER BY text) AS place FROM {table} "
            f"WHERE code IN ({shared})) WHERE place > 1 ORDER BY text"
        )
        for (text,) in fetch(self._db, later):
            choices = code_choices(text, self._bits)
            code = next(one for one in choices if not fetch(self._db, f"SELECT 1 FROM {table} WHERE code = {one}"))
            self._db.execute(f"UPDATE {table} SET code = ? WHERE text = ?", [code, text])


def _alias(kind: str) -> str:
    return quoted(f"ids {kind}")


def _hash_sql(text: str, bits: int) -> str:
    """Return SQL for `id_code`."""
    return f"md5_number_lower({text}) & {(1 << bits) - 1}::UBIGINT"
