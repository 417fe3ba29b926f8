import csv
import gzip
import io
import logging
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.data.csv_chunks import Column, Kind, read_chunks
from pocketrank.cloud.data.schema import DataError

COLUMNS = {
    "id": Column(Kind.INTEGER, low=0),
    "flag": Column(Kind.LABEL),
    "count": Column(Kind.WHOLE, nullable=True),
    "day": Column(Kind.DAY, nullable=True),
    "name": Column(Kind.TEXT, nullable=True),
}
GOOD = b"1,0,2.0,2022-04-10,x\n"
HEADER = b"id,flag,count,day,name\n"


def read(folder: Path, text: bytes, *, name: str = "t.csv", chunk_bytes: int = 1 << 20) -> pl.DataFrame:
    file = folder / name
    file.write_bytes(text)
    return pl.concat(read_chunks(file, COLUMNS, chunk_bytes=chunk_bytes))


def refused(folder: Path, text: bytes, *, name: str = "t.csv", chunk_bytes: int = 1 << 20) -> DataError:
    with pytest.raises(DataError) as caught:
        read(folder, text, name=name, chunk_bytes=chunk_bytes)
    assert caught.value.file == str(folder / name)
    return caught.value


@given(
    rows=st.lists(
        st.tuples(
            st.integers(0, 2**63 - 1),
            st.booleans(),
            st.none() | st.integers(-(2**63), 2**63 - 1),
            st.none() | st.dates(),
            st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1),
        ),
        min_size=1,
    ),
    chunk_bytes=st.integers(1000, 2000),
    zipped=st.booleans(),
    before=st.sampled_from(["", " ", "\t"]),
    behind=st.sampled_from(["", " ", " \t "]),
)
def test_written_rows_are_read_with_any_chunk_size(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[tuple[object, ...]],
    chunk_bytes: int,
    zipped: bool,
    before: str,
    behind: str,
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for id_, flag, count, day, name in rows:
        padded = [f"{before}{'' if value is None else value}{behind}" for value in (id_, int(bool(flag)), count, day)]
        writer.writerow([*padded, name])
    content = text.getvalue().encode()
    folder = tmp_path_factory.mktemp("csv")
    name, content = ("t.csv.gz", gzip.compress(content)) if zipped else ("t.csv", content)
    assert read(folder, content, name=name, chunk_bytes=chunk_bytes).rows() == rows


@pytest.mark.parametrize("before", ["", " "])
@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("9007199254740993", 2**53 + 1),
        ("6946312345678901234", 6946312345678901234),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
        ("9007199254740991.0", 2**53 - 1),
        ("12.000 ", 12),
        ("12.", 12),
        ("1e+05", 100_000),
        ("1.5e1 ", 15),
        ("+007", 7),
        ('" 7 "', 7),
        ('""', None),
        (" ", None),
    ],
)
def test_whole_numbers_are_exact(tmp_path: Path, before: str, text: str, value: int | None) -> None:
    """Beside one another, whatever way the others of the chunk are written."""
    lines = [f"1,0,{other},,\n" for other in ("9007199254740993", "3.0", "", before + text if text[:1] != '"' else text)]
    assert read(tmp_path, HEADER + "".join(lines).encode())["count"].to_list() == [2**53 + 1, 3, None, value]


@pytest.mark.parametrize("text", ["1,0,,,x\n", '1,0,"","",x\n', '"1 ",0 ," "," ",x\n', "01,+0,,,x\n", '1,0,,,"x"\n'])
def test_one_field_means_the_same_in_any_spelling(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, HEADER + text.encode()).rows() == [(1, False, None, None, "x")]


def test_a_quoted_empty_text_is_empty(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER + b'1,0,,,""\n1,0,,,\n')["name"].to_list() == [None, None]


def test_chunks_end_between_lines(tmp_path: Path) -> None:
    rows = b"".join(b"%d,1,,,\n" % i for i in range(100))
    assert read(tmp_path, HEADER + rows, chunk_bytes=16)["id"].to_list() == list(range(100))


@pytest.mark.parametrize("text", [HEADER + GOOD[:-1], HEADER.replace(b"\n", b"\r\n") + GOOD.replace(b"\n", b"\r\n")])
def test_reads_files_without_last_line_break_and_with_carriage_returns(tmp_path: Path, text: bytes) -> None:
    assert read(tmp_path, text)["name"].to_list() == ["x"]


@pytest.mark.parametrize("chunk_bytes", [16, 1 << 20])
def test_empty_lines_are_no_rows(tmp_path: Path, chunk_bytes: int) -> None:
    text = HEADER + b"\n" + GOOD + b"\r\n \n" + GOOD + b"\n\n"
    assert read(tmp_path, text, chunk_bytes=chunk_bytes)["name"].to_list() == ["x", "x"]


def test_space_around_the_names_of_a_header_is_ignored(tmp_path: Path) -> None:
    assert read(tmp_path, HEADER.replace(b",", b' , "', 1).replace(b",count", b'",count') + GOOD)["name"].to_list() == ["x"]


