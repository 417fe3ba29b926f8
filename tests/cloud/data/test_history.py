from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.data.history import load_history, mark_subsequence
from pocketrank.cloud.data.schema import HISTORY, DataError
from tests.cloud.data.folders import write_sequences
from tests.data import kuairand_folder

Ids = st.lists(st.integers(0, 5), max_size=20)


@given(whole=st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=20))
def test_a_subsequence_is_matched_completely(whole: list[tuple[int, bool]]) -> None:
    ids = [value for value, _ in whole]
    part = [value for value, chosen in whole if chosen]
    marks, left = mark_subsequence(ids, part)
    assert left == 0
    assert [value for value, mark in zip(ids, marks, strict=True) if mark] == part


@given(ids=st.lists(st.integers(), unique=True, max_size=20), data=st.data())
def test_unique_ids_are_matched_in_their_places(ids: list[int], data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.booleans(), min_size=len(ids), max_size=len(ids)))
    part = [value for value, mark in zip(ids, chosen, strict=True) if mark]
    assert mark_subsequence(ids, part) == (chosen, 0)


@given(whole=Ids, part=Ids)
def test_the_longest_end_is_matched(whole: list[int], part: list[int]) -> None:
    marks, left = mark_subsequence(whole, part)
    assert [value for value, mark in zip(whole, marks, strict=True) if mark] == part[left:]

    def within(end: list[int]) -> bool:
        rest = iter(whole)
        return all(value in rest for value in end)

    assert left == 0 or not within(part[left - 1 :])


def test_reads_labels(tmp_path: Path) -> None:
    table = load_history(write_sequences(tmp_path / "s", [(2, [5, 6, 7], [5, 7], [6]), (1, [9], [], [])]))
    assert table.schema.equals(HISTORY)
    assert table.to_pylist() == [
        {"user_id": 1, "item_id": [9], "long_view": [False], "like": [False]},
        {"user_id": 2, "item_id": [5, 6, 7], "long_view": [True, False, True], "like": [False, True, False]},
    ]


def test_labels_may_begin_before_the_impressions(tmp_path: Path) -> None:
    file = write_sequences(tmp_path / "s", [(1, [5, 6], [1, 2, 6], [])], history_len=4)
    assert load_history(file)["long_view"].to_pylist() == [[False, True]]


@pytest.mark.parametrize(
    ("rows", "history_len", "row", "column"),
    [
        ([(1, [5], [5], []), (2, [5, 6], [6, 5], [])], None, 2, "long_watch_seq"),
        ([(1, [5], [], [4])], None, 1, "like_seq"),
        ([(1, [5, 6], [1, 2, 3, 6], [])], 4, 1, "long_watch_seq"),
        ([(1, [5], [], []), (1, [6], [], [])], None, 2, "user_id"),
        ([(1, [5], [], []), (2, [5, None], [], [])], None, 2, "watch_seq"),
        ([(1, [5], [], []), (2, [5], None, [])], None, 2, "long_watch_seq"),
    ],
)
def test_a_bad_row_is_named(
    tmp_path: Path, rows: list[tuple[int, list[int], list[int], list[int]]], history_len: int | None, row: int, column: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_history(write_sequences(tmp_path / "s", rows, history_len))
    assert (caught.value.file, caught.value.row, caught.value.column) == (str(tmp_path / "s"), row, column)


def test_a_foreign_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("user_id\n1\n")
    with pytest.raises(DataError, match="expected a Parquet file"):
        load_history(tmp_path / "text")
    pl.DataFrame({"user_id": ["1"]}).write_parquet(tmp_path / "other")
    with pytest.raises(DataError, match="column `user_id`: expected Int64, got String"):
        load_history(tmp_path / "other")


def test_the_real_sequences_fit_together() -> None:
    table = load_history(kuairand_folder() / "user_sequences.parquet")
    assert len(table) == 26_469
    assert max(map(len, table["item_id"].to_pylist())) == 50
