"""Reader of CSV files, plain or gzipped, in chunks of bounded memory, with errors that name file, row and column.

Polars parses each chunk as a whole. Only a chunk with an error is read again, line by line, to find the error. A field may not
contain a line break.
"""

from __future__ import annotations

import csv
import gzip
import io
import logging
import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import NoReturn

import numpy as np
import polars as pl

from pocketrank.cloud.data.schema import DataError

__all__ = ["Column", "Kind", "read_chunks"]

logger = logging.getLogger(__name__)

_EXACT = 2**53  # beyond it, a float does not represent every integer


class Kind(Enum):
    """Kind of a field, in the words of an error message."""

    INTEGER = "a 64-bit integer"
    WHOLE = "a whole number"  # `12` or `12.0`, as written by tools that store missing integers as floats
    LABEL = "0 or 1"
    DAY = "a date YYYY-MM-DD"
    TEXT = "text"


_PARSED = {
    Kind.INTEGER: pl.Int64, Kind.WHOLE: pl.Float64, Kind.LABEL: pl.UInt8, Kind.DAY: pl.String, Kind.TEXT: pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class Column:
    """Form of a column."""

    kind: Kind
    optional: bool = False
    """Whether the header may lack the column."""
    nullable: bool = False
    """Whether a field may be empty."""
    low: int | None = None
    """Smallest value allowed (INTEGER)."""
    high: int | None = None
    """Largest value allowed (INTEGER)."""
    pattern: str | None = None
    """Regular expression that the whole field matches (TEXT)."""

    def problem(self, text: str) -> str | None:
        """Return the error of a field's text, as "expected ..., got ...", or None."""
        value = text.strip() if self.kind in (Kind.INTEGER, Kind.WHOLE, Kind.LABEL) else text
        if not value:
            return None if self.nullable else f"expected {self.kind.value}, got an empty field"
        if not self._fits(value):
            matching = f" matching {self.pattern}" if self.pattern else ""
            return f"expected {self.kind.value}{matching}, got {text[:40]!r}"
        if self.kind is Kind.INTEGER and not self._low() <= int(value) <= self._high():
            return f"expected {self._low()}..{self._high()}, got {value}"
        return None

    def any_problem(self, values: pl.Series) -> bool:
        """Return whether a parsed column, of a type of `_PARSED`, has a value with a `problem`."""
        if not self.nullable and values.null_count():
            return True
        values = values.drop_nulls()
        match self.kind:
            case Kind.INTEGER:
                return not values.is_between(self._low(), self._high()).all()
            case Kind.LABEL:
                return bool((values > 1).any())
            case Kind.WHOLE:
                return not (values.is_finite() & (values == values.floor()) & (values.abs() <= _EXACT)).all()
            case Kind.DAY:
                return values.str.to_date("%Y-%m-%d", strict=False).null_count() > 0 or not (values.str.len_bytes() == 10).all()
            case Kind.TEXT:
                return self.pattern is not None and not values.str.contains(f"^(?:{self.pattern})$").all()

    def finish(self, values: pl.Series) -> pl.Series:
        """Return a checked column in its final type: i32 where the bounds allow it, i64, bool, date or str."""
        match self.kind:
            case Kind.WHOLE:
                return values.cast(pl.Int64)
            case Kind.LABEL:
                return values.cast(pl.Boolean)
            case Kind.DAY:
                return values.str.to_date("%Y-%m-%d")
            case Kind.INTEGER:
                return values.cast(pl.Int32) if self._low() >= -(2**31) and self._high() < 2**31 else values
            case Kind.TEXT:
                return values

    def _low(self) -> int:
        return -(2**63) if self.low is None else self.low

    def _high(self) -> int:
        return 2**63 - 1 if self.high is None else self.high

    def _fits(self, value: str) -> bool:
        match self.kind:
            case Kind.INTEGER:
                return re.fullmatch(r"[+-]?[0-9]+", value) is not None
            case Kind.LABEL:
                return value in ("0", "1")
            case Kind.TEXT:
                return self.pattern is None or re.fullmatch(self.pattern, value) is not None
            case Kind.WHOLE:
                try:
                    number = float(value)
                except ValueError:
                    return False
                return math.isfinite(number) and number == math.floor(number) and abs(number) <= _EXACT
            case Kind.DAY:
                try:
                    return len(value) == 10 and bool(date.fromisoformat(value))
                except ValueError:
                    return False


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
            names = next(csv.reader(io.StringIO(line.decode("utf-8-sig").strip())))
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
        rest = b""
        while block := stream.read(self.chunk_bytes):
            cut = block.rfind(b"\n") + 1
            if cut == 0 and len(rest) > self.chunk_bytes:
                raise DataError(self.file, f"expected lines, got {len(rest)} bytes without a line break")
            if cut:
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
            self._explain(chunk, header, wanted, rows, "rows of different widths")
        schema = {
            f"column_{i + 1}": _PARSED[wanted[name].kind] if name in wanted else pl.String for i, name in enumerate(header)
        }
        places = [f"column_{header.index(name) + 1}" for name in wanted]
        try:
            frame = pl.read_csv(chunk, has_header=False, schema=schema, columns=places).select(places)
        except pl.exceptions.PolarsError as error:
            self._explain(chunk, header, wanted, rows, str(error))
        series = dict(zip(wanted, frame.get_columns(), strict=True))
        if any(column.any_problem(series[name]) for name, column in wanted.items()):
            self._explain(chunk, header, wanted, rows, "a value that is not allowed")
        return pl.DataFrame({name: column.finish(series[name]) for name, column in wanted.items()})

    def _explain(self, chunk: bytes, header: list[str], wanted: dict[str, Column], rows: int, reason: str) -> NoReturn:
        """Raise the `DataError` of the first bad row of a chunk that starts after `rows` rows."""
        lines = chunk.removesuffix(b"\n").split(b"\n")
        for row, line in enumerate(lines, start=rows + 1):
            try:
                fields = next(csv.reader([line.decode().removesuffix("\r")], strict=True), [])
            except (UnicodeDecodeError, csv.Error) as error:
                raise DataError(self.file, f"expected CSV in UTF-8, got {line[:40]!r}: {error}", row=row) from error
            if len(fields) != len(header):
                raise DataError(self.file, f"expected {len(header)} fields, got {len(fields)}", row=row)
            for name, text in zip(header, fields, strict=True):
                if name in wanted and (problem := wanted[name].problem(text)):
                    raise DataError(self.file, problem, row=row, column=name)
        raise DataError(self.file, f"cannot read rows {rows + 1}..{rows + len(lines)}: {reason}")


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
