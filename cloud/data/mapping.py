"""The tables of a log from the queries of a data file, run by DuckDB (Raasveldt & Mühleisen, SIGMOD 2019).

What the queries return, beside the columns of labels:

===========  ==============================  ==============================================================================
query        required                        optional
===========  ==============================  ==============================================================================
impressions  `user_id`, `item_id`, `time`    `watch_ms`, `session_id`, `page_id`, `position`, `scene`, the fields of a feedback
                                             event, `pxtr_LABEL` (scores from 0 to 1, made before the item was shown), any other
items        `item_id`                       `duration_ms`, `author_id`, `music_id`, `category`, `upload_time`, `vector`, any
                                             other as for users
users        `user_id`                       any other: texts and booleans are categories, numbers are numbers, and lists are
                                             categories of several values
history      `user_id`, `item_id`, `time`    `long_view`, `like`; `time` is anything that has an order
pages        `page_id`, `item_id`            `position`, the order of the page
===========  ==============================  ==============================================================================

Errors::

    DataError                  names file, row and column of what is wrong, or the place in the data file
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import duckdb
import pyarrow as pa

from pocketrank.cloud.data.category_columns import VALUES_MAX, category_of, value_columns
from pocketrank.cloud.data.column_checks import Check, counts, is_01, is_float, number_check
from pocketrank.cloud.data.data_file import DataFile, Query
from pocketrank.cloud.data.duplicates import KEYS, REST, without_duplicates
from pocketrank.cloud.data.id_codes import WHOLE_NUMBERS, IdCodes
from pocketrank.cloud.data.queries import ROW_ERRORS, Queries, QueryResult, query_error, short
from pocketrank.cloud.data.schema import (
    HISTORY,
    IMPRESSIONS,
    ITEMS,
    LABELS,
    PAGES,
    USERS,
    DataError,
    as_table,
    impressions_schema,
)
from pocketrank.cloud.data.source_tables import SourceTables, duckdb_errors, fetch, names_table, quoted
from pocketrank.cloud.data.validate import RANGES, TIMES_MS
from pocketrank.device.contract import CODE_BITS, ID_TEXT_MAX

__all__ = ["SCORE", "Mapping"]

SCORE = "pxtr_"
"""Beginning of the names of columns with scores."""

_MS = {"s": 1e3, "ms": 1, "us": 1e-3, "ns": 1e-6}
_TYPES = {pa.int64(): "BIGINT", pa.int32(): "INTEGER", pa.int8(): "TINYINT", pa.float32(): "FLOAT", pa.bool_(): "BOOLEAN"}
_ID_KINDS = ("user_id", "item_id", "author_id", "music_id", "session_id", "page_id")
_TEXT_IDS = ("VARCHAR", "UUID", "HUGEINT", "UHUGEINT", "UBIGINT")
_REQUIRED = {
    "impressions": ("user_id", "item_id", "time"),
    "items": ("item_id",),
    "users": ("user_id",),
    "history": ("user_id", "item_id", "time"),
    "pages": ("page_id", "item_id"),
}
_OWN_COLUMNS = {
    "items": ("item_id", "duration_ms", "author_id", "music_id", "category", "upload_time", "vector"),
    "users": ("user_id",),
}
"""Columns that are no further attributes."""
_NAN = "'nan'::FLOAT"
_ANY_TIMES_MS = (-62_135_596_800_000, 253_402_300_799_999)


class Mapping:
    """The tables of one data file's log. Impressions can be read once; the other tables are in memory."""

    def __init__(
        self,
        db: duckdb.DuckDBPyConnection,
        path: Path,
        file: DataFile,
        tables: SourceTables,
        id_bits: int = CODE_BITS,
        codes: pa.Table | None = None,
    ) -> None:
        """Run the queries and check what they return. Raises `DataError`.

        `id_bits` are the bits of the hashes that become codes of ids, `codes` the dictionaries of categories, as `IDS`, that
        are continued.
        """
        self._db, self._path, self._file, self._tables = db, path, file, tables
        self._codes, self._label_types = IdCodes(db, id_bits, codes), dict[str, str]()
        self.cut: dict[str, int] = {}
        """Rows with more than `VALUES_MAX` values, by category of several values, such as `items.genres`."""
        tables.open()
        self._queries = Queries(db, path, tables)
        wanted = self._wanted()
        self._results = {name: self._queries.run(name, query.sql, _REQUIRED[name]) for name, query in wanted.items()}
        for name in ("items", "users"):
            self._queries.check_unique(self._results[name], _REQUIRED[name][0])
            self._results[name] = self._with_value_columns(self._results[name])
        for kind in _ID_KINDS:
            self._codes.learn(kind, [(quoted(kind), one.types[kind], one.table) for one in self._holding(kind)])
        for name in ("items", "users"):
            result = self._results[name]
            if name == "items" and "category" in result.types:
                self._codes.learn_categories("category", [("category", result.types["category"], result.table)])
            sharing: dict[str, list[tuple[str, str, str]]] = {}
            for column in self._attributes(name)[0]:
                described = quoted(column), result.types[column], result.table
                sharing.setdefault(_kind(name, column), []).append(described)
            for kind, columns in sharing.items():
                self._codes.learn_categories(kind, columns)
        self._check_labels()
        for result in self._results.values():
            self._queries.check(result, self._checks(result))

    @property
    def rows(self) -> int:
        """Number of rows of the impressions' query, before equal ones are dropped."""
        return self._count("q_impressions")

    @property
    def labels(self) -> tuple[str, ...]:
        """The log's own labels."""
        return tuple(name for name in self._file.labels if name not in LABELS)

    @property
    def scores(self) -> tuple[str, ...]:
        """Columns of scores."""
        return tuple(name for name in self._results["impressions"].types if name.startswith(SCORE))

    @property
    def absent(self) -> tuple[str, ...]:
        """Columns of `IMPRESSIONS` that the log has no values of."""
        given = self._impression_columns(self._results["impressions"], IMPRESSIONS)
        return tuple(name for name in IMPRESSIONS.names if name not in given)

    @property
    def columns(self) -> dict[str, dict[str, str]]:
        """Types of the columns of each query, whose rows are the table `q_NAME` in DuckDB."""
        return {name: result.types for name, result in self._results.items()}

    def labelled_impressions(self) -> str:
        """Return SQL for the rows of the impressions' query, with their time as `#ms` and each label as `#LABEL`."""
        result = self._results["impressions"]
        return f'SELECT *, {self._time(result, "time")} AS "#ms" FROM ({self._labelled(result.table)}) AS q'

    def impressions(self, rows: int = 1 << 17) -> Iterator[pa.Table]:
        """Yield the impressions in their order, in tables of up to about `rows` rows, without the columns that are `absent`.

        Rows that are equal count once.
        """
        result = self._results["impressions"]
        schema = impressions_schema(self.labels, self.scores)
        columns = self._impression_columns(result, schema)
        # Columns that are in no table, or changed in it, tell rows apart as well.
        others = [quoted(name) for name, type_ in result.types.items() if not self._is_kept(name, type_)]
        rest = {REST: f"hash({', '.join(f'q.{name}' for name in others)})"} if others else {}
        joins = "".join(self._codes.join(kind, f"q.{quoted(kind)}") for kind in _ID_KINDS if kind in result.types)
        chosen = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in (columns | rest).items())
        sql = f"SELECT {chosen} FROM ({self._labelled(result.table)}) AS q{joins} ORDER BY {', '.join(KEYS)}"
        with duckdb_errors(self._path, "$.impressions.sql"):
            yield from without_duplicates(self._db.sql(sql).to_arrow_reader(rows))

    @property
    def item_categories(self) -> tuple[str, ...]:
        """Further attributes of items that are categories."""
        return tuple(self._attributes("items")[0])

    @property
    def item_floats(self) -> tuple[str, ...]:
        """Further attributes of items that are numbers."""
        return tuple(self._attributes("items")[1])

    @property
    def user_categories(self) -> tuple[str, ...]:
        """Attributes of users that are categories."""
        return tuple(self._attributes("users")[0])

    def items(self) -> pa.Table:
        """Return `ITEMS`: those of the query, and those that only impressions or pages have."""
        result = self._results["items"]
        columns = {"item_id": self._codes.code("item_id", "q.item_id"), "duration_ms": "0"}
        columns |= {
            name: self._codes.code(name, f"q.{name}") for name in ("author_id", "music_id", "category") if name in result.types
        }
        if "category" in columns:
            columns["category"] = f"coalesce({columns['category']}, 0)"
        if "duration_ms" in result.types:
            columns["duration_ms"] = f"coalesce({self._whole(result, 'duration_ms')}, 0)"
        if "upload_time" in result.types:
            columns["upload_ms"] = self._time(result, "upload_time")
        if "vector" in result.types:
            columns["vector"] = "CAST(q.vector AS FLOAT[])"
        categories, numbers = self._attributes("items")
        if categories:
            columns["categories"] = f"[{', '.join(categories.values())}]::INTEGER[]"
        if numbers:
            columns["floats"] = f"[{', '.join(f'coalesce({sql}, {_NAN})' for sql in numbers.values())}]::FLOAT[]"
        kinds = [kind for kind in ("item_id", "author_id", "music_id", "category") if kind in result.types]
        known = self._select(columns, f"{result.table} AS q{self._joins(kinds)}{self._attribute_joins('items')}", ITEMS)
        holding = [one for one in self._holding("item_id") if one.name in ("impressions", "pages")]
        if not holding:
            return known.sort_by("item_id")
        key = self._codes.key("item_id", "item_id")
        elsewhere = " UNION ".join(f"SELECT {key} AS item_id FROM {one.table}" for one in holding)
        others = f"({elsewhere} EXCEPT SELECT {key} FROM {result.table}) AS q{self._joins(['item_id'])}"
        columns = {name: columns[name] if name == "item_id" else "0" for name in columns if name in ("item_id", "category")}
        unknown = self._select(columns | {"duration_ms": "0"}, others, ITEMS)
        return pa.concat_tables([known, unknown]).combine_chunks().sort_by("item_id")

    def users(self) -> pa.Table:
        """Return `USERS`."""
        result = self._results["users"]
        categories, numbers = self._attributes("users")
        columns = {
            "user_id": self._codes.code("user_id", "q.user_id"),
            "categories": f"[{', '.join(categories.values())}]::INTEGER[]",
            "floats": f"[{', '.join(f'coalesce({sql}, 0)' for sql in numbers.values())}]::FLOAT[]",
        }
        joins = self._joins(["user_id"]) + self._attribute_joins("users")
        return self._select(columns, f"{result.table} AS q{joins}", USERS).sort_by("user_id")

    def history(self) -> pa.Table:
        """Return `HISTORY`, each user's events in the order of `time`, and of items where that is equal."""
        result = self._results.get("history")
        if result is None:
            return HISTORY.empty_table()
        item = self._codes.code("item_id", "q.item_id")
        order = f"ORDER BY q.time, {item}"
        columns = {"user_id": self._codes.code("user_id", "q.user_id"), "item_id": f"list({item} {order})"}
        for label in ("long_view", "like"):
            value = f"coalesce(CAST(q.{quoted(label)} AS BOOLEAN), false)" if label in result.types else "false"
            columns[label] = f"list({value} {order})"
        source = f"{result.table} AS q{self._joins(['user_id', 'item_id'])} GROUP BY {columns['user_id']}"
        return self._select(columns, source, HISTORY).sort_by("user_id")

    def pages(self) -> pa.Table:
        """Return `PAGES`."""
        result = self._results.get("pages")
        if result is None:
            return PAGES.empty_table()
        item = self._codes.code("item_id", "q.item_id")
        order = f"ORDER BY q.position, {item}" if "position" in result.types else f"ORDER BY {item}"
        columns = {"page_id": self._codes.code("page_id", "q.page_id"), "item_id": f"list({item} {order})"}
        source = f"{result.table} AS q{self._joins(['page_id', 'item_id'])} GROUP BY {columns['page_id']}"
        return self._select(columns, source, PAGES).sort_by("page_id")

    def ids(self) -> pa.Table:
        """Return `IDS`, when the other tables are made."""
        return self._codes.table()

    # Queries.

    def _wanted(self) -> dict[str, Query]:
        """Return the queries of the log, without those that name an absent table."""
        queries = {name: query for name in _REQUIRED if (query := getattr(self._file, name)) is not None}
        for name in self._tables.absent:
            queries = {query: found for query, found in queries.items() if not names_table(found.sql, name)}
        if "impressions" not in queries:
            missing = ", ".join(f"`{name}`" for name in self._tables.absent if names_table(self._file.impressions.sql, name))
            raise DataError(str(self._path), f"$.impressions.sql: expected tables with files, got none of {missing}")
        for table in ("items", "users"):
            key = _REQUIRED[table][0]
            queries.setdefault(table, Query(sql=_shown(key)))
        return queries

    def _with_value_columns(self, result: QueryResult) -> QueryResult:
        """Put a column of texts for each value in the place of lists, without unknown, empty and repeated values."""
        name, types, lists = result.name, dict[str, str](), []
        for column, type_ in result.types.items():
            several = type_.endswith("]")
            if column == "category" and name == "items" and several:
                hint = "write category[1] AS category for the first, and give the list another name"
                self._fail(name, f"expected one value, got {type_}; {hint}", column)
            if category_of(column) != column:
                self._fail(name, f"expected a name without brackets, got `{column}`; give it one with AS", column)
            if several and column not in _OWN_COLUMNS[name] and _is_category(_element(type_)):
                lists.append(column)
        if not lists:
            return result
        # Each step needs the values of the one before.
        texts = ", ".join(f"list_transform({one}, lambda x: CAST(x AS VARCHAR)) AS {one}" for one in map(quoted, lists))
        kept = ", ".join(
            f"list_filter(q.{one}, lambda x, n: x <> '' AND list_position(q.{one}, x) = n) AS {one}"
            for one in map(quoted, lists)
        )
        rows = f"(SELECT * REPLACE ({kept}) FROM (SELECT * REPLACE ({texts}) FROM {result.table}) AS q)"
        lengths = ", ".join(f"max(len({one})), count(*) FILTER (len({one}) > {VALUES_MAX})" for one in map(quoted, lists))
        found = fetch(self._db, f"SELECT {lengths} FROM {rows}")[0]
        longest = dict(zip(lists, found[::2], strict=True))
        self.cut |= {f"{name}.{column}": count for column, count in zip(lists, found[1::2], strict=True)}
        chosen = []
        for column, type_ in result.types.items():
            if column not in longest:
                types[column] = type_
                chosen.append(quoted(column))
                continue
            for place, one in enumerate(value_columns(column, min(max(longest[column] or 0, 1), VALUES_MAX))):
                types[one] = "VARCHAR"
                chosen.append(f"{quoted(column)}[{place + 1}] AS {quoted(one)}")
        self._db.execute(f"CREATE OR REPLACE TABLE {result.table} AS SELECT {', '.join(chosen)} FROM {rows}")
        return QueryResult(name, result.sql, types)

    def _holding(self, kind: str) -> list[QueryResult]:
        """Return the results that together have all ids of a kind."""
        holding = [one for one in self._results.values() if kind in one.types]
        if any(one.sql == _shown(kind) for one in holding):  # which has those of the impressions
            holding = [one for one in holding if one.name != "impressions"]
        return holding

    # Checks.

    def _checks(self, result: QueryResult) -> list[Check]:
        """Return the checks of all columns that the log takes from a query."""
        checks = [Check(name, f"q.{name} IS NULL", "a value") for name in _REQUIRED[result.name]]
        for kind in _ID_KINDS:
            if kind in result.types:
                checks += self._id_checks(result, kind)
        if result.name == "impressions":
            checks.append(self._time_check(result, "time", TIMES_MS, "a time from 1990 to 2099"))
            for name, (low, high) in RANGES["impressions"].items():
                if name in result.types and name != "impression_ms":
                    checks.append(number_check(name, result.types[name], IMPRESSIONS.field(name).type, low, high))
            ranged = (*RANGES["impressions"], *_ID_KINDS, *LABELS)
            for field in IMPRESSIONS:
                if field.name in result.types and field.name not in (*ranged, *self._file.labels):
                    low, high = (0, 1) if pa.types.is_boolean(field.type) else (-math.inf, math.inf)
                    checks.append(number_check(field.name, result.types[field.name], field.type, low, high))
            for name in self.scores:
                if name.removeprefix(SCORE) not in self._file.labels:
                    known = ", ".join(f"{SCORE}{label}" for label in self._file.labels)
                    self._fail("impressions", f"expected scores of labels, {known}, got `{name}`", name)
                checks.append(number_check(name, result.types[name], pa.float32(), 0, 1))
        if result.name == "items":
            if "duration_ms" in result.types:
                checks.append(number_check("duration_ms", result.types["duration_ms"], pa.int64(), 0, math.inf))
            if "upload_time" in result.types:
                checks.append(self._time_check(result, "upload_time", _ANY_TIMES_MS, "a time from year 1 to 9999"))
        if result.name in _OWN_COLUMNS:
            for name in self._attributes(result.name)[1]:
                checks.append(number_check(name, result.types[name], pa.float32(), -math.inf, math.inf))
        if result.name == "history":
            for name in ("long_view", "like"):
                if name in result.types:
                    checks.append(number_check(name, result.types[name], pa.bool_(), 0, 1))
        return checks

    def _id_checks(self, result: QueryResult, kind: str) -> list[Check]:
        type_ = result.types[kind]
        if type_ in WHOLE_NUMBERS:
            return []
        if type_ not in _TEXT_IDS and not type_.startswith("ENUM"):
            hint = f"CAST({kind} AS BIGINT) if its values are whole, or CAST({kind} AS VARCHAR)"
            if is_float(type_):
                hint += f'; CSV that has larger numbers needs `types = {{ {kind} = "VARCHAR" }}`'
            self._fail(result.name, f"expected ids that are whole numbers or text, got {type_}; write {hint}", kind)
        wrong = f"NOT length(CAST(q.{kind} AS VARCHAR)) BETWEEN 1 AND {ID_TEXT_MAX}"
        return [Check(kind, wrong, f"an id of 1 to {ID_TEXT_MAX} characters")]

    def _time_check(self, result: QueryResult, column: str, ends_ms: tuple[int, int], expected: str) -> Check:
        type_, (low, high) = result.types[column], ends_ms
        if type_ == "DATE" or type_.startswith("TIMESTAMP"):
            wrong = f"NOT (isfinite(q.{column}) AND epoch_ms(CAST(q.{column} AS TIMESTAMPTZ)) BETWEEN {low} AND {high})"
            return Check(column, wrong, expected)
        if not (type_ in WHOLE_NUMBERS or is_float(type_) or type_ in _TEXT_IDS[2:]):
            hint = f"CAST({column} AS TIMESTAMP) or strptime({column}, '%d/%m/%Y %H:%M:%S') makes one"
            if type_ == "VARCHAR":  # because of one row, perhaps
                times = f"coalesce(TRY_CAST(q.{column} AS DOUBLE), epoch(TRY_CAST(q.{column} AS TIMESTAMP)))"
                if fetch(self._db, f"SELECT 1 FROM {result.table} AS q WHERE {times} IS NOT NULL LIMIT 1"):
                    self._queries.check(
                        result, [Check(column, f"q.{column} IS NOT NULL AND {times} IS NULL", "a number or a time")]
                    )
            self._fail(result.name, f"expected a number or a time, got {type_}; {hint}", column)
        if self._file.time_unit is None:
            raise DataError(str(self._path), "$.time_unit: expected `s`, `ms`, `us` or `ns`, because times are numbers")
        factor = _MS[self._file.time_unit]
        wrong = f"NOT q.{column} BETWEEN {math.ceil(low / factor)} AND {math.floor(high / factor)}"
        return Check(column, wrong, f'{expected} by `time_unit = "{self._file.time_unit}"`')

    def _check_labels(self) -> None:
        """Raise for labels that are no conditions, or that fail on a row."""
        result, labels = self._results["impressions"], self._file.labels
        rows, again = self._with_duration(result.table), self._with_duration(f"({result.sql}\n)")
        for name, condition in labels.items():
            with duckdb_errors(self._path, f"$.labels.{name}"):
                try:
                    described = fetch(self._db, f"DESCRIBE SELECT ({condition}\n) FROM ({rows})")
                except duckdb.BinderException as error:
                    self._queries.raise_odd_text(f"{result.sql} {condition}", error)
                    raise
                self._label_types[name] = str(described[0][1])
        checks = [
            Check(name, f"q.{quoted(name)} IS NOT NULL AND {is_01(f'q.{quoted(name)}', type_)} IS NULL", "0 or 1")
            for name, type_ in self._label_types.items()
        ]

        def find(number: int) -> None:
            name, condition = list(labels.items())[number]
            values = f"SELECT ({condition}\n) AS {quoted(name)} FROM ({{}})"
            with duckdb_errors(self._path, f"$.labels.{name}"):
                try:
                    wrong = fetch(self._db, f"SELECT * FROM ({values.format(rows)}) AS q WHERE {checks[number].wrong} LIMIT 1")
                except ROW_ERRORS as error:
                    self._queries.raise_at(values.format(again), result.sql, error)
                for (value,) in wrong:
                    self._queries.raise_value(
                        f"$.labels.{name}", checks[number], values.format(again), short(value), result.sql
                    )

        values = ", ".join(f"({condition}\n) AS {quoted(name)}" for name, condition in labels.items())
        try:
            found = fetch(self._db, f"SELECT {counts(checks)} FROM (SELECT {values} FROM ({rows})) AS q")[0]
        except ROW_ERRORS:
            found = (1,) * len(labels)
        for number, count in enumerate(found):
            if count:
                find(number)

    # SQL of the log's columns.

    def _impression_columns(self, result: QueryResult, schema: pa.Schema) -> dict[str, str]:
        """Return the SQL of each column that there is."""
        columns = {"impression_ms": self._time(result, "time")}
        columns |= {name: f"q.{quoted('#' + name)}" for name in self._file.labels}
        for field in schema:
            if field.name in _ID_KINDS and field.name in result.types:
                columns[field.name] = self._codes.code(field.name, f"q.{field.name}")
            elif field.name == "watch_ms":
                columns["watch_ms"] = f"coalesce({self._whole(result, 'watch_ms')}, 0)" if "watch_ms" in result.types else "0"
            elif field.name in result.types and field.name not in LABELS:
                columns[field.name] = f"CAST(q.{quoted(field.name)} AS {_TYPES[field.type]})"
        return columns

    def _is_kept(self, name: str, type_: str) -> bool:
        """Return whether a column of the impressions is in the log as it is, or as a label that is 1 or true where it is."""
        whole = type_ in WHOLE_NUMBERS
        if (whole or type_ == "BOOLEAN") and any(condition.strip() == name for condition in self._file.labels.values()):
            return True
        if name == "time":
            return whole and self._file.time_unit == "ms"
        return name in _ID_KINDS or (whole and name in IMPRESSIONS.names and name not in LABELS)

    def _labelled(self, source: str) -> str:
        conditions = ", ".join(
            f"{is_01(f'({condition}{chr(10)})', self._label_types[name])} AS {quoted('#' + name)}"
            for name, condition in self._file.labels.items()
        )
        return f"SELECT *, {conditions} FROM ({self._with_duration(source)})"

    def _with_duration(self, source: str) -> str:
        """Add `duration_ms` of the items to impressions, if labels use it and impressions have none of their own."""
        used = any(names_table(condition, "duration_ms") for condition in self._file.labels.values())
        if not used or "duration_ms" in self._results["impressions"].types or "duration_ms" not in self._results["items"].types:
            return f"SELECT * FROM {source}"
        return f"SELECT i.*, d.duration_ms FROM {source} AS i LEFT JOIN q_items AS d ON i.item_id = d.item_id"

    def _whole(self, result: QueryResult, column: str) -> str:
        return f"CAST(round(q.{column}) AS BIGINT)" if is_float(result.types[column]) else f"CAST(q.{column} AS BIGINT)"

    def _time(self, result: QueryResult, column: str) -> str:
        """Return SQL for a time in milliseconds since the epoch."""
        type_ = result.types[column]
        if type_ == "DATE" or type_.startswith("TIMESTAMP"):
            return f"epoch_ms(CAST(q.{column} AS TIMESTAMPTZ))"
        factor = _MS[self._file.time_unit or "ms"]
        if type_ in WHOLE_NUMBERS:
            scaled = f"CAST(q.{column} AS BIGINT)"
            return (
                scaled if factor == 1 else f"{scaled} * {round(factor)}" if factor > 1 else f"{scaled} // {round(1 / factor)}"
            )
        return f"CAST(floor(q.{column} * {factor}) AS BIGINT)"

    def _attributes(self, name: str) -> tuple[dict[str, str], dict[str, str]]:
        """Return the SQL of the columns of items or users that have no name of their own in the log: categories, numbers."""
        categories, numbers = {}, {}
        for column, type_ in self._results[name].types.items():
            if column in _OWN_COLUMNS[name]:
                continue
            if _is_category(type_):
                code = self._codes.code(_kind(name, column), f"q.{quoted(column)}", f"{name}.{column}")
                categories[column] = f"coalesce({code}, 0)"
            elif type_ in WHOLE_NUMBERS or is_float(type_):
                numbers[column] = f"CAST(q.{quoted(column)} AS FLOAT)"
            else:
                got = f"got {type_}; CAST it AS VARCHAR for a category, AS VARCHAR[] for several, or AS DOUBLE for a number"
                self._fail(name, f"expected text, a boolean, a number or a list of texts, {got}", column)
        return categories, numbers

    def _attribute_joins(self, name: str) -> str:
        categories, _ = self._attributes(name)
        return "".join(
            self._codes.join(_kind(name, column), f"q.{quoted(column)}", f"{name}.{column}") for column in categories
        )

    def _joins(self, kinds: Sequence[str]) -> str:
        return "".join(self._codes.join(kind, f"q.{quoted(kind)}") for kind in kinds)

    def _select(self, columns: dict[str, str], source: str, schema: pa.Schema) -> pa.Table:
        """Return the columns of a source as a table of `schema`, with nulls where there is none."""
        chosen = ", ".join(f"{sql} AS {quoted(name)}" for name, sql in columns.items())
        with duckdb_errors(self._path, "$"):
            return as_table(self._db.sql(f"SELECT {chosen} FROM {source}").to_arrow_table(), schema)

    def _count(self, table: str) -> int:
        return int(fetch(self._db, f"SELECT count(*) FROM {table}")[0][0])

    def _fail(self, name: str, message: str, column: str) -> NoReturn:
        raise query_error(self._path, name, message, column)


def _shown(key: str) -> str:
    """Return the query for items or users that stands in for one that a data file does not have."""
    return f"SELECT DISTINCT {key} FROM q_impressions"


def _is_category(type_: str) -> bool:
    return type_ in ("VARCHAR", "BOOLEAN") or (type_.startswith("ENUM") and not type_.endswith("]"))


def _element(type_: str) -> str:
    """Return the type of the values of a list; whole numbers are as good as texts in it."""
    element = re.sub(r"\[\d*\]$", "", type_)
    return "VARCHAR" if element in WHOLE_NUMBERS else element


def _kind(name: str, column: str) -> str:
    """Return the kind of the dictionary of an attribute of items or users."""
    return f"{name}.{category_of(column)}"
