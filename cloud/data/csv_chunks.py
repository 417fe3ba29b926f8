"""Reader of CSV files, plain or gzipped, in chunks of bounded memory, with errors that name file, row and column.

Polars parses each chunk as a whole. Only a chunk with a field that Polars refuses, or that may be wrong, is read again line by
line. `Column.value` then decides: it takes what Polars is too strict for, such as a number with a space behind it, and names
row and column of what is wrong. A field may not contain a line break. Empty lines are no rows, and are not counted.

Whole numbers never pass through a float, so ids are exact up to the ends of int64.
"""

from __future__ import annotations

import csv
import gzip
import io
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pocketrank.cloud.data.schema import DataError

__all__ = ["Column", "Kind", "read_chunks"]

logger = logging.getLogger(__name__)

_EXACT = 2**53 - 1  # a larger float may stand for several integers
_DIGITS = re.compile(r"[+-]?[0-9]+")
_FLOAT = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,4})?")
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")


class Kind(Enum):
    """Kind of a field, in the words of an error message."""

    INTEGER = "a 64-bit integer"
    WHOLE = "a whole number"  # `12` or `12.0`, as written by tools that store missing integers as floats
    LABEL = "0 or 1"
    DAY = "a date YYYY-MM-DD"
    TEXT = "text"


