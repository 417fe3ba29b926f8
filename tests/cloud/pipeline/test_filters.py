"""Which items the filters let through: one rule for items that an index finds and for those of a fixed order."""

import os
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any

import msgspec
import numpy as np
import pytest

from pocketrank.cloud.pipeline.filters import AllowedOrder, Filters, FiltersConfig
from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.vectors.exact import ExactIndex
from pocketrank.cloud.vectors.index import AGE_UNKNOWN, NONE
from pocketrank.device.contract import id_code
from tests.cloud.id_dictionaries import small_run_with_texts
from tests.cloud.small_published import small_run

_HOUR_MS = 3_600_000
_NEVER, _ALWAYS = 1e9, -1.0


@pytest.fixture(scope="module", params=["category", "other"])
def catalogue(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """Each item was uploaded an hour before the one in front of it; the age of every seventh is unknown."""
    run = small_run(tmp_path_factory.mktemp("run"))
    hours = np.arange(len(run.published.item_id))
    uploads = np.where(hours % 7 == 0, AGE_UNKNOWN, int(time() * 1000) - hours * _HOUR_MS)
    record = msgspec.structs.replace(run.record, category_names=(request.param, "author"))
    return Catalogue(replace(run.published, item_upload_ms=uploads), record)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"categories": ()},
        {"categories": (0, 1, 2)},
        {"categories_not": (1, 2)},
        {"authors": (101, 102, 104)},
        {"authors_not": (101,), "categories_not": (3,)},
        {"age_max_days": 1.5},
        {"age_max_days": 1.5, "categories": (0, 1, 2, 3)},
    ],
)
def test_popular_items_and_an_index_pass_one_rule(catalogue: Catalogue, config: dict[str, Any]) -> None:
    filters, items = Filters(FiltersConfig(**config), catalogue, Path()), np.arange(1, len(catalogue))
    index = ExactIndex()
    index.upsert(items, np.ones((len(items), 2)), catalogue.attributes.take(items))
    found = index.search(np.ones(2, np.float32), len(items), where=filters.where).ids
    popular = AllowedOrder(filters, lambda: catalogue.by_popularity)(NONE, len(items))
    assert sorted(found) == sorted(popular) == np.flatnonzero(filters.allowed).tolist()


def test_an_item_of_unknown_age_does_not_pass_a_filter_by_age(catalogue: Catalogue) -> None:
    filters = Filters(FiltersConfig(age_max_days=1.0), catalogue, Path())
    ages = catalogue.upload_ms[filters.allowed]
    assert len(ages) in range(18, 23), "of a day's 24, those whose age is known"
    assert AGE_UNKNOWN not in ages


