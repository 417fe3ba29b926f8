import sqlite3
from pathlib import Path

import pytest

from benchmarks.reliability.full_disk import full_disk
from pocketrank.device.offline.database import Database

SCHEMA = ("CREATE TABLE thing (name TEXT PRIMARY KEY, size INTEGER NOT NULL) STRICT",)
PUT = "REPLACE INTO thing VALUES (?, ?)"


def opened(folder: Path) -> Database:
    return Database(folder / "things.db", SCHEMA, wal_bytes=1 << 20)


def test_all_of_a_transaction_or_none(tmp_path: Path) -> None:
    database = opened(tmp_path)
    assert database.write(PUT, ("a", 1))
    assert not database.write_all([(PUT, [("a", 2), ("b", None)])])
    assert database.write_all([(PUT, [("c", 3)]), ("DELETE FROM thing WHERE name = ?", [("b",)])])
    assert database.read("SELECT * FROM thing ORDER BY name") == [("a", 1), ("c", 3)]
    assert database.failed == 1
    database.close()


def test_close_unlocks_the_file_even_after_a_failed_write(tmp_path: Path) -> None:
    database = opened(tmp_path)
    with full_disk():
        assert not database.write(PUT, ("a", 1))
    database.close()
    opened(tmp_path).close()


@pytest.mark.parametrize("change", ["DROP TABLE thing", "CREATE TABLE other (x)"])
def test_other_tables_than_ours_are_damage(tmp_path: Path, change: str) -> None:
    opened(tmp_path).close()
    db = sqlite3.connect(tmp_path / "things.db")
    db.execute(change)
    db.close()
    database = opened(tmp_path)
    assert database.damaged == 1
    assert database.write(PUT, ("a", 1))
    database.close()


def test_a_closed_database_writes_and_reads_nothing(tmp_path: Path) -> None:
    database = opened(tmp_path)
    database.close()
    assert not database.write(PUT, ("a", 1))
    assert not database.write_all([(PUT, [("a", 1)])])
    assert database.read("SELECT * FROM thing") == []
    assert not database.tidy()
    assert database.failed == 2