@pytest.mark.parametrize(
    ("line", "column", "message"),
    [
        (b"x,0,,,\n", "id", "expected a 64-bit integer, got 'x'"),
        (b"1.5,0,,,\n", "id", "expected a 64-bit integer, got '1.5'"),
        (b"-3,0,,,\n", "id", "expected 0..9223372036854775807, got -3"),
        (b"99999999999999999999,0,,,\n", "id", "got 99999999999999999999"),
        (b"9223372036854775808,0,,,\n", "id", "expected 0..9223372036854775807, got 9223372036854775808"),
        (b"9223372036854775808 ,0,,,\n", "id", "expected 0..9223372036854775807, got 9223372036854775808"),
        (b",0,,,\n", "id", "got an empty field"),
        (b"1,2,,,\n", "flag", "expected 0 or 1, got '2'"),
        (b"1,yes,,,\n", "flag", "expected 0 or 1, got 'yes'"),
        (b"1,0,2.5,,\n", "count", "expected a whole number, got '2.5'"),
        (b"1,0,nan,,\n", "count", "expected a whole number, got 'nan'"),
        (b"1,0,1_0,,\n", "count", "expected a whole number, got '1_0'"),
        (b"1,0,9223372036854775808,,\n", "count", "9223372036854775807, got 9223372036854775808"),
        (b"1,0,-9223372036854775809,,\n", "count", "expected -9223372036854775808.."),
        (b"1,0,9007199254740993.0,,\n", "count", "expected digits alone beyond 9007199254740991"),
        (b"1,0,6.946312345678901e+18,,\n", "count", "expected digits alone beyond 9007199254740991"),
        (b"1,0,1e9999,,\n", "count", "expected digits alone beyond 9007199254740991"),
        (b"1,0,0.99999999999999999999,,\n", "count", "expected a whole number, got '0.99999999999999999999'"),
        (b"1,0,,2022-W15-1,\n", "day", "expected a date YYYY-MM-DD, got '2022-W15-1'"),
        (b"1,0,,2022-13-01,\n", "day", "expected a date YYYY-MM-DD, got '2022-13-01'"),
        (b"1,0,\n", None, "expected 5 fields, got 3"),
        (b"1,0,,,,\n", None, "expected 5 fields, got 6"),
        (b"1,0\n1,0,,,,,,\n", None, "expected 5 fields, got 2"),
        (b"\n\r\n1,0\n", None, "expected 5 fields, got 2"),
        (b"1,0,,,\xff\n", None, "expected CSV in UTF-8"),
        (b'1,0,,,"x\n', None, "expected CSV in UTF-8"),
    ],
)
@pytest.mark.parametrize("chunk_bytes", [32, 1 << 20])
def test_a_bad_row_is_named(tmp_path: Path, line: bytes, column: str | None, message: str, chunk_bytes: int) -> None:
    error = refused(tmp_path, HEADER + GOOD * 6 + line + GOOD * 3, chunk_bytes=chunk_bytes)
    assert (error.row, error.column) == (7, column)
    assert message in str(error)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "expected a header, got an empty file"),
        (HEADER, "expected at least one row"),
        (b"\xff\xfe\n", "expected a CSV header in UTF-8"),
        (b"id,flag,count,day,name,id\n" + GOOD, "expected each column once"),
        (b"id,count,day,name\n" + GOOD, "missing from the header; expected flag, got id, count, day, name"),
        (HEADER + b"1" * 500, "without a line break"),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, text: bytes, message: str) -> None:
    assert message in str(refused(tmp_path, text, chunk_bytes=100))


def test_the_row_of_a_line_that_is_too_long_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path, HEADER + GOOD * 6 + b"1" * 5000 + b",0,,,\n", chunk_bytes=100)
    assert (error.row, error.column) == (7, None)
    error = refused(tmp_path, HEADER + GOOD * 6 + b"1" * 5000 + b",0,,,\n")
    assert (error.row, error.column) == (7, "id")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv: cannot be read"):
        list(read_chunks(tmp_path / "none.csv", COLUMNS))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "plain"])
def test_damaged_gzip_is_rejected(tmp_path: Path, damage: str) -> None:
    packed = gzip.compress(HEADER + b"".join(b"%d,1,,,%d\n" % (i, i * i) for i in range(5000)))
    middle = len(packed) // 2
    text = {
        "truncated": packed[:middle],
        "flipped": packed[:middle] + bytes([packed[middle] ^ 255]) + packed[middle + 1 :],
        "plain": HEADER + GOOD,
    }[damage]
    refused(tmp_path, text, name="t.csv.gz")


def test_unknown_columns_are_ignored_and_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        frame = read(tmp_path, b"new,id,flag,count,day,name\nwhat,1,0,,,\n")
    assert frame.columns == list(COLUMNS)
    assert "unknown columns are ignored: new" in caplog.text


def test_optional_and_unused_columns_and_bounds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "t.csv"
    file.write_bytes(b"b,known\n7,x\n")
    columns = {"a": Column(Kind.TEXT, optional=True), "b": Column(Kind.INTEGER, low=0, high=9)}
    with caplog.at_level(logging.WARNING):
        (frame,) = read_chunks(file, columns, unused=frozenset({"known"}))
    assert frame.schema == {"b": pl.Int32}
    assert not caplog.records


def test_progress_counts_bytes_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "t.csv.gz"
    file.write_bytes(gzip.compress(HEADER + GOOD * 1000))
    seen: list[int] = []
    list(read_chunks(file, COLUMNS, chunk_bytes=500, on_bytes=seen.append))
    assert seen == sorted(seen)
    assert seen[-1] == file.stat().st_size
