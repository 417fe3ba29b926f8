"""Codes of ids, computed in DuckDB, and the dictionary of the texts that they stand for.

A kind of ids whose columns are all whole numbers of 64 bits has none: such an id is its own code. The code of any other id is
that of `pocketrank.device.contract.ids`, a hash of its text. Of several texts with one hash, the first in the order of texts
keeps it. Categories have the codes 1, 2, …, and those that an earlier log gave them.
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

    def __init__(self, db: duckdb.DuckDBPyConnection, bits: int = CODE_BITS, earlier: pa.Table | None = None) -> None:
        """`bits` are those of a hash that are used. `earlier` are dictionaries of categories, as `IDS`, that are continued."""
        self._db, self._bits = db, bits
        self._kinds: list[str] = []
        db.register(_EARLIER, IDS.empty_table() if earlier is None else earlier)

    def learn(self, kind: str, columns: Sequence[tuple[str, str, str]]) -> None:
        """Make the dictionary of the ids in `columns`: the SQL of a column, its type, and its table."""
        if all(type_ in WHOLE_NUMBERS for _, type_, _ in columns):
            return
        self._learn(kind, columns, _hash_sql("text", self._bits))
        self._settle(kind)

    def learn_categories(self, kind: str, columns: Sequence[tuple[str, str, str]]) -> None:
        """Make the dictionary of the categories in `columns`: the SQL of a column, its type, and its table.

        Texts that the earlier dictionary has keep their codes. The others get the next ones, from 1, in the order of texts.
        Whole numbers from 1 to a million are codes themselves, unless there is an earlier dictionary.
        """
        known = f"SELECT text, code FROM {quoted(_EARLIER)} WHERE kind = {text_literal(kind)}"
        if not fetch(self._db, f"{known} LIMIT 1") and all(type_ in WHOLE_NUMBERS for _, type_, _ in columns):
            values = " UNION ALL ".join(f"SELECT {column} AS value FROM {table}" for column, _, table in columns)
            low, high = fetch(self._db, f"SELECT min(value), max(value) FROM ({values})")[0]
            if low is None or (low >= 1 and high <= CATEGORY_MAX):
                return
        new = f"SELECT text FROM ({_texts(columns)}) ANTI JOIN ({known}) USING (text)"
        next_code = f"coalesce((SELECT max(code) FROM ({known})), 0) + row_number() OVER (ORDER BY text)"
        self._db.execute(
            f"CREATE TABLE {_table(kind)} AS {known} UNION ALL SELECT text, CAST({next_code} AS BIGINT) AS code FROM ({new})"
        )
        self._kinds.append(kind)

    def key(self, kind: str, column: str) -> str:
        """Return SQL for an id by which tables of different types can be compared."""
        return f"CAST({column} AS VARCHAR)" if kind in self._kinds else column

    def code(self, kind: str, column: str, alias: str | None = None) -> str:
        """Return SQL for the code of an id; it needs the `join` in its FROM clause.

        Columns that share a dictionary need an `alias` each, which is the same in the join.
        """
        return f"{_table(alias or kind)}.code" if kind in self._kinds else f"CAST({column} AS BIGINT)"

    def join(self, kind: str, column: str, alias: str | None = None) -> str:
        """Return the join that `code` needs."""
        if kind not in self._kinds:
            return ""
        joined = _table(alias or kind)
        return f" LEFT JOIN {_table(kind)} AS {joined} ON {joined}.text = CAST({column} AS VARCHAR)"

    def table(self) -> pa.Table:
        """Return all dictionaries as `IDS`, with the earlier ones of columns that are no longer there."""
        parts = [f"SELECT {text_literal(kind)} AS kind, code, text FROM {_table(kind)}" for kind in self._kinds]
        gone = " AND ".join(["true", *(f"kind <> {text_literal(kind)}" for kind in self._kinds)])
        parts.append(f"SELECT kind, code, text FROM {quoted(_EARLIER)} WHERE {gone}")
        sql = f"SELECT kind, code, text FROM ({' UNION ALL '.join(parts)}) ORDER BY kind, text"
        return self._db.sql(sql).to_arrow_table().cast(IDS)

    def _learn(self, kind: str, columns: Sequence[tuple[str, str, str]], code: str) -> None:
        self._db.execute(f"CREATE TABLE {_table(kind)} AS SELECT text, CAST({code} AS BIGINT) AS code FROM ({_texts(columns)})")
        self._kinds.append(kind)

    def _settle(self, kind: str) -> None:
        """Give the texts that share a hash with an earlier one codes of their own."""
        table = _table(kind)
        shared = f"SELECT code FROM {table} GROUP BY code HAVING count(*) > 1"
        later = (
            f"SELECT text FROM (SELECT text, row_number() OVER (PARTITION BY code ORDER BY text) AS place FROM {table} "
            f"WHERE code IN ({shared})) WHERE place > 1 ORDER BY text"
        )
        for (text,) in fetch(self._db, later):
            choices = code_choices(text, self._bits)
            code = next(one for one in choices if not fetch(self._db, f"SELECT 1 FROM {table} WHERE code = {one}"))
            self._db.execute(f"UPDATE {table} SET code = ? WHERE text = ?", [code, text])


_EARLIER = "#earlier"


def _table(kind: str) -> str:
    return quoted(f"ids {kind}")


def _texts(columns: Sequence[tuple[str, str, str]]) -> str:
    """Return SQL for the different texts of columns."""
    texts = " UNION ALL ".join(f"SELECT CAST({column} AS VARCHAR) AS text FROM {table}" for column, _, table in columns)
    return f"SELECT DISTINCT text FROM ({texts}) WHERE text IS NOT NULL"


def _hash_sql(text: str, bits: int) -> str:
    """Return SQL for `id_code`."""
    return f"md5_number_lower({text}) & {(1 << bits) - 1}::UBIGINT"
