"""Format of a feedback log in an SQLite file: its tables, and the upgrade of former formats.

Table `event`: `place` increases in the order of acceptance and is never used twice, `user_id` and `event_id` are unique
together across all processes, `added_ms` is when the event was accepted by the log's own clock, and `body` is the event as
MessagePack. `writer` is a random number of the open log that wrote the event, by which it recognizes its own events. A record
with the empty event id and an empty body says that a user was forgotten.

Table `clock` holds the time of the log's own clock, by which events grow old. Table `identity` holds a random number, by which
what was computed from the log recognizes it; a log from before that table gets one when it is opened.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any

from msgspec import structs

from pocketrank.cloud.streams.feedback_log import LoggedEvent, LogOpenError, read_record
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import ContractError

__all__ = ["ANYBODY", "FORGOTTEN", "FORMAT", "OWNER_ONLY", "is_fresh", "prepare", "pragma"]

FORMAT = 3
ANYBODY = 0
"""Writer of records that are no open log's own."""
FORGOTTEN = b""
"""Body of the record that says that a user was forgotten."""
OWNER_ONLY = 0o600
_APPLICATION_ID = 0x706B726B  # "pkrk", in the header of the file: tells a log from the database of another program
_FORMER = (1, 2)
"""Formats without users: event ids were unique for all. A log of them is upgraded when it is opened."""

_TABLE = """CREATE TABLE event (
    place INTEGER PRIMARY KEY AUTOINCREMENT, user_id INTEGER, event_id TEXT NOT NULL, added_ms INTEGER NOT NULL,
    body BLOB NOT NULL, writer INTEGER NOT NULL, UNIQUE (user_id, event_id)
)"""
_CLOCK = "CREATE TABLE clock (now_ms INTEGER NOT NULL)"
_IDENTITY = "CREATE TABLE IF NOT EXISTS identity (log_id INTEGER NOT NULL)"
_IDENTIFY = "INSERT INTO identity SELECT ? WHERE NOT EXISTS (SELECT 1 FROM identity)"
_INDEX = "CREATE INDEX event_added ON event (added_ms)"
_UPGRADE = """INSERT INTO event
    SELECT place, user_of(body), event_id, now_ms, dated(body, now_ms), 0 FROM former, clock ORDER BY place"""


def prepare(db: sqlite3.Connection, path: Path, files: Sequence[str]) -> None:
    """Make the tables in the file at `path`, or upgrade them. `files` are the log's, whose modes an upgrade restricts.

    Raises `LogOpenError` for a file that is no log, which is left unchanged, and `sqlite3.Error`.
    """
    db.execute("BEGIN IMMEDIATE")
    if is_fresh(db, path):  # under the lock: another process may have made the log meanwhile
        _make(db)
        db.execute(_INDEX)
        db.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
    elif pragma(db, "user_version") in _FORMER:
        _upgrade(db, files)
    if pragma(db, "user_version") != FORMAT:
        db.execute(f"PRAGMA user_version = {FORMAT}")
    db.execute(_IDENTITY)
    db.execute(_IDENTIFY, (secrets.randbits(63),))
    db.execute("COMMIT")


def is_fresh(db: sqlite3.Connection, path: Path) -> bool:
    """Return whether the file is empty. Raises `LogOpenError` for the file of another program or version."""
    application, format_ = pragma(db, "application_id"), pragma(db, "user_version")
    if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0 and application == 0:
        return True
    if application != _APPLICATION_ID or format_ not in (FORMAT, *_FORMER):
        raise LogOpenError(
            str(path), f"a feedback log of format {FORMAT}", f"a database of kind {application}, format {format_}"
        )
    return False


def pragma(db: sqlite3.Connection, name: str) -> int:
    """Return a number that SQLite keeps of a file."""
    return int(db.execute(f"PRAGMA {name}").fetchone()[0])


def _make(db: sqlite3.Connection) -> None:
    db.execute(_TABLE)
    db.execute(_CLOCK)
    db.execute("INSERT INTO clock VALUES (?)", (int(time() * 1000),))


def _upgrade(db: sqlite3.Connection, files: Sequence[str]) -> None:
    """Write the table anew, which is the only way to change what is unique. When its events were accepted is not known: they
    are kept as if it were now, and those with later dates are dated 1970."""
    db.create_function("user_of", 1, _user_of, deterministic=True)
    db.create_function("dated", 2, _dated, deterministic=True)
    db.execute("ALTER TABLE event RENAME TO former")
    _make(db)
    db.execute(_UPGRADE)
    db.execute(_INDEX)
    db.execute("DROP TABLE former")
    for file in files:
        with suppress(OSError):  # former versions created them for everybody; they may be another user's
            os.chmod(file, OWNER_ONLY)


def _dated(body: Any, now_ms: int) -> Any:
    """Return a record whose event is not dated after now."""
    try:
        event = read_record(body)
    except ContractError:
        return body
    if event.impression_ms <= now_ms:
        return body
    return to_msgpack(LoggedEvent(**{**structs.asdict(event), "correction_ms": -event.impression_ms}))


def _user_of(body: object) -> int | None:
    """Return whose event a record is; None for one that cannot be read."""
    try:
        return read_record(body).user_id
    except ContractError:
        return None
