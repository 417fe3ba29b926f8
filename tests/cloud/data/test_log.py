from dataclasses import replace
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketrank.cloud.data.log import LogWriter, StoredLog, open_log, save_log
from pocketrank.cloud.data.schema import IDS, IMPRESSIONS, DataError, ImpressionLog
from tests.cloud.data.folders import NOON
from tests.cloud.data.logs import small_log

DAY_MS = 86_400_000


def log() -> ImpressionLog:
    times = [NOON + i * DAY_MS // 400 for i in range(1000)]
    return small_log(times, click=[[True, None, False][i % 3] for i in range(1000)], volume=[None, 0.5] * 500)


def with_own() -> ImpressionLog:
    """A log with a label, a score and ids of its own."""
    whole = log()
    impressions = whole.impressions.append_column("purchase", pa.array([True, None] * 500))
    impressions = impressions.append_column("pxtr_like", pa.array([0.25, None] * 500, pa.float32()))
    ids = pa.Table.from_pydict({"kind": ["user_id"] * 2, "code": [2**63 - 1, 1], "text": ["a", "b"]}, schema=IDS)
    return replace(whole, impressions=impressions, ids=ids, actions=("purchase",))


def writer(folder: Path, like: ImpressionLog) -> LogWriter:
    return LogWriter(folder, name=like.name, simulated=like.simulated, time_zone=like.time_zone, tasks=like.tasks)


@pytest.mark.parametrize("saved", [log(), with_own(), replace(log(), name="a name, ünusual", simulated=True)])
def test_a_saved_log_is_opened_unchanged(tmp_path: Path, saved: ImpressionLog) -> None:
    save_log(saved, tmp_path / "new" / "folder")
    opened = open_log(tmp_path / "new" / "folder")
    assert opened.load() == saved
    assert (opened.rows, opened.labels, opened.scores, opened.actions) == (1000, saved.labels, saved.scores, saved.actions)
    assert opened.digest() == saved.digest()
    assert [file.name for file in tmp_path.iterdir()] == ["new"]


def test_ids_of_some_kinds_are_read_alone(tmp_path: Path) -> None:
    texts = {"kind": ["item_id", "session_id", "session_id", "user_id"], "code": [7, 1, 2, 5], "text": ["i", "s", "t", "u"]}
    saved = replace(log(), ids=pa.Table.from_pydict(texts, schema=IDS))
    stored = save_log(saved, tmp_path / "log")
    for one in (saved, stored):
        assert one.ids_of(["user_id", "item_id"])["text"].to_pylist() == ["i", "u"]
        assert one.ids_of(["author_id"]) == IDS.empty_table()


def test_a_log_that_is_written_in_pieces_is_the_same(tmp_path: Path) -> None:
    whole = log()
    with writer(tmp_path / "log", whole) as out:
        for start in range(0, 1000, 7):
            out.write(whole.impressions.slice(start, 7))
        stored = out.finish(whole.items, whole.users, history=whole.history)
    assert stored.load() == whole
    assert stored.digest() == whole.digest()


def test_columns_without_values_are_in_no_file(tmp_path: Path) -> None:
    stored = save_log(with_own(), tmp_path / "log")
    (file,) = (tmp_path / "log" / "impressions").iterdir()
    assert set(IMPRESSIONS.names) - set(pq.read_schema(file).names) >= {"session_id", "ended", "like", "muted"}
    assert set(pq.read_schema(file).names) >= {"click", "volume", "purchase", "pxtr_like"}
    assert stored.schema == with_own().impressions.schema
    (part,) = stored.parts(columns=("ended", "click", "session_id"))
    assert part == with_own().impressions.select(["ended", "click", "session_id"])
    (part,) = stored.parts(columns=("session_id",))
    assert part == with_own().impressions.select(["session_id"])


def test_a_value_in_an_absent_column_is_refused(tmp_path: Path) -> None:
    about = {"name": "small", "simulated": False, "time_zone": "UTC", "tasks": {"like": 1.0}}
    with LogWriter(tmp_path / "log", **about, absent=["click"]) as out, pytest.raises(DataError, match="column `click`"):
        out.write(log().impressions)


def test_a_log_of_format_3_is_still_read(tmp_path: Path) -> None:
    """Its files have all columns, and other encodings."""
    stored = save_log(with_own(), tmp_path / "log")
    (file,) = (tmp_path / "log" / "impressions").iterdir()
    pq.write_table(with_own().impressions, file, write_page_checksum=True)
    record = tmp_path / "log" / "log.json"
    record.write_bytes(msgspec.json.encode(msgspec.json.decode(record.read_bytes()) | {"format": 3}))
    opened = open_log(tmp_path / "log")
    assert opened.load() == with_own()
    assert opened.digest() == stored.digest()


def test_an_error_of_the_thread_that_writes_is_raised(tmp_path: Path) -> None:
    with writer(tmp_path / "log", log()) as out:
        (part,) = tmp_path.iterdir()
        (part / "impressions").rmdir()
        out.write(log().impressions)
        with pytest.raises(FileNotFoundError):
            out.finish(log().items, log().users)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("zone", "step_ms"), [("Asia/Kathmandu", 1), ("America/St_Johns", 977), ("Australia/Lord_Howe", 61_001)]
)
def test_days_begin_at_midnight_of_the_zone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, zone: str, step_ms: int) -> None:
    """Which is at a quarter of an hour in UTC, and an hour or half an hour earlier in summer."""
    midnight = datetime(2023, 10, 1, tzinfo=ZoneInfo(zone))
    times = [int(midnight.timestamp() * 1000) + step_ms * i for i in range(-500, 500)]
    monkeypatch.setattr("pocketrank.cloud.data.log._PART_ROWS", 300)
    stored = save_log(small_log(times, time_zone=zone), tmp_path / "log")
    assert stored.record.files == ("2023-09-30.parquet", "2023-10-01.parquet")
    first = pq.read_table(tmp_path / "log" / "impressions" / stored.record.files[1])["impression_ms"][0].as_py()
    assert first == int(midnight.timestamp() * 1000)


