"""Opening of a log that `ImpressionLog.save` wrote."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from pocketrank.cloud.data.schema import SAVED_KEY, DataError, ImpressionLog, Saved
from pocketrank.cloud.data.validate import validate

__all__ = ["open_log"]


def open_log(folder: Path) -> ImpressionLog:
    """Read and validate the log in `folder`.

    Raises `DataError` for a folder or file that is missing; a file that is truncated, damaged (page checksums are verified) or
    written by another program; a log of another format; and for a log that `validate` rejects.
    """
    tables = {name: _read(folder / f"{name}.parquet") for name in ImpressionLog.TABLES}
    saved = _saved(folder / "impressions.parquet", tables["impressions"])
    log = ImpressionLog(
        name=saved.name,
        simulated=saved.simulated,
        time_zone=saved.time_zone,
        tasks=saved.tasks,
        **{name: table.replace_schema_metadata(None) for name, table in tables.items()},
    )
    try:
        validate(log)
    except DataError as error:  # which names the table
        raise DataError(str(folder / f"{error.file}.parquet"), error.message, row=error.row, column=error.column) from None
    return log


def _read(file: Path) -> pa.Table:
    try:
        return pq.read_table(file, page_checksum_verification=True)
    except FileNotFoundError as error:
        raise DataError(str(file), "expected a table of a saved log, got no such file") from error
    except (OSError, pa.ArrowException) as error:
        raise DataError(str(file), f"expected a Parquet file, got one that cannot be read: {error}") from error


def _saved(file: Path, table: pa.Table) -> Saved:
    text = (table.schema.metadata or {}).get(SAVED_KEY)
    if text is None:
        raise DataError(str(file), "expected a table written by ImpressionLog.save, got one without its mark")
    try:
        saved = msgspec.json.decode(text, type=Saved)
    except msgspec.DecodeError as error:
        raise DataError(str(file), f"expected the mark of a saved log, got {text[:80]!r}: {error}") from error
    if saved.format != Saved.FORMAT:
        raise DataError(str(file), f"expected a log of format {Saved.FORMAT}, got {saved.format}")
    return saved
