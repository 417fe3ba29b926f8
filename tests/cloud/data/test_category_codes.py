"""Codes of categories from one import to the next."""

from pathlib import Path

import pyarrow.compute as pc
import pytest

from pocketrank.cloud.data.category_codes import CategoryCodes, codes_of, codes_of_log, save_codes
from pocketrank.cloud.data.import_log import import_log
from pocketrank.cloud.data.log import StoredLog
from pocketrank.cloud.data.schema import DataError

FILE = """
name = "shop"
time_zone = "UTC"
time_unit = "s"
[tables]
views = "views.csv"
goods = "goods.csv"
people = "people.csv"
[impressions]
sql = "SELECT * FROM views"
[items]
sql = "SELECT item_id, kind AS category, string_split(colours, '|') AS colours FROM goods"
[users]
sql = "SELECT user_id, town FROM people"
[labels]
like = "liked"
[tasks]
like = 1.0
"""


def write(folder: Path, goods: str, people: str = "1,Rome|2,Oslo") -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "views.csv").write_text("user_id,item_id,time,liked\n1,1,1700000000,1\n2,2,1700000001,0\n")
    (folder / "goods.csv").write_text("item_id,kind,colours\n" + goods + "\n")
    (folder / "people.csv").write_text("user_id,town\n" + people.replace("|", "\n") + "\n")
    (folder / "shop.toml").write_text(FILE)
    return folder / "shop.toml"


@pytest.fixture
def first(tmp_path: Path) -> StoredLog:
    return import_log(write(tmp_path, "1,hat,red|blue\n2,mug,red"), tmp_path / "log")


def later(folder: Path) -> Path:
    """Data file of the next day: `blue` and `mug` are gone, and there are texts that sort before and after the others."""
    return write(folder, "1,hat,amber|red\n2,cap,white|red", "1,Rome|2,Bonn")


def codes(log: StoredLog, kind: str) -> dict[str, int]:
    return {row["text"]: row["code"] for row in log.ids.to_pylist() if row["kind"] == kind}


KNOWN = {"category": {"hat": 1, "mug": 2}, "items.colours": {"blue": 1, "red": 2}, "users.town": {"Oslo": 1, "Rome": 2}}
NEW = {"category": {"cap": 3}, "items.colours": {"amber": 3, "white": 4}, "users.town": {"Bonn": 3}}
SHIFTED = {
    "category": {"cap": 1, "hat": 2},
    "items.colours": {"amber": 1, "red": 2, "white": 3},
    "users.town": {"Bonn": 1, "Rome": 2},
}


def test_known_texts_keep_their_codes_and_new_ones_get_the_next(first: StoredLog, tmp_path: Path) -> None:
    assert {kind: codes(first, kind) for kind in KNOWN} == KNOWN
    second = import_log(later(tmp_path), tmp_path / "log")
    assert {kind: codes(second, kind) for kind in KNOWN} == {kind: KNOWN[kind] | NEW[kind] for kind in KNOWN}
    assert second.items["category"].to_pylist() == [1, 3]
    assert second.items["categories"].to_pylist() == [[3, 2], [4, 2]]
    assert second.users["categories"].to_pylist() == [[2], [3]]
    assert second.numbering == first.numbering != ""
    assert second.digest() != first.digest()
    third = import_log(write(tmp_path, "1,mug,blue\n2,mug,blue"), tmp_path / "log")  # which were gone for a while
    assert third.items["category"].to_pylist() == [2, 2]
    assert third.items["categories"].to_pylist() == [[1], [1]]
    assert codes(third, "items.colours") == codes(second, "items.colours")


