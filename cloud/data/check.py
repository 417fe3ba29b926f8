"""What a team should know of its tables before it trains on them: sizes, rates, coverage, and what looks wrong.

A suspicion is no error: the log can be imported. Each says what was found, and what to look at.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import duckdb
import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pocketrank.cloud.data.category_columns import VALUES_MAX
from pocketrank.cloud.data.column_checks import is_float
from pocketrank.cloud.data.data_file import DataFile, open_data_file
from pocketrank.cloud.data.days import empty_days
from pocketrank.cloud.data.id_codes import WHOLE_NUMBERS
from pocketrank.cloud.data.import_log import connect
from pocketrank.cloud.data.mapping import SCORE, Mapping
from pocketrank.cloud.data.source_tables import SourceTables, duckdb_errors, fetch, quoted
from pocketrank.cloud.time_zones import zone_of

__all__ = ["check_data"]

SAMPLE = 200_000
"""Rows that AUCs are computed on."""
LEAK_AUC = 0.98
"""AUC of a single input from which on it is suspected to know the label."""
SCORE_AUC = 0.95
"""AUC of a score from which on it is suspected to have been made after the impression."""
DUPLICATES = 0.1
UNKNOWN = 0.05
_CLOCK_ROWS = 1000
_NIGHT_HOURS = 4
_NIGHT_STARTS = (23, 0, 1, 2, 3, 4, 5)
"""First of the four hours with the fewest impressions, where people sleep at night."""
_EXAMPLES = 3
_CODES = ("user_id", "item_id", "author_id", "music_id", "category", "upload_time")


def check_data(path: Path, *, tables: Path | None = None, now_ms: int | None = None) -> dict[str, Any]:
    """Return the report on the tables of a data file, all of plain values.

    - `name`, `time_zone`, `rows` of the impressions' query, `duplicates` among them, `users`, `items`, and `first` and `last`,
      their local times;
    - `labels`: for each its `rate`, and the share of rows where it is `known`;
    - `coverage`: by query and column the share of rows with a value; `described`: the shares of impressions whose item and
      user have a row of their own;
    - `days`: impressions by date; `gaps`: dates between without any; `hours`: impressions by hour of the day;
    - `cut`: for each category of several values the rows with more than `VALUES_MAX`, which the import cuts;
    - `ids`: for each kind that is text the number of `texts`, how many are `alike` but for case and blanks, and `examples`;
    - `auc`: for each label the AUC of each input that is a number;
    - `suspicions`: sentences.

    `tables` is the folder where the paths in the data file begin, `now_ms` the time now. Raises `DataError` where the import
    does.
    """
    file = open_data_file(path)
    with TemporaryDirectory(prefix="pocketrank-") as scratch, connect(file, Path(scratch)) as db:
        mapping = Mapping(db, path, file, SourceTables(db, path, file, tables or path.parent))
        with duckdb_errors(path, "$"):
            report = _Check(db, file, mapping).report()
        now = round(time.time() * 1000) if now_ms is None else now_ms
    times = report.pop("times_ms")
    report["suspicions"] = list(_suspicions(report, file, times, now))
    return report


class _Check:
    def __init__(self, db: duckdb.DuckDBPyConnection, file: DataFile, mapping: Mapping) -> None:
        self._db, self._file, self._mapping = db, file, mapping
        self._rows = mapping.labelled_impressions()

    def report(self) -> dict[str, Any]:
        file, columns = self._file, self._mapping.columns
        labels = ", ".join(f"avg(CAST({_label(name)} AS INTEGER)), count({_label(name)})" for name in file.labels)
        totals = 'count(*), count(DISTINCT user_id), count(DISTINCT item_id), min("#ms"), max("#ms")'
        rows, users, items, first, last, *rates = self._one(f"SELECT {totals}, {labels} FROM ({self._rows})")
        (distinct,) = self._one("SELECT count(*) FROM (SELECT DISTINCT * FROM q_impressions)")
        days = self._all(f"SELECT CAST(CAST({_LOCAL} AS DATE) AS VARCHAR), count(*) FROM ({self._rows}) GROUP BY 1 ORDER BY 1")
        hours = dict(self._all(f"SELECT hour({_LOCAL}), count(*) FROM ({self._rows}) GROUP BY 1"))
        (midnights,) = self._one(f"SELECT count(*) FROM ({self._rows}) WHERE date_trunc('day', {_LOCAL}) = {_LOCAL}")
        return {
            "name": file.name,
            "time_zone": file.time_zone,
            "rows": rows,
            "duplicates": rows - distinct,
            "users": users,
            "items": items,
            "first": _local(first, file.time_zone),
            "last": _local(last, file.time_zone),
            "labels": {
                name: {"rate": rates[2 * number], "known": rates[2 * number + 1] / rows}
                for number, name in enumerate(file.labels)
            },
            "coverage": {name: self._coverage(name) for name in columns},
            "described": {
                kind: self._described(kind, table)
                for kind, table in (("item_id", "items"), ("user_id", "users"))
                if getattr(file, table) is not None
            },
            "days": dict(days),
            "gaps": [str(day) for day in empty_days([date.fromisoformat(day) for day, _ in days])],
            "hours": [hours.get(hour, 0) for hour in range(24)],
            "cut": self._mapping.cut,
            "ids": self._ids(),
            "auc": self._auc(),
            "times_ms": (first, last, midnights),
        }

    def _coverage(self, name: str) -> dict[str, float]:
        columns = self._mapping.columns[name]
        counts = self._one(f"SELECT count(*), {', '.join(f'count({quoted(column)})' for column in columns)} FROM q_{name}")
        return {column: count / max(1, counts[0]) for column, count in zip(columns, counts[1:], strict=True)}

    def _described(self, kind: str, table: str) -> float:
        known = f"SELECT CAST({kind} AS VARCHAR) FROM q_{table}"
        return float(self._one(f"SELECT avg(CAST(CAST({kind} AS VARCHAR) IN ({known}) AS INTEGER)) FROM q_impressions")[0])

    def _ids(self) -> dict[str, Any]:
        ids = self._mapping.ids()
        found: dict[str, Any] = {}
        self._db.register("#ids", ids)
        alike = (
            'SELECT kind, list(text ORDER BY text) AS texts FROM "#ids" GROUP BY kind, lower(trim(text)) HAVING count(*) > 1'
        )
        for kind, count in self._all('SELECT kind, count(*) FROM "#ids" GROUP BY kind ORDER BY kind'):
            found[kind] = {"texts": count, "alike": 0, "examples": []}
        for kind, texts in self._all(f"{alike} ORDER BY kind, texts"):
            found[kind]["alike"] += len(texts)
            if len(found[kind]["examples"]) < _EXAMPLES:
                found[kind]["examples"].append(texts[:_EXAMPLES])
        return found

    def _auc(self) -> dict[str, dict[str, float]]:
        """Return the AUC of each input that a model may see before the impression, or of its negative, by label."""
        columns = self._mapping.columns
        known = [name for name in ("position", "scene", *self._mapping.scores) if name in columns["impressions"]]
        inputs = {name: f"i.{quoted(name)}" for name in known}
        joins = ""
        for table, key in (("users", "user_id"), ("items", "item_id")):
            numbers = [
                name
                for name, type_ in columns[table].items()
                if (type_ in WHOLE_NUMBERS or is_float(type_)) and name not in _CODES
            ]
            inputs |= {f"{table}.{name}": f"{table}.{quoted(name)}" for name in numbers}
            joins += f" LEFT JOIN q_{table} AS {table} ON CAST({table}.{key} AS VARCHAR) = CAST(i.{key} AS VARCHAR)"
        if not inputs:
            return {}
        chosen = [f"TRY_CAST({sql} AS DOUBLE)" for sql in inputs.values()]
        chosen += [f"CAST(i.{_label(name)} AS DOUBLE)" for name in self._file.labels]
        sample = f"SELECT * FROM ({self._rows}) USING SAMPLE reservoir({SAMPLE} ROWS) REPEATABLE (0)"
        values = self._db.sql(
            f"SELECT {', '.join(f'{sql} AS c{n}' for n, sql in enumerate(chosen))} FROM ({sample}) AS i{joins}"
        )
        table = values.to_arrow_table()
        arrays = [table[f"c{n}"].to_numpy() for n in range(len(chosen))]
        return {
            label: {
                name: auc
                for name, values in zip(inputs, arrays, strict=False)
                if (auc := _auc(arrays[len(inputs) + number], values)) is not None
            }
            for number, label in enumerate(self._file.labels)
        }

    def _one(self, sql: str) -> tuple[Any, ...]:
        return fetch(self._db, sql)[0]

    def _all(self, sql: str) -> list[tuple[Any, ...]]:
        return fetch(self._db, sql)


_LOCAL = 'CAST(make_timestamptz("#ms" * 1000) AS TIMESTAMP)'
"""SQL for what the clocks of the log's zone show."""