def test_each_file_holds_whole_days(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pocketrank.cloud.data.log._PART_ROWS", 300)
    stored = save_log(log(), tmp_path / "log")
    assert len(stored.record.files) > 1
    for name in stored.record.files:
        ms = pq.read_table(tmp_path / "log" / "impressions" / name)["impression_ms"].to_numpy()
        day = (ms + 8 * 3_600_000) // DAY_MS
        assert str(np.datetime64(int(day[0]), "D")) == name.removesuffix(".parquet")
    days = [set((part["impression_ms"].to_numpy() + 8 * 3_600_000) // DAY_MS) for part in stored.parts()]
    assert max(map(len, stored.parts())) <= 300
    assert set.union(*days) == set(range(min(days[0]), max(days[-1]) + 1))
    assert stored.load() == log()


def test_a_log_is_replaced_completely(tmp_path: Path) -> None:
    save_log(log(), tmp_path / "log")
    other = small_log([NOON], simulated=True)
    save_log(other, tmp_path / "log")
    assert open_log(tmp_path / "log").load() == other
    assert [file.name for file in tmp_path.iterdir()] == ["log"]
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    with pytest.raises(DataError, match="expected an empty folder or a log"):
        save_log(other, tmp_path / "precious")
    assert (tmp_path / "precious" / "file").read_text() == "x"


def test_an_interrupted_save_changes_nothing(tmp_path: Path) -> None:
    save_log(log(), tmp_path / "log")
    with writer(tmp_path / "log", log()) as out:
        out.write(log().impressions.slice(500))
        with pytest.raises(DataError, match="expected rows sorted") as caught:
            out.write(log().impressions.slice(0, 500))
    assert (caught.value.row, caught.value.column) == (501, "impression_ms")
    with writer(tmp_path / "log", log()) as out, pytest.raises(DataError, match="got none"):
        out.finish(log().items, log().users)
    assert open_log(tmp_path / "log").load() == log()
    assert [file.name for file in tmp_path.iterdir()] == ["log"]


def files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.parquet"))


def test_missing_and_truncated_files_are_named(tmp_path: Path) -> None:
    save_log(log(), tmp_path / "log")
    for file in files(tmp_path / "log"):
        content = file.read_bytes()
        for size in (0, 3, len(content) // 2, len(content) - 1):
            file.write_bytes(content[:size])
            with pytest.raises(DataError, match="expected a Parquet file") as caught:
                open_log(tmp_path / "log")
            assert caught.value.file == str(file)
        file.unlink()
        with pytest.raises(DataError, match="got no such file"):
            open_log(tmp_path / "log")
        file.write_bytes(content)


def test_a_flipped_byte_of_data_is_found(tmp_path: Path) -> None:
    stored: StoredLog = save_log(log(), tmp_path / "log")
    file = tmp_path / "log" / "impressions" / stored.record.files[0]
    content = bytearray(file.read_bytes())
    column = pq.ParquetFile(file).metadata.row_group(0).column(2)
    content[column.data_page_offset + column.total_compressed_size - 1] ^= 1  # after the header of its page
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"\.parquet: expected a Parquet file"):
        open_log(tmp_path / "log").load()


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (b"{", "expected the record of a log"),
        (b'{"format": 4, "name": 5}', "Expected `str`, got `int`"),
        (b"", "expected the record of a log"),
    ],
)
def test_a_foreign_record_is_rejected(tmp_path: Path, record: bytes, message: str) -> None:
    save_log(log(), tmp_path / "log")
    (tmp_path / "log" / "log.json").write_bytes(record)
    with pytest.raises(DataError, match=message):
        open_log(tmp_path / "log")


def test_a_log_of_another_format_or_length_is_rejected(tmp_path: Path) -> None:
    save_log(log(), tmp_path / "log")
    path = tmp_path / "log" / "log.json"
    record = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(record | {"rows": 999}))
    with pytest.raises(DataError, match="expected 999 impressions"):
        open_log(tmp_path / "log")
    path.write_bytes(msgspec.json.encode(record | {"format": 2}))
    with pytest.raises(DataError, match="expected a log of format 4, got 2; import it again"):
        open_log(tmp_path / "log")
    path.unlink()
    with pytest.raises(DataError, match="`pocketrank data import` makes a log"):
        open_log(tmp_path / "log")


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (replace(with_own(), actions=("refund",)), "labels of the actions refund"),
        (replace(with_own(), ids=pa.concat_tables([with_own().ids] * 2)), "expected unique codes and texts, got"),
        (replace(log(), items=log().items.slice(1)), "expected an id of `items`, got 10"),
    ],
)
def test_an_invalid_log_is_not_written(tmp_path: Path, broken: ImpressionLog, message: str) -> None:
    with pytest.raises(DataError, match=message):
        save_log(broken, tmp_path / "log")
    assert not list(tmp_path.iterdir())


def test_a_score_out_of_range_is_named(tmp_path: Path) -> None:
    scored = with_own()
    wrong = scored.impressions.set_column(
        scored.impressions.schema.get_field_index("pxtr_like"), "pxtr_like", pa.array([0.5] * 999 + [1.5], pa.float32())
    )
    with pytest.raises(DataError, match=r"row 1000, column `pxtr_like`: expected 0\.\.1, got 1\.5"):
        save_log(replace(scored, impressions=wrong), tmp_path / "log")