def test_codes_are_those_of_another_log_where_it_is_named(first: StoredLog, tmp_path: Path) -> None:
    file, other = later(tmp_path), tmp_path / "other"
    alone = import_log(file, other)
    assert {kind: codes(alone, kind) for kind in KNOWN} == SHIFTED
    assert alone.numbering != first.numbering
    continued = import_log(file, other, codes_from=first.folder)  # of the same files, but not of these codes
    assert codes(continued, "category") == KNOWN["category"] | NEW["category"]
    assert continued.numbering == first.numbering
    written = (other / "log.json").stat().st_mtime_ns
    for source in (first.folder, None):
        assert import_log(file, other, codes_from=source).digest() == continued.digest()
    assert (other / "log.json").stat().st_mtime_ns == written
    with pytest.raises(DataError, match=r"nowhere: expected a log, or a run with published/categories\.json, got neither"):
        import_log(file, other, codes_from=tmp_path / "nowhere")


def test_a_log_that_may_not_be_replaced_keeps_its_codes(first: StoredLog, tmp_path: Path) -> None:
    file, other = later(tmp_path), tmp_path / "other"
    alone = import_log(file, other)
    assert import_log(file, other, codes_from=first.folder, replace=False).digest() == alone.digest()


def test_a_log_of_another_name_is_not_continued(first: StoredLog, tmp_path: Path) -> None:
    file = later(tmp_path)
    file.write_text(file.read_text().replace('"shop"', '"store"'))
    assert {kind: codes(import_log(file, first.folder), kind) for kind in KNOWN} == SHIFTED


def test_a_column_keeps_its_codes_when_it_becomes_a_list_and_while_it_is_away(first: StoredLog, tmp_path: Path) -> None:
    file = write(tmp_path, "1,hat,amber|red\n2,mug,blue")
    text = file.read_text()
    file.write_text(text.replace("string_split(colours, '|') AS colours", "split_part(colours, '|', 2) AS colours"))
    single = import_log(file, first.folder)
    assert (single.item_categories, single.items["categories"].to_pylist()) == (("colours",), [[2], [3]])  # 3 is no text
    file.write_text(text.replace(", string_split(colours, '|') AS colours", ""))
    assert import_log(file, first.folder).item_categories == ()
    file.write_text(text)
    several = import_log(file, first.folder)
    assert several.items["categories"].to_pylist() == [[4, 2], [1, 0]]
    assert several.numbering == first.numbering


def test_numbers_that_were_codes_themselves_are_another_numbering(tmp_path: Path) -> None:
    numbers = import_log(write(tmp_path, "1,7,red\n2,5,red"), tmp_path / "log")
    assert numbers.items["category"].to_pylist() == [7, 5]
    more = import_log(write(tmp_path, "1,7,red\n2,9,red"), tmp_path / "log")
    assert (more.items["category"].to_pylist(), more.numbering) == ([7, 9], numbers.numbering)
    texts = import_log(write(tmp_path, "1,7,red\n2,hat,red"), tmp_path / "log")
    assert texts.items["category"].to_pylist() == [1, 2]
    assert texts.numbering not in ("", numbers.numbering)
    again = import_log(write(tmp_path, "1,7,red\n2,8,red"), tmp_path / "log")
    assert (again.items["category"].to_pylist(), again.numbering) == ([1, 3], texts.numbering)


def test_a_run_keeps_the_codes_when_its_log_is_gone(first: StoredLog, tmp_path: Path) -> None:
    run = tmp_path / "run"
    (run / "published").mkdir(parents=True)
    save_codes(codes_of_log(first), run / "published")
    assert _plain(codes_of(run)) == _plain(codes_of(first.folder))
    assert codes(import_log(later(tmp_path), tmp_path / "other", codes_from=run), "items.colours")["red"] == 2
    (run / "published" / "categories.json").write_bytes(b"{")
    with pytest.raises(DataError, match=r"categories\.json: expected codes of categories, got: "):
        codes_of(run)
    (run / "published" / "categories.json").unlink()
    first.folder.rename(run / "log")
    assert codes_of(run).numbering == first.numbering


def _plain(found: CategoryCodes) -> tuple[list[tuple[str, int, str]], str]:
    assert not pc.any(pc.match_substring(found.ids["kind"], "_id")).as_py()
    return sorted(tuple(row.values()) for row in found.ids.to_pylist()), found.numbering