_PARSED = {
    Kind.INTEGER: pl.Int64, Kind.WHOLE: pl.String, Kind.LABEL: pl.UInt8, Kind.DAY: pl.String, Kind.TEXT: pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """Form of a column."""

    kind: Kind
    optional: bool = False
    """Whether the header may lack the column."""
    nullable: bool = False
    """Whether a field may be empty."""
    low: int = -(2**63)
    """Smallest value allowed (INTEGER, WHOLE)."""
    high: int = 2**63 - 1
    """Largest value allowed (INTEGER, WHOLE)."""
    pattern: str | None = None
    """Regular expression that the whole field matches (TEXT)."""

    @property
    def dtype(self) -> Any:
        """Type of the finished column: i32 where the bounds allow it, i64, bool, date or str."""
        match self.kind:
            case Kind.INTEGER:
                return pl.Int32 if self.low >= -(2**31) and self.high < 2**31 else pl.Int64
            case Kind.WHOLE:
                return pl.Int64
            case Kind.LABEL:
                return pl.Boolean
            case Kind.DAY:
                return pl.Date
            case Kind.TEXT:
                return pl.String

    def value(self, text: str) -> int | bool | date | str | None:
        """Return the value of a field's text; None is an empty field. Space around anything but TEXT is ignored.

        Raises ValueError, "expected ..., got ...", for a text that the column does not take.
        """
        value = text if self.kind is Kind.TEXT else text.strip()
        if not value:
            if not self.nullable:
                raise ValueError(f"expected {self.kind.value}, got an empty field")
            return None
        wrong = ValueError(f"expected {self.kind.value}, got {text[:40]!r}")
        match self.kind:
            case Kind.INTEGER | Kind.WHOLE:
                return self._integer(value, wrong)
            case Kind.LABEL:
                if not _DIGITS.fullmatch(value) or (number := Decimal(value)) not in (0, 1):
                    raise wrong
                return number == 1
            case Kind.DAY:
                if not _DAY.fullmatch(value):
                    raise wrong
                try:
                    return date.fromisoformat(value)
                except ValueError:
                    raise wrong from None
            case Kind.TEXT:
                if self.pattern is not None and not re.fullmatch(self.pattern, value):
                    raise ValueError(f"expected text matching {self.pattern}, got {text[:40]!r}")
                return value

    def _integer(self, value: str, wrong: ValueError) -> int:
        digits = _DIGITS.fullmatch(value) is not None
        if not digits and (self.kind is Kind.INTEGER or not _FLOAT.fullmatch(value)):
            raise wrong
        number = Decimal(value)  # exact, and unlike `int` without a limit of digits
        if not digits and not -_EXACT <= number <= _EXACT:
            raise ValueError(f"expected digits alone beyond {_EXACT}, where floats are not exact, got {value[:40]!r}")
        if not self.low <= number <= self.high:
            raise ValueError(f"expected {self.low}..{self.high}, got {value[:40]}")
        if number != number.to_integral_value():
            raise wrong
        return int(number)

    def finish(self, values: pl.Series) -> pl.Series | None:
        """Return a parsed column, of a type of `_PARSED`, in its final type; None if `value` must decide about some of them."""
        match self.kind:
            case Kind.INTEGER:
                good, finished = values.is_between(self.low, self.high).all(), values
            case Kind.WHOLE:
                values = _without_empty(values.str.strip_chars())
                finished = _integers(values)
                good = finished.null_count() == values.null_count() and finished.is_between(self.low, self.high).all()
            case Kind.LABEL:
                good, finished = (values <= 1).all(), values
            case Kind.DAY:
                values = _without_empty(values)
                finished = values.str.to_date("%Y-%m-%d", strict=False)
                good = finished.null_count() == values.null_count() and (values.str.len_bytes() == 10).all()
            case Kind.TEXT:
                values = finished = _without_empty(values)
                good = self.pattern is None or values.str.contains(f"^(?:{self.pattern})$").all()
        return finished.cast(self.dtype) if good and (self.nullable or not values.null_count()) else None


def _without_empty(values: pl.Series) -> pl.Series:
    """Return texts with null for an empty one, which a quoted field may be."""
    return values.set(values == "", None)


def _integers(values: pl.Series) -> pl.Series:
    """Return texts such as `12` and `12.0` as i64, with null for others, and for `12.0` beyond what a float holds exactly."""
    integers = values.cast(pl.Int64, strict=False)
    if integers.null_count() == values.null_count():
        return integers
    floats = values.str.replace(r"\.0*$", "").cast(pl.Int64, strict=False)
    exact = floats.is_between(-_EXACT, _EXACT) | integers.is_not_null()
    return floats.set(~exact, None)


def read_chunks(
    file: Path,
    columns: Mapping[str, Column],
    *,
    unused: frozenset[str] = frozenset(),
    chunk_bytes: int = 16 << 20,
    on_bytes: Callable[[int], None] | None = None,
) -> Iterator[pl.DataFrame]:
    """Yield the rows of `file` in order, in frames of about `chunk_bytes` of text, with the wanted columns only.

    The frames have the columns in the order of `columns`, without optional ones that the header lacks. Their types are i64
    (WHOLE, and INTEGER, i32 where its bounds allow it), bool (LABEL), date (DAY) and str (TEXT). Columns that are in neither
    `columns` nor `unused` are ignored, with a warning in the log. After each chunk, `on_bytes` receives the number of bytes of
    the file on disk that were read. The memory in use is a few times `chunk_bytes`.

    Raises `DataError` for a file that is missing, empty, without rows, truncated or damaged as gzip, or not UTF-8; a header
    that lacks a column or has one twice; a row with too few or too many fields; and a field that is not of the form in
    `columns`.
    """
    try:
        with file.open("rb") as raw:
            unpacked = gzip.GzipFile(fileobj=raw) if file.suffix == ".gz" else raw
            yield from _Reader(file, columns, unused, chunk_bytes).read(unpacked, raw, on_bytes)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(str(file), f"cannot be read to its end: {error}") from error


class _Reader:
    def __init__(self, file: Path, columns: Mapping[str, Column], unused: frozenset[str], chunk_bytes: int) -> None:
        self.file, self.columns, self.unused, self.chunk_bytes = str(file), columns, unused, chunk_bytes

    def read(
        self, stream: io.BufferedIOBase, raw: io.BufferedIOBase, on_bytes: Callable[[int], None] | None
    ) -> Iterator[pl.DataFrame]:
        header = self._header(stream.readline())
        wanted = {name: self.columns[name] for name in self.columns if name in header}
        rows = 0
        for chunk in self._whole_lines(stream):
            frame = self._parse(chunk, header, wanted, rows)
            rows += len(frame)
            if on_bytes is not None:
                on_bytes(raw.tell())
            yield frame
        if rows == 0:
            raise DataError(self.file, "expected at least one row after the header, got none")

    def _header(self, line: bytes) -> list[str]:
        if not line.strip():
            raise DataError(self.file, "expected a header, got an empty file or line")
        try:
            names = [name.strip() for name in next(csv.reader([line.decode("utf-8-sig").strip()], skipinitialspace=True))]
        except (UnicodeDecodeError, csv.Error) as error:
            raise DataError(self.file, f"expected a CSV header in UTF-8, got {line[:40]!r}") from error
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DataError(self.file, "expected each column once, got two of this name", column=twice[0])
        missing = [name for name, column in self.columns.items() if name not in names and not column.optional]
        if missing:
            got = ", ".join(names)[:200]
            raise DataError(self.file, f"missing from the header; expected {', '.join(missing)}, got {got}", column=missing[0])
        extra = [name for name in names if name not in self.columns and name not in self.unused]
        if extra:
            logger.warning("%s: unknown columns are ignored: %s", self.file, ", ".join(extra))
        return names

    def _whole_lines(self, stream: io.BufferedIOBase) -> Iterator[bytes]:
        rest, lines = b"", 0
        while block := stream.read(self.chunk_bytes):
            cut = block.rfind(b"\n") + 1
            if cut == 0 and len(rest) > self.chunk_bytes:
                message = f"expected lines, got {len(rest)} bytes without a line break"
                raise DataError(self.file, message, row=lines + 1)
            if cut:
                lines += block.count(b"\n")
                yield rest + block[:cut]
                rest = block[cut:]
            else:
                rest += block
        if rest:
            yield rest

    def _parse(self, chunk: bytes, header: list[str], wanted: dict[str, Column], rows: int) -> pl.DataFrame:
        width = len(header)
        # Polars completes a short row with nulls, which would be valid in nullable columns.
        if not _fields_agree(chunk, width):
            return self._parse_lines(chunk, header, wanted, rows)
        schema = {
            f"column_{i + 1}": _PARSED[wanted[name].kind] if name in wanted else pl.String for i, name in enumerate(header)
        }
        places = [f"column_{header.index(name) + 1}" for name in wanted]
        try:
            frame = pl.read_csv(chunk, has_header=False, schema=schema, columns=places).select(places)
        except pl.exceptions.PolarsError:
            return self._parse_lines(chunk, header, wanted, rows)
        finished = {}
        for (name, column), values in zip(wanted.items(), frame.get_columns(), strict=True):
            series = column.finish(values)
            if series is None:
                return self._parse_lines(chunk, header, wanted, rows)
            finished[name] = series
        return pl.DataFrame(finished)

    def _parse_lines(self, chunk: bytes, header: list[str], wanted: dict[str, Column], rows: int) -> pl.DataFrame:
        """Parse a chunk that starts after `rows` rows. Raises the `DataError` of the first bad field, or of a bad row."""
        values: dict[str, list[int | bool | date | str | None]] = {name: [] for name in wanted}
        lines = chunk.removesuffix(b"\n").split(b"\n")
        if len(header) > 1:
            lines = [line for line in lines if line.strip()]
        for row, line in enumerate(lines, start=rows + 1):
            try:
                fields = next(csv.reader([line.decode().removesuffix("\r")], strict=True), [])
            except (UnicodeDecodeError, csv.Error) as error:
                raise DataError(self.file, f"expected CSV in UTF-8, got {line[:40]!r}: {error}", row=row) from error
            if len(fields) != len(header):
                raise DataError(self.file, f"expected {len(header)} fields, got {len(fields)}", row=row)
            for name, text in zip(header, fields, strict=True):
                if name in wanted:
                    try:
                        values[name].append(wanted[name].value(text))
                    except ValueError as error:
                        raise DataError(self.file, str(error), row=row, column=name) from None
        return pl.DataFrame(values, schema={name: column.dtype for name, column in wanted.items()})


def _fields_agree(chunk: bytes, width: int) -> bool:
    """Return whether the number of separators outside of quotes is that of rows with `width` fields."""
    lines = chunk.count(b"\n") + (not chunk.endswith(b"\n"))
    if b'"' in chunk:
        letters = np.frombuffer(chunk, np.uint8)
        quoted = np.bitwise_xor.accumulate((letters == ord('"')).view(np.uint8))
        commas = int(np.count_nonzero((letters == ord(",")) & (quoted == 0)))
    else:
        commas = chunk.count(b",")
    return commas == lines * (width - 1)