def _label(name: str) -> str:
    return quoted("#" + name)


def _local(ms: int, zone: str) -> str:
    return (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)).astimezone(zone_of(zone)).isoformat(" ", "seconds")


def _auc(labels: NDArray[np.float64], values: NDArray[np.float64]) -> float | None:
    known = np.isfinite(labels) & np.isfinite(values)
    if len(np.unique(labels[known])) < 2 or len(np.unique(values[known])) < 2:
        return None
    return float(roc_auc_score(labels[known], values[known]))


def _suspicions(report: dict[str, Any], file: DataFile, times: tuple[int, int, int], now_ms: int) -> Iterator[str]:
    rows = report["rows"]
    if report["duplicates"] > DUPLICATES * rows:
        yield f"{report['duplicates']:,} of {rows:,} rows equal another one in all columns. The import takes each once."
    for name, label in report["labels"].items():
        if label["known"] == 0:
            yield f"The label `{name}` is unknown everywhere."
        elif label["rate"] in (0, 1):
            value = "true" if label["rate"] else "false"
            yield f"The label `{name}` is {value} wherever it is known. Is its condition right?"
    for kind, share in report["described"].items():
        if share < 1 - UNKNOWN:
            table = f"{kind.removesuffix('_id')}s"
            yield f"{1 - share:.0%} of the impressions are of {table} without a row in `{table}`. Are the ids the same?"
    for category, cut in report["cut"].items():
        if cut:
            yield f"Rows of `{category}` with more than {VALUES_MAX} values, of which the import takes the first: {cut:,}."
    yield from _clock(report, file, times, now_ms)
    for kind, ids in report["ids"].items():
        if ids["alike"]:
            examples = " and ".join(f"`{text}`" for text in ids["examples"][0])
            yield f"{ids['alike']:,} ids of `{kind}` differ by case or blanks alone, such as {examples}, and are not the same."
    for label, inputs in report["auc"].items():
        for name, auc in inputs.items():
            if name.startswith(SCORE) and max(auc, 1 - auc) >= SCORE_AUC:
                yield f"`{name}` predicts `{label}` with an AUC of {auc:.3f}. Was it made before the item was shown?"
            elif not name.startswith(SCORE) and max(auc, 1 - auc) >= LEAK_AUC:
                yield f"`{name}` alone tells `{label}`, with an AUC of {auc:.3f}. Was it known before the item was shown?"


def _clock(report: dict[str, Any], file: DataFile, times: tuple[int, int, int], now_ms: int) -> Iterator[str]:
    _, last, midnights = times
    gaps, hours = report["gaps"], np.array(report["hours"])
    if gaps:
        listed = ", ".join(gaps[:_EXAMPLES]) + (", …" if len(gaps) > _EXAMPLES else "")
        yield f"{len(gaps)} days between the first and the last have no impression: {listed}."
    if last > now_ms:
        yield f"The last impression is in the future, at {report['last']}. Are `time_unit` and `time_zone` right?"
    if midnights > report["rows"] / 2:
        yield "Most times are at midnight. Is `time` a date? Then the order of a user's impressions within a day is unknown."
    elif hours.sum() >= _CLOCK_ROWS and len(report["days"]) > 1:
        windows = np.sum([np.roll(hours, -shift) for shift in range(_NIGHT_HOURS)], axis=0)
        start = int(np.argmin(windows))
        if windows[start] < windows.mean() / 2 and start not in _NIGHT_STARTS:
            end = (start + _NIGHT_HOURS) % 24
            yield (
                f"The fewest impressions are from {start}:00 to {end}:00 by the clocks of {file.time_zone}, and not at night. "
                "Is `time_zone` right?"
            )
