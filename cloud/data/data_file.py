"""The data file: TOML that says where a team's tables are and how they become an impression log.

::

    name = "movielens-small"
    time_zone = "UTC"                      # IANA; days and hours of the log are those of its clocks
    time_unit = "s"                        # of `time`, where it is a number

    [tables]                               # names for the SQL; paths begin at this file
    ratings = "ratings.csv"                # .csv .csv.gz .csv.zst .tsv .parquet .arrow, or a folder or pattern of them
    movies = { files = "movies*.csv", types = { movieId = "VARCHAR" } }

    [impressions]
    sql = "SELECT userId AS user_id, movieId AS item_id, timestamp AS time, rating FROM ratings"

    [items]
    sql = "SELECT movieId AS item_id, split_part(genres, '|', 1) AS category FROM movies"

    [labels]                               # SQL over the columns of an impression
    like = "rating >= 4"

    [tasks]                                # labels that models predict, with their weights in the order of a page
    like = 1.0

`actions = ["purchase"]` at the top names labels that users do and that devices report under these names.
`items`, `users`, `history` and `pages` are optional; `pocketrank.cloud.data.mapping` lists what each query may return.

Errors::

    DataError                  the file cannot be used; names the file and the place in it
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from pocketrank.cloud.data.schema import IMPRESSIONS, LABELS, DataError
from pocketrank.cloud.time_zones import TimeZoneError, zone_of

__all__ = ["DataFile", "Query", "TableFiles", "open_data_file"]

_NAME = r"^[A-Za-z_][A-Za-z0-9_]{0,62}(?!\n)$"
_Name = Annotated[str, msgspec.Meta(pattern=_NAME)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Letter = Annotated[str, msgspec.Meta(min_length=1, max_length=1)]


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class TableFiles(_Table, frozen=True, kw_only=True):
    """Files that are one table."""

    files: _Text | Annotated[tuple[_Text, ...], msgspec.Meta(min_length=1)]
    """Paths or patterns, relative to the data file. A folder stands for all its files, and `key=value` folders are columns."""
    optional: bool = False
    """Whether there may be no such file. `items`, `users`, `history` and `pages` whose SQL names a table without files are left
    out."""
    delimiter: _Letter | None = None
    """Separator of fields in CSV; None: a tab in `.tsv`, else a comma."""
    quote: Annotated[str, msgspec.Meta(max_length=1)] = '"'
    """Quotation mark in CSV, doubled within quoted text; empty: there is none."""
    encoding: Literal["utf-8", "utf-16", "latin-1"] = "utf-8"
    """Encoding of CSV."""
    nulls: tuple[str, ...] = ("",)
    """Texts that mean that a value is unknown in CSV."""
    types: dict[str, _Text] = msgspec.field(default_factory=dict)
    """DuckDB types of columns of CSV by name, such as `VARCHAR` for ids with leading zeros. Others are found out."""
    columns: tuple[_Text, ...] = ()
    """Names of the columns of CSV without a header."""


class Query(_Table, frozen=True, kw_only=True):
    """One table of the log."""

    sql: _Text
    """A SELECT in DuckDB's SQL over the names in `tables`."""


class DataFile(_Table, frozen=True, kw_only=True):
    """The whole file."""

    name: _Text
    """Name of the log."""
    time_zone: _Text
    """IANA name of the zone whose days and hours are those of the log. Times without a zone are of this one."""
    time_unit: Literal["s", "ms", "us", "ns"] | None = None
    """Unit of `time` and `upload_time` since the epoch, where they are numbers."""
    tables: Annotated[dict[_Name, _Text | TableFiles], msgspec.Meta(min_length=1)]
    """Files by the name that SQL gives them."""
    impressions: Query
    """One row for each item that was shown."""
    items: Query | None = None
    """Attributes of items. Items of the impressions that are not among them have none."""
    users: Query | None = None
    """Attributes of users."""
    history: Query | None = None
    """Events of users from before the log, one row each."""
    pages: Query | None = None
    """Candidates of pages, shown or not, one row each."""
    labels: Annotated[dict[_Name, _Text], msgspec.Meta(min_length=1)]
    """Labels by name: conditions in SQL over the columns of an impression and `duration_ms`. NULL is unknown."""
    tasks: Annotated[dict[_Name, float], msgspec.Meta(min_length=1)]
    """Labels that models predict, in the order of their outputs, each with its weight in the order of a page."""
    actions: tuple[_Name, ...] = ()
    """Labels that users do and devices report under these names, such as `purchase`."""
    simulated: bool = False
    """Whether the log is of no real users. Every figure of such a log is labelled."""

    def __post_init__(self) -> None:
        for what, names in (("tasks", self.tasks), ("actions", self.actions)):
            if unknown := set(names) - set(self.labels):
                raise ValueError(f"Expected {what} among the labels {', '.join(self.labels)}, got {', '.join(sorted(unknown))}")
        taken = set(IMPRESSIONS.names) - set(LABELS)
        if clash := taken & set(self.labels):
            raise ValueError(f"Expected labels with names of their own, got {', '.join(sorted(clash))}")
        try:
            zone_of(self.time_zone)
        except TimeZoneError as error:
            raise ValueError(str(error)) from None


def open_data_file(path: Path) -> DataFile:
    """Read a data file. Raises `DataError`. Tables and queries are checked when the log is made."""
    try:
        tables: dict[str, Any] = tomllib.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise DataError(str(path), f"expected a data file, got: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise DataError(str(path), f"expected TOML, got: {error}") from error
    try:
        return msgspec.convert(tables, DataFile)
    except msgspec.ValidationError as error:
        raise DataError(str(path), str(error)) from error