def test_an_item_passes_a_filter_by_age_until_the_hour_in_which_it_becomes_too_old(
    catalogue: Catalogue, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = int(time()) // 3600 * 3600
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.time", lambda: float(now))
    filters = Filters(FiltersConfig(age_max_days=1.0), catalogue, Path())
    before, where = filters.allowed, filters.where
    assert where.created_from_ms == now * 1000 - 24 * _HOUR_MS
    now += 3599
    assert filters.allowed is before, "the filter moves once an hour"
    assert filters.where is where
    now += 1
    assert filters.where.created_from_ms == (where.created_from_ms or 0) + _HOUR_MS
    oldest = catalogue.upload_ms < (filters.where.created_from_ms or 0)
    assert filters.allowed.tolist() == (before & ~oldest).tolist()


@pytest.fixture
def removed(catalogue: Catalogue, tmp_path: Path) -> Path:
    path = tmp_path / "removed.txt"
    path.write_text(f"{catalogue.item_id[3]}\n{catalogue.item_id[9]}\n77\n")
    return path


def watching(path: Path, catalogue: Catalogue) -> Filters:
    return Filters(FiltersConfig(removed=path.name), catalogue, path.parent)


def blocked(filters: Filters) -> list[int]:
    """Positions that are not allowed, row 0 aside; the filter holds them apart as removed as well."""
    positions = np.flatnonzero(~filters.allowed)[1:].tolist()
    assert [at for at in filters.removed.tolist() if at] == positions
    return positions  # type: ignore[no-any-return]


def test_removed_items_are_allowed_again_when_the_file_no_longer_names_them(
    catalogue: Catalogue, removed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.CHECK_S", _ALWAYS)
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.SETTLE_S", _ALWAYS)
    filters = watching(removed, catalogue)
    popular = AllowedOrder(filters, lambda: catalogue.by_popularity)
    assert blocked(filters) == [3, 9]
    assert set(popular(NONE, 60)) == {*range(1, 61)} - {3, 9}
    removed.write_text(f"{catalogue.item_id[5]}\n")
    assert blocked(filters) == [5]
    assert set(popular(NONE, 60)) == {*range(1, 61)} - {5}


@pytest.mark.parametrize("how", ["written", "replaced"])
def test_a_file_of_the_same_size_is_read_again(
    catalogue: Catalogue, removed: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.CHECK_S", _ALWAYS)
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.SETTLE_S", _ALWAYS)
    filters = watching(removed, catalogue)
    before = os.stat(removed)
    text = removed.read_text().replace(str(catalogue.item_id[3]), str(catalogue.item_id[4]))
    if how == "written":
        removed.write_text(text)
        os.utime(removed, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    else:  # with the old time, as `cp -p` and `mv` leave it
        other = removed.with_name("other.txt")
        other.write_text(text)
        os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
        other.replace(removed)
    assert os.stat(removed).st_size == before.st_size
    assert blocked(filters) == [4, 9]


def test_a_file_that_did_not_change_costs_nothing_but_a_look(
    catalogue: Catalogue, removed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.CHECK_S", _ALWAYS)
    filters = watching(removed, catalogue)
    mask, positions = filters.allowed, filters.removed
    assert filters.allowed is mask
    assert filters.removed is positions


def test_the_file_is_not_looked_at_again_before_its_time(
    catalogue: Catalogue, removed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.CHECK_S", _NEVER)
    filters = watching(removed, catalogue)
    removed.write_text("")
    assert blocked(filters) == [3, 9]


@pytest.mark.parametrize(
    ("data", "wrong"),
    {
        "a mark of the encoding and CRLF": (b"\xef\xbb\xbf%d\r\n%d\r\n", 0),
        "UTF-16, as an editor's Unicode": ("\ufeff%d\r\n%d\r\n", 0),
        "two files put together": (b"\xef\xbb\xbf%d\n\xef\xbb\xbf%d\n", 0),
        "comments and empty lines": (b"# order 12\n\n%d # by mail\n \t\n%d", 0),
        "old line ends and no last one": (b"%d\r%d", 0),
        "several on a line": (b"%d\t%d\n", 0),
        "beyond 64 bits": (b"18446744073709551615\n%d\n%d\n", 1),
        "beyond 63 bits": (b"%d\n9223372036854775808\n%d\n", 1),
        "the largest id": (b"%d\n9223372036854775807\n-5\n%d\n", 0),
        "thousands of digits": (b"%d\n" + b"9" * 5000 + b"\n%d\n", 1),
        "a head and a number of a spreadsheet": (b"item_id\n%d\n7.0E+05\n%d\n", 2),
        "separators and quotes": (b'[12, %d]\n"13"; "%d"\n', 0),
        "floats and leading zeros": (b"%d.0\n" + b"0" * 30 + b"%d\n", 0),
        "reasons behind": (b"item_id,reason\n%d,copyright\n%d\tspam of item 3\n", 3),
        "marks that nobody sees": ("\u200b%d\n%d\u200b\n", 0),
        "bytes of no text": (b"%d\n\xff\xfe\x00\n\x00\n%d\n", 2),
        "digits that are none of ASCII": ("%d\n\u0661\u0662\n1_000\n%d\n", 2),
    }.values(),
)
def test_ids_that_can_be_read_are_removed_whatever_else_is_in_the_file(
    catalogue: Catalogue,
    removed: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    data: bytes | str,
    wrong: int,
) -> None:
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.CHECK_S", _ALWAYS)
    removed.write_bytes(b"")
    filters = watching(removed, catalogue)
    two = int(catalogue.item_id[5]), int(catalogue.item_id[6])
    if isinstance(data, bytes):
        removed.write_bytes(data % two)
    else:
        removed.write_text(data % two, "utf-16" if data[0] == "\ufeff" else "utf-8", newline="")
    assert blocked(filters) == [5, 6]
    assert filters.unreadable == wrong
    assert len(caplog.records) == (1 if wrong else 0), "named once, not at every look"
    if wrong:
        with pytest.raises(ValueError, match=f"got {wrong} other lines, line [0-9]: `.*` - at {removed}"):
            filters.check()
    else:
        filters.check()
    again = watching(removed, catalogue)  # a start with this file
    assert (blocked(again), again.unreadable) == ([5, 6], wrong)


@pytest.mark.parametrize("how", ["empty", "half", "nonsense", "gone", "a folder", "a pipe"])
def test_a_file_that_is_damaged_or_being_written_lets_no_removed_item_through(
    catalogue: Catalogue, removed: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.CHECK_S", _ALWAYS)
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.SETTLE_S", _NEVER)
    filters, whole = watching(removed, catalogue), removed.read_text()
    if how in ("gone", "a folder", "a pipe"):
        removed.unlink()
        {"gone": lambda path: None, "a folder": os.mkdir, "a pipe": os.mkfifo}[how](removed)
    else:
        removed.write_text({"empty": "", "half": whole[:3], "nonsense": "<html>\n"}[how])
    assert blocked(filters) == blocked(filters) == [3, 9]
    tells = how not in ("empty", "half")  # nobody can know of those
    assert filters.unreadable == len(caplog.records) == tells
    if tells:
        with pytest.raises(ValueError, match="item ids"):
            filters.check()
        monkeypatch.setattr("pocketrank.cloud.pipeline.filters.SETTLE_S", _ALWAYS)
        assert blocked(filters) == [3, 9], "also when it stays so"
    if how == "a folder":
        removed.rmdir()
    removed.unlink(missing_ok=True)
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.SETTLE_S", _ALWAYS)
    removed.write_text(whole.replace(str(catalogue.item_id[3]), ""))
    assert blocked(filters) == [9]
    filters.check()
    assert filters.unreadable == 0
    assert len(caplog.records) == 2 * tells, "that it can be read again"


def test_a_settled_file_is_read_again_because_a_change_within_one_tick_of_its_clock_looks_like_none(
    catalogue: Catalogue, removed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.CHECK_S", _ALWAYS)
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.SETTLE_S", _NEVER)
    filters, before = watching(removed, catalogue), os.stat(removed)
    removed.write_text(removed.read_text().replace(str(catalogue.item_id[3]), str(catalogue.item_id[4])))
    os.utime(removed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert blocked(filters) == [3, 9]
    monkeypatch.setattr("pocketrank.cloud.pipeline.filters.SETTLE_S", _ALWAYS)
    assert blocked(filters) == [4, 9]


def test_a_start_with_a_file_in_which_nothing_is_an_id_is_refused(catalogue: Catalogue, removed: Path) -> None:
    removed.write_text("<html>\n")
    with pytest.raises(ValueError, match=f"got line 1: `<html>` - at {removed}"):
        watching(removed, catalogue)


@pytest.mark.parametrize(("k", "excluded"), [(0, 0), (1, 0), (3, 2), (5, 60), (100, 7)])
def test_the_first_allowed_of_an_order_that_are_not_excluded(catalogue: Catalogue, k: int, excluded: int) -> None:
    filters = Filters(FiltersConfig(authors_not=(101,)), catalogue, Path())
    order = np.arange(60, 0, -1)
    allowed = [at for at in order.tolist() if catalogue.author[at] != 101]
    exclude = np.array(allowed[:excluded] * 2, np.int64)
    assert AllowedOrder(filters, lambda: order)(exclude, k).tolist() == allowed[excluded:][:k]


@pytest.mark.parametrize("days", [0.0, -1.0, float("nan")])
def test_an_age_that_no_item_has_is_refused(days: float) -> None:
    with pytest.raises(ValueError, match="age_max_days above 0"):
        FiltersConfig(age_max_days=days)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalogue, PublishedIds]:
    """A run whose ids are texts, also those of its authors."""
    run = small_run_with_texts(tmp_path_factory.mktemp("texts"))
    column = np.array([0, *(id_code(f"author {author % 5}") for author in run.published.item_author[1:])])
    catalogue = Catalogue(replace(run.published, item_author=column), run.record)
    return catalogue, PublishedIds.open(run.folder / "published")


def test_items_whose_ids_are_texts_are_taken_down(texts: tuple[Catalogue, PublishedIds], tmp_path: Path) -> None:
    catalogue, ids = texts
    removed = tmp_path / "removed.txt"
    removed.write_bytes(b"\xef\xbb\xbf# of this week\r\n  item-3 \r\n\r\nitem-17\nan item of nobody\nitem-5 # no comment\n")
    filters = Filters(FiltersConfig(removed=removed.name), catalogue, tmp_path, ids)
    assert {ids.text("item_id", int(code)) for code in catalogue.item_id[filters.removed[filters.removed > 0]]} == {
        "item-3",
        "item-17",
    }
    assert filters.unreadable == 0
    removed.write_bytes(b"item-4\nitem-\xff\n" + b"x" * 257)
    filters = Filters(FiltersConfig(removed=removed.name), catalogue, tmp_path, ids)
    assert filters.unreadable == 2
    with pytest.raises(ValueError, match="got 2 other lines, line 2: "):
        filters.check()


def test_authors_are_named_by_texts(texts: tuple[Catalogue, PublishedIds]) -> None:
    catalogue, ids = texts
    filters = Filters(FiltersConfig(authors_not=("author 1", "author of nobody")), catalogue, Path(), ids)
    assert (catalogue.author[1:] == id_code("author 1")).any()
    assert np.array_equal(filters.allowed[1:], catalogue.author[1:] != id_code("author 1"))
    only = Filters(FiltersConfig(authors=("author 1",)), catalogue, Path(), ids)
    assert np.array_equal(only.allowed[1:], ~filters.allowed[1:])
