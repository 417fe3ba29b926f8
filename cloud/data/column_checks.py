"""Checks of the columns that queries return, as conditions in SQL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa

from pocketrank.cloud.data.id_codes import WHOLE_NUMBERS
from pocketrank.cloud.data.source_tables import quoted

__all__ = ["Check", "counts", "is_01", "is_float", "number_check"]

_FLOAT_MAX = 3.4e38
_INT_MAX = 2**63 - 1


@dataclass(frozen=True)
class Check:
    """A condition, in SQL over the row `q` of a query, that no value of a column may meet."""

    column: str
    wrong: str
    expected: str


def counts(checks: Sequence[Check]) -> str:
    """Return SQL for the number of rows that each check finds."""
    return ", ".join(f"count(*) FILTER (WHERE {check.wrong})" for check in checks)


def is_01(value: str, type_: str) -> str:
    """Return SQL that is true for true and 1, false for false and 0, and null for anything else."""
    if type_ == "BOOLEAN":
        return value
    return f"CASE {value if type_ in WHOLE_NUMBERS else f'TRY_CAST({value} AS DOUBLE)'} WHEN 1 THEN true WHEN 0 THEN false END"


def is_float(type_: str) -> bool:
    """Return whether a type of DuckDB has fractions."""
    return type_ in ("FLOAT", "DOUBLE") or (type_.startswith("DECIMAL") and type_.endswith(")"))


def number_check(name: str, type_: str, kind: pa.DataType, low: float, high: float) -> Check:
    """Return the check that a column holds numbers of a type within a range, or nothing."""
    column = f"q.{quoted(name)}"
    number = f"TRY_CAST({column} AS {'DOUBLE' if pa.types.is_floating(kind) or is_float(type_) else 'HUGEINT'})"
    if pa.types.is_floating(kind):
        low, high = max(low, -_FLOAT_MAX), min(high, _FLOAT_MAX)
        expected = "a finite number" if max(-low, high) == _FLOAT_MAX else "a number"
    else:
        bits = 1 if pa.types.is_boolean(kind) else kind.bit_width
        low, high = (0, 1) if bits == 1 else (max(low, -(2 ** (bits - 1))), min(high, 2 ** (bits - 1) - 1))
        expected = "a whole number"
    within = f"{number} BETWEEN {_sql(low)} AND {_sql(high)}"
    if not pa.types.is_floating(kind) and is_float(type_) and name not in ("watch_ms", "duration_ms"):
        within += f" AND {number} = round({number})"
    if max(-low, high) < _FLOAT_MAX and high != _INT_MAX:
        expected += f" from {low:g} to {high:g}"
    elif low == 0:
        expected += " from 0"
    return Check(name, f"{column} IS NOT NULL AND NOT coalesce({within}, false)", expected)


def _sql(value: float) -> str:
    return repr(value) if isinstance(value, float) else str(int(value))
