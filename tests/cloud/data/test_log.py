from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pocketrank.cloud.data.log import open_log
from pocketrank.cloud.data.schema import DataError, ImpressionLog
from tests.cloud.data.folders import NOON
from tests.cloud.data.logs import small_log


def log() -> ImpressionLog:
    times = [NOON + i for i in range(1000)]
    return small_log(times, click=[[True, None, False][i % 3] for i in range(1000)], volume=[None, 0.5] * 500)


@pytest.mark.parametrize("simulated", [False, True])
def test_a_saved_log_is_opened_unchanged(tmp_path: Path, simulated: bool) -> None:
    saved = replace(log(), name="a name, ünusual", simulated=simulated)
    saved.save(tmp_path / "new" / "folder")
    opened = open_log(tmp_path / "new" / "folder")
    assert (opened.name, opened.simulated) == (saved.name, simulated)
    for name in ImpressionLog.TABLES:
        assert getattr(opened, name).schema.equals(getattr(saved, name).schema, check_metadata=True)
        assert getattr(opened, name).equals(getattr(saved, name))


def test_a_log_is_replaced_completely(tmp_path: Path) -> None:
    log().save(tmp_path)
    other = small_log([NOON], simulated=True)
    other.save(tmp_path)
    assert open_log(tmp_path) == other
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(f"{name}.parquet" for name in ImpressionLog.TABLES)


def test_an_interrupted_save_is_rejected(tmp_path: Path) -> None:
    log().save(tmp_path)
    (tmp_path / "users.parquet").unlink()
    (tmp_path / "users.parquet").mkdir()
    with pytest.raises(OSError, match="directory"):
        small_log([NOON]).save(tmp_path)
    with pytest.raises(DataError, match=r"impressions\.parquet: expected a table of a saved log"):
        open_log(tmp_path)


@pytest.mark.parametrize("name", ImpressionLog.TABLES)
def test_missing_and_truncated_files_are_named(tmp_path: Path, name: str) -> None:
    log().save(tmp_path)
    file = tmp_path / f"{name}.parquet"
    content = file.read_bytes()
    for size in (0, 3, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        with pytest.raises(DataError, match="expected a Parquet file") as caught:
            open_log(tmp_path)
        assert caught.value.file == str(file)
    file.unlink()
    with pytest.raises(DataError, match="got no such file"):
        open_log(tmp_path)


def test_a_flipped_byte_of_data_is_found(tmp_path: Path) -> None:
    log().save(tmp_path)
    file = tmp_path / "impressions.parquet"
    content = bytearray(file.read_bytes())
    column = pq.ParquetFile(file).metadata.row_group(0).column(2)
    content[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"impressions\.parquet: expected a Parquet file"):
        open_log(tmp_path)


@pytest.mark.parametrize(
    ("mark", "message"),
    [
        (None, "without its mark"),
        (b"{", "expected the mark of a saved log"),
        (b'{"format": 1, "name": 5, "simulated": true}', "Expected `str`, got `int`"),
        (b'{"format": 2, "name": "x", "simulated": true}', "expected a log of format 1, got 2"),
    ],
)
def test_a_foreign_log_is_rejected(tmp_path: Path, mark: bytes | None, message: str) -> None:
    log().save(tmp_path)
    table = log().impressions.replace_schema_metadata({"pocketrank": mark} if mark else None)
    pq.write_table(table, tmp_path / "impressions.parquet")
    with pytest.raises(DataError, match=message):
        open_log(tmp_path)


def test_an_invalid_log_is_rejected(tmp_path: Path) -> None:
    small_log([NOON + 1, NOON]).save(tmp_path)
    with pytest.raises(DataError, match="expected rows sorted") as caught:
        open_log(tmp_path)
    error = caught.value
    assert (error.file, error.row, error.column) == (str(tmp_path / "impressions.parquet"), 2, "impression_ms")
