"""Import of a team's tables: from a data file to a log on disk, in memory that does not grow with the number of impressions.

Errors::

    DataError                  names file, row and column of what is wrong, or the place in the data file
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import duckdb
import msgspec

from pocketrank.cloud.data.category_codes import NO_CODES, codes_of, codes_of_log
from pocketrank.cloud.data.data_file import DataFile, open_data_file
from pocketrank.cloud.data.log import LogWriter, StoredLog, open_log
from pocketrank.cloud.data.mapping import Mapping
from pocketrank.cloud.data.schema import DataError, ImpressionLog
from pocketrank.cloud.data.source_tables import SourceTables, fetch, text_literal
from pocketrank.device.contract import CODE_BITS

__all__ = ["MEMORY_LIMIT", "connect", "import_log", "load_mapped"]

logger = logging.getLogger(__name__)

Progress = Callable[[float], None]

MEMORY_LIMIT = "2GB"
"""Memory of DuckDB, beyond which it moves rows to disk. Arrow's and Python's come on top: some 300 MB for any log."""
_IN_MEMORY = 1 << 29
"""Largest size of all files in bytes with which the tables of queries are in memory."""
_THREADS = 8
"""Largest number of threads of DuckDB, each of which needs some 125 MB."""
_MAPPED = 0.5
"""Share of the progress at which the queries have run."""


def import_log(
    path: Path,
    folder: Path,
    *,
    tables: Path | None = None,
    replace: bool = True,
    progress: Progress | None = None,
    id_bits: int = CODE_BITS,
    codes_from: Path | None = None,
) -> StoredLog:
    """Write the log of the data file `path` into `folder`, or open the one that was made from the same files before.

    Files are the same if the data file's text, and their names, sizes and times of modification are. `tables` is the folder
    where the paths in the data file begin, by default that of the data file. `replace` tells whether a log of other files may
    be replaced. `progress` receives the share that is done, 0 to 1. `id_bits` are the bits of the hashes that become codes of
    ids. Rows of a query that are equal in all columns count once.

    `codes_from` is a log or a run whose codes of categories are continued; by default the log of the same name that is
    replaced. The log that was made from the same files before is made again if it does not continue them, unless it may not be
    replaced.

    Raises `DataError`; `folder` is then unchanged.
    """
    file = open_data_file(path)
    codes = None if codes_from is None else codes_of(codes_from)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with connect(file, folder.parent) as db:
        sources = SourceTables(db, path, file, tables or path.parent)
        source = _fingerprint(path, sources, id_bits)
        if (folder / "log.json").is_file():
            try:
                known = open_log(folder)
            except DataError:
                known = None
            continued = known is not None and (codes is None or not replace or codes.are_in(known))
            if known is not None and known.record.source == source and continued:
                return known
            if not replace:
                message = f"expected the log of {path} that was imported here, got one of other files; choose another folder"
                raise DataError(str(folder), message)
            if codes is None and known is not None and known.name == file.name:
                codes = codes_of_log(known)
        _remove_unfinished(folder)
        if sum(os.stat(name).st_size for files in sources.files.values() for name in files) > _IN_MEMORY:
            _keep_on_disk(db)
        codes = codes or NO_CODES
        mapping = Mapping(db, path, file, sources, id_bits, codes.ids)
        report = progress or (lambda share: None)
        report(_MAPPED)
        total, written = mapping.rows, 0
        try:
            with LogWriter(
                folder,
                name=file.name,
                simulated=file.simulated,
                time_zone=file.time_zone,
                tasks=file.tasks,
                labels=mapping.labels,
                actions=file.actions,
                scores=mapping.scores,
                absent=mapping.absent,
                source=source,
            ) as writer:
                for rows in mapping.impressions():
                    writer.write(rows, valid=True)  # by the checks of `Mapping`
                    written += len(rows)
                    report(_MAPPED + (0.95 - _MAPPED) * written / total)
                items, users = mapping.items(), mapping.users()
                history, pages, ids = mapping.history(), mapping.pages(), mapping.ids()
                log = writer.finish(
                    items,
                    users,
                    history=history,
                    pages=pages,
                    ids=ids,
                    item_categories=mapping.item_categories,
                    item_floats=mapping.item_floats,
                    user_categories=mapping.user_categories,
                    numbering=codes.after(ids),
                    all_items=True,
                )
        except DataError as error:
            if error.file.startswith(str(path)) or error.file == str(folder):
                raise
            where = f"$.{error.file}" + (f": row {error.row} in the order of the log" if error.row else "")
            raise DataError(str(path), f"{where}: {error.message}", column=error.column) from error
    logger.info("%s: %d rows, %d exact duplicates dropped", path, total, total - written)
    report(1.0)
    return log


def load_mapped(path: Path, *, tables: Path | None = None) -> ImpressionLog:
    """Return the log of a data file in memory. Raises `DataError`."""
    with TemporaryDirectory(prefix="pocketrank-") as folder:
        return import_log(path, Path(folder) / "log", tables=tables).load()


@contextmanager
def connect(file: DataFile, folder: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open DuckDB with the time zone of a data file. What does not fit into `MEMORY_LIMIT` is moved to a folder in `folder`."""
    with TemporaryDirectory(prefix=".pocketrank-", dir=folder) as spill, duckdb.connect() as db:
        db.execute(f"SET memory_limit = {text_literal(MEMORY_LIMIT)}")
        db.execute(f"SET temp_directory = {text_literal(spill)}")
        db.execute(f"SET TimeZone = {text_literal(file.time_zone)}")
        db.execute(f"SET threads = {min(_THREADS, os.cpu_count() or 1)}")
        db.execute("SET enable_progress_bar = false")
        yield db


def _keep_on_disk(db: duckdb.DuckDBPyConnection) -> None:
    """Let tables be in a file beside what is moved to disk.

    A row of a table in memory is written again each time that memory is short, and one of a file is not.
    """
    ((spill,),) = fetch(db, "SELECT current_setting('temp_directory')")
    db.execute("SET fsync_mode = 'NONE'")  # nobody opens the file again
    db.execute("PRAGMA disable_checkpoint_on_shutdown")
    db.execute("SET force_compression = 'uncompressed'")
    db.execute(f"ATTACH {text_literal(str(Path(spill) / 'tables.db'))} AS tables (RECOVERY_MODE no_wal_writes)")
    db.execute("USE tables")


def _fingerprint(path: Path, sources: SourceTables, id_bits: int) -> str:
    """Return a digest of the data file's text, and of the names, sizes and times of all files."""
    files = [
        (name, file, os.stat(file).st_size, os.stat(file).st_mtime_ns)
        for name, files in sources.files.items()
        for file in files
    ]
    return hashlib.sha256(path.read_bytes() + msgspec.json.encode((files, id_bits))).hexdigest()


def _remove_unfinished(folder: Path) -> None:
    """Remove what an import that was killed has left."""
    for part in folder.parent.glob(f"{folder.name}.*.part"):
        shutil.rmtree(part)
