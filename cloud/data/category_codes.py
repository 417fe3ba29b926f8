"""Codes of categories that stay the same from one log to the next.

A phone with the bundle of yesterday reads the pages of a run of today, and codes in a page mean what they meant when its models
were trained. So an import continues the dictionaries of an earlier log or run: known texts keep their codes, new ones get the
next, and those of texts that are gone are not given again.

::

    RUN/published/categories.json   the dictionaries of a run's log: codes by text, by kind (`pocketrank.cloud.data.schema.IDS`)

Errors::

    DataError                  there are no such dictionaries, or they cannot be read
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import msgspec
import pyarrow as pa

from pocketrank.cloud.data.log import Log, open_log
from pocketrank.cloud.data.schema import CATEGORIES, IDS, DataError, ids_of
from pocketrank.cloud.files import write_atomically

__all__ = ["NO_CODES", "CategoryCodes", "codes_of", "codes_of_log", "save_codes"]

_FILE = "categories.json"
_DIGITS = 16


class CategoryCodes(NamedTuple):
    """Dictionaries of categories."""

    ids: pa.Table
    """`IDS`"""
    numbering: str
    """Name of the codes of items, which stays the same while dictionaries are continued; empty where there are none."""

    def after(self, ids: pa.Table) -> str:
        """Return the name of the codes of items in dictionaries that continue these."""
        new, old = (set(table["kind"].unique().to_pylist()) for table in (ids_of(ids, (CATEGORIES,)), self.ids))
        # Without a dictionary, whole numbers are codes of `category` themselves; with one they are not.
        continued = "category" in old or "category" not in new
        return self.numbering if self.numbering and continued else _numbering(ids)

    def are_in(self, log: Log) -> bool:
        """Return whether a log continues these dictionaries."""
        its = codes_of_log(log)
        return _rows(self.ids) <= _rows(its.ids) and its.numbering == self.after(its.ids)


NO_CODES = CategoryCodes(IDS.empty_table(), "")
"""No dictionaries."""


def codes_of_log(log: Log) -> CategoryCodes:
    """Return the dictionaries of a log. Raises `DataError`."""
    ids = log.ids_of((CATEGORIES,))
    return CategoryCodes(ids, log.numbering or _numbering(ids))


def codes_of(folder: Path) -> CategoryCodes:
    """Return the dictionaries of the log or the run in `folder`. Raises `DataError`."""
    path = folder / "published" / _FILE
    if (folder / "log.json").is_file():
        return codes_of_log(open_log(folder))
    if path.is_file():
        try:
            file = msgspec.json.decode(path.read_bytes(), type=_File)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise DataError(str(path), f"expected codes of categories, got: {error}") from error
        rows = [{"kind": kind, "code": c, "text": text} for kind, codes in file.codes.items() for text, c in codes.items()]
        return CategoryCodes(pa.Table.from_pylist(rows, IDS), file.numbering)
    if (folder / "log" / "log.json").is_file():
        return codes_of_log(open_log(folder / "log"))
    raise DataError(str(folder), f"expected a log, or a run with published/{_FILE}, got neither")


def save_codes(codes: CategoryCodes, published: Path) -> None:
    """Write dictionaries into the published half of a run, from where `codes_of` reads them. Raises OSError."""
    by_kind: dict[str, dict[str, int]] = {}
    for row in codes.ids.to_pylist():
        by_kind.setdefault(row["kind"], {})[row["text"]] = row["code"]
    write_atomically(published / _FILE, msgspec.json.encode(_File(numbering=codes.numbering, codes=by_kind)))


def _numbering(ids: pa.Table) -> str:
    """Return the name of the codes of items that begin with these dictionaries: 16 hexadecimal digits of a SHA-256."""
    items = sorted(row for row in _rows(ids_of(ids, (CATEGORIES,))) if not row[0].startswith("users."))
    return hashlib.sha256(msgspec.json.encode(items)).hexdigest()[:_DIGITS] if items else ""


class _File(msgspec.Struct, frozen=True, kw_only=True):
    numbering: str
    codes: dict[str, dict[str, int]]


def _rows(ids: pa.Table) -> set[tuple[str, int, str]]:
    return set(zip(*(ids[name].to_pylist() for name in IDS.names), strict=True))
