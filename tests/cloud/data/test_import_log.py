"""What becomes of the tables of a data file."""

import hashlib
import math
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.cloud.data.check import check_data
from pocketrank.cloud.data.import_log import import_log, load_mapped
from pocketrank.cloud.data.schema import DataError, ImpressionLog
from pocketrank.cloud.data.validate import validate

NOON = 1_700_000_000_000

DATA_FILE = """
name = "shop"
time_zone = "America/New_York"
actions = ["purchase"]
[tables]
shown = "shown.parquet"
goods = "goods.csv"
people = "people.csv"
before = "before.csv"
offered = "offered.csv"
[impressions]
sql = '''SELECT person AS user_id, good AS item_id, moment AS time, watch_ms, page AS page_id, bought, liked,
       p AS pxtr_purchase FROM shown'''
[items]
sql = '''SELECT good AS item_id, seller AS author_id, kind AS category, ms AS duration_ms, v AS vector,
       colour, price FROM goods'''
[users]
sql = "SELECT person AS user_id, country, CAST(grade AS VARCHAR) AS grade, member, orders FROM people"
[history]
sql = "SELECT person AS user_id, good AS item_id, n AS time, liked AS like FROM before"
[pages]
sql = "SELECT page AS page_id, good AS item_id, place AS position FROM offered"
[labels]
purchase = "bought"
long_view = "watch_ms >= least(duration_ms, 7000)"
like = "liked"
[tasks]
purchase = 2.0
long_view = 1.0
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """Data file of a shop with text ids, all queries, and times of New York."""
    shown = {
        "person": ["ann", "bob", "ann", "cy"],
        "good": ["mug", "hat", "hat", "mug"],
        "moment": pa.array([NOON + 2, NOON, NOON + 1, NOON + 3], pa.timestamp("ms", "UTC")),
        "watch_ms": [5000, 6000, 8000, 100],
        "page": ["p2", "p1", "p2", None],
        "bought": [True, False, None, False],
        "liked": [0, 1, 0, None],
        "p": pa.array([0.25, 0.5, 0.75, 1.0], pa.float32()),
    }
    pq.write_table(pa.table(shown), tmp_path / "shown.parquet")
    (tmp_path / "goods.csv").write_text(
        'good,seller,kind,ms,v,colour,price\nhat,s1,wear,7000,"[1, 2]",red,2.5\n'
        'cap,s2,wear,,,blue,\nmug,s1,,4000,"[3, 4]",,1.0\n'
    )
    (tmp_path / "people.csv").write_text("person,country,grade,member,orders\nbob,US,3,true,0\nann,,2,false,7\n")
    (tmp_path / "before.csv").write_text("person,good,n,liked\nann,old,2,1\nann,mug,1,0\nbob,hat,1,\n")
    (tmp_path / "offered.csv").write_text("page,good,place\np2,mug,1\np2,hat,0\np1,hat,0\np2,pin,2\n")
    file = tmp_path / "shop.toml"
    file.write_text(DATA_FILE.replace("v AS vector", "CAST(v AS FLOAT[]) AS vector"))
    return file


def named(log: ImpressionLog, kind: str, codes: list[int | None]) -> list[str | None]:
    texts = {row["code"]: row["text"] for row in log.ids.to_pylist() if row["kind"] == kind}
    return [None if code is None else texts[code] for code in codes]


def test_all_queries_of_a_data_file(shop: Path) -> None:
    log = load_mapped(shop)
    validate(log)
    shown, items, users = log.impressions, log.items, log.users
    assert (log.name, log.time_zone, log.actions) == ("shop", "America/New_York", ("purchase",))
    assert log.tasks == {"purchase": 2.0, "long_view": 1.0}
    assert (log.labels[-1], log.scores) == ("purchase", ("pxtr_purchase",))
    # Impressions, by time.
    assert shown["impression_ms"].to_pylist() == [NOON, NOON + 1, NOON + 2, NOON + 3]
    assert named(log, "user_id", shown["user_id"].to_pylist()) == ["bob", "ann", "ann", "cy"]
    assert named(log, "item_id", shown["item_id"].to_pylist()) == ["hat", "hat", "mug", "mug"]
    assert named(log, "page_id", shown["page_id"].to_pylist()) == ["p1", "p2", "p2", None]
    assert shown["purchase"].to_pylist() == [False, None, True, False]
    assert shown["long_view"].to_pylist() == [False, True, True, False]
    assert shown["like"].to_pylist() == [True, False, False, None]
    assert shown["pxtr_purchase"].to_pylist() == [0.5, 0.75, 0.25, 1.0]
    assert shown["click"].null_count == 4
    # Items, of which one is in a page alone.
    by_name = dict(zip(named(log, "item_id", items["item_id"].to_pylist()), items.to_pylist(), strict=True))
    assert {name: item["duration_ms"] for name, item in by_name.items()} == {"hat": 7000, "cap": 0, "mug": 4000, "pin": 0}
    assert {name: item["category"] for name, item in by_name.items()} == {"hat": 1, "cap": 1, "mug": 0, "pin": 0}
    assert {name: item["vector"] for name, item in by_name.items()} == {"hat": [1, 2], "cap": None, "mug": [3, 4], "pin": None}
    assert named(log, "author_id", [by_name[name]["author_id"] for name in ("hat", "mug", "cap", "pin")]) == [
        "s1",
        "s1",
        "s2",
        None,
    ]
    assert (log.item_categories, log.item_floats) == (("colour",), ("price",))
    assert {name: item["categories"] for name, item in by_name.items()} == {"hat": [2], "cap": [1], "mug": [0], "pin": None}
    assert str({name: item["floats"] for name, item in sorted(by_name.items())}) == str(
        {"cap": [math.nan], "hat": [2.5], "mug": [1.0], "pin": None}
    )
    assert named(log, "items.colour", [1, 2]) == ["blue", "red"]
    # Users: codes of categories from 1 in the order of their texts.
    people = dict(zip(named(log, "user_id", users["user_id"].to_pylist()), users.to_pylist(), strict=True))
    assert people["bob"]["categories"] == [1, 2, 2]
    assert people["ann"]["categories"] == [0, 1, 1]
    assert people["ann"]["floats"] == [7.0]
    assert named(log, "users.country", [1]) == ["US"]
    # History and pages, in their orders.
    past = {row["user_id"]: row for row in log.history.to_pylist()}
    (ann,) = (row for code, row in past.items() if named(log, "user_id", [code]) == ["ann"])
    assert named(log, "item_id", ann["item_id"]) == ["mug", "old"]
    assert (ann["like"], ann["long_view"]) == ([False, True], [False, False])
    pages = {row["page_id"]: row["item_id"] for row in log.pages.to_pylist()}
    assert sorted(map(len, pages.values())) == [1, 3]
    assert named(log, "item_id", max(pages.values(), key=len)) == ["hat", "mug", "pin"]


def test_a_list_becomes_a_column_for_each_value(shop: Path, tmp_path: Path) -> None:
    """Without unknown, empty and repeated values, in their order, with one dictionary for all columns."""
    (tmp_path / "goods.csv").write_text(
        "good,seller,kind,ms,v,colour,price\nhat,s1,wear,7000,,red||blue|red,2.5\ncap,s2,wear,,,,\nmug,s1,,4000,,blue|gold,1.0\n"
    )
    text = shop.read_text().replace("colour, price", "string_split(colour, '|') AS colour, price")
    shop.write_text(text.replace("country, CAST(grade AS VARCHAR) AS grade", "[grade, NULL, 3, 2] AS x, country"))
    log = load_mapped(shop)
    assert log.item_categories == ("colour[0]", "colour[1]")
    goods = dict(zip(named(log, "item_id", log.items["item_id"].to_pylist()), log.items["categories"].to_pylist(), strict=True))
    assert goods == {"hat": [3, 1], "cap": [0, 0], "mug": [1, 2], "pin": None}
    assert named(log, "items.colour", [1, 2, 3]) == ["blue", "gold", "red"]
    assert log.user_categories == ("x[0]", "x[1]", "country", "member")
    people = dict(
        zip(named(log, "user_id", log.users["user_id"].to_pylist()), log.users["categories"].to_pylist(), strict=True)
    )
    assert people == {"bob": [2, 1, 1, 2], "ann": [1, 2, 0, 1]}
    assert named(log, "users.x", [1, 2]) == ["2", "3"]


def test_values_beyond_the_eighth_are_cut(shop: Path) -> None:
    shop.write_text(shop.read_text().replace("colour, price", "range(5 * length(colour)) AS colour, price"))
    log = load_mapped(shop)
    assert log.item_categories == tuple(f"colour[{place}]" for place in range(8))
    kept = {tuple(codes) for codes in log.items["categories"].to_pylist() if codes}
    assert [named(log, "items.colour", list(codes)) for codes in kept if any(codes)] == [[str(place) for place in range(8)]]
    suspicion = "Rows of `items.colour` with more than 8 values, of which the import takes the first: 2."
    assert suspicion in check_data(shop, now_ms=NOON)["suspicions"]


def test_lists_without_values_are_one_unknown_column(shop: Path) -> None:
    shop.write_text(shop.read_text().replace("colour, price", "[nullif(colour, colour), ''] AS colour, price"))
    log = load_mapped(shop)
    assert log.item_categories == ("colour[0]",)
    assert {codes[0] for codes in log.items["categories"].to_pylist() if codes} == {0}


def code_of(text: str, bits: int = 63) -> int:
    return int.from_bytes(hashlib.md5(text.encode()).digest()[8:], "little") & ((1 << bits) - 1)


def test_codes_are_hashes_of_the_texts(shop: Path) -> None:
    assert code_of("abc") == 8250560606382298838
    ids = [row for row in load_mapped(shop).ids.to_pylist() if row["kind"].endswith("_id")]
    assert {row["kind"] for row in ids} == {"user_id", "item_id", "author_id", "page_id"}
    assert [row["code"] for row in ids] == [code_of(row["text"]) for row in ids]


@settings(max_examples=5, deadline=None)
@given(texts=st.lists(st.text("abcäÄ é😀", min_size=1, max_size=4), min_size=20, max_size=60, unique=True))
def test_two_texts_never_have_one_code(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    """With hashes of six bits, of which nearly all collide."""
    folder = tmp_path_factory.mktemp("ids")
    pq.write_table(pa.table({"user_id": texts, "item_id": [1] * len(texts), "time": [NOON] * len(texts)}), folder / "a.parquet")
    file = folder / "a.toml"
    file.write_text(
        'name = "a"\ntime_zone = "UTC"\ntime_unit = "ms"\n[tables]\na = "a.parquet"\n[impressions]\nsql = "SELECT * FROM a"\n'
        '[labels]\nlike = "true"\n[tasks]\nlike = 1.0\n'
    )
    log = import_log(file, folder / "log", id_bits=6).load()
    ids = {row["text"]: row["code"] for row in log.ids.to_pylist()}
    assert ids.keys() == set(texts)
    assert len(set(ids.values())) == len(texts)
    assert sorted(log.impressions["user_id"].to_pylist()) == sorted(ids.values())
    # The first of the texts with one hash keeps it, and another has that of the text, a zero byte and a number.
    for text, code in ids.items():
        tried = [code_of(text, 6), *(code_of(f"{text}\0{number}", 6) for number in range(1, 2000))]
        taken = [other for other in sorted(texts) if code_of(other, 6) == tried[0]]
        assert code == tried[0] if text == taken[0] else code in tried[1:]


def test_an_import_is_repeated_only_after_a_change(shop: Path, tmp_path: Path) -> None:
    shares: list[float] = []
    first = import_log(shop, tmp_path / "log", progress=shares.append)
    people_before = len(first.users)
    assert shares == sorted(shares)
    assert shares[-1] == 1
    stamp = (tmp_path / "log" / "log.json").stat().st_mtime_ns
    assert import_log(shop, tmp_path / "log").record == first.record
    assert (tmp_path / "log" / "log.json").stat().st_mtime_ns == stamp
    people = tmp_path / "people.csv"
    people.write_text(people.read_text() + "cy,FR,1,true,1\n")
    again = import_log(shop, tmp_path / "log")
    assert again.record.source != first.record.source
    assert (people_before, len(again.users)) == (2, 3)
    shop.write_text(shop.read_text().replace('"shop"', '"store"'))
    assert import_log(shop, tmp_path / "log").name == "store"


def test_the_tables_of_large_files_are_on_disk(shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = load_mapped(shop)
    monkeypatch.setattr("pocketrank.cloud.data.import_log._IN_MEMORY", 0)
    made: list[list[str]] = []

    def look(share: float) -> None:
        made.append([file.name for file in tmp_path.glob(".pocketrank-*/*")])

    log = import_log(shop, tmp_path / "log", progress=look)
    assert "tables.db" in made[0]
    assert log.digest() == small.digest()
    assert not list(tmp_path.glob(".pocketrank-*"))
    (tmp_path / "people.csv").write_text("person,country,grade,member,orders\nbob,US,3,true,0\nann,,2,false\n")
    with pytest.raises(DataError, match=r"people\.csv, row 2"):
        import_log(shop, tmp_path / "log")


def test_what_a_killed_import_left_is_removed(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "log.0123.part" / "impressions").mkdir(parents=True)
    import_log(shop, tmp_path / "log")
    assert not (tmp_path / "log.0123.part").exists()


def test_an_optional_table_may_be_missing(shop: Path) -> None:
    shop.write_text(shop.read_text().replace('before = "before.csv"', 'before = { files = "before.csv", optional = true }'))
    assert len(load_mapped(shop).history) == 2
    (shop.parent / "before.csv").unlink()
    assert len(load_mapped(shop).history) == 0
    shop.write_text(shop.read_text().replace('"shown.parquet"', '{ files = "none.parquet", optional = true }'))
    with pytest.raises(DataError, match=r"\$\.impressions\.sql: expected tables with files, got none of `shown`"):
        load_mapped(shop)


def test_many_rows_with_equal_keys_are_sorted_and_counted_once(tmp_path: Path) -> None:
    """Across the tables that impressions are read in."""
    rows = [(1, 1, NOON, watch % 7) for watch in range(40)] + [(1, 2, NOON, 3), (1, 2, NOON, 3)]
    columns = dict(zip(("user_id", "item_id", "time", "watch_ms"), map(list, zip(*rows, strict=True)), strict=True))
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    file = tmp_path / "a.toml"
    file.write_text(
        'name = "a"\ntime_zone = "UTC"\ntime_unit = "ms"\n[tables]\na = "a.parquet"\n[impressions]\nsql = "SELECT * FROM a"\n'
        '[labels]\nlike = "watch_ms > 3"\n[tasks]\nlike = 1.0\n'
    )
    log = load_mapped(file)
    assert log.impressions["item_id"].to_pylist() == [1] * 7 + [2]
    assert sorted(log.impressions["watch_ms"].to_pylist()[:7]) == list(range(7))


def test_rows_that_differ_in_a_label_alone_both_count(tmp_path: Path) -> None:
    shown = {"user_id": [1] * 6, "item_id": [1] * 6, "time": [NOON] * 6, "liked": [0, 1, None, 0, 1, None], "note": ["a"] * 6}
    pq.write_table(pa.table(shown), tmp_path / "a.parquet")
    file = tmp_path / "a.toml"
    file.write_text(
        'name = "a"\ntime_zone = "UTC"\ntime_unit = "ms"\n[tables]\na = "a.parquet"\n[impressions]\nsql = "SELECT * FROM a"\n'
        '[labels]\nlike = "liked"\n[tasks]\nlike = 1.0\n'
    )
    assert sorted(load_mapped(file).impressions["like"].to_pylist(), key=str) == [False, None, True]
    pq.write_table(pa.table(shown | {"note": list("abcdef")}), tmp_path / "a.parquet")
    assert len(load_mapped(file).impressions) == 6


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            'actions = ["purchase"]',
            'actions = ["sale"]',
            "Expected actions among the labels purchase, long_view, like, got sale",
        ),
        ("purchase = 2.0", "sale = 2.0", "Expected tasks among the labels"),
        ('like = "liked"', 'watch_ms = "liked"', "Expected labels with names of their own, got watch_ms"),
        ("[items]", "[things]", "Object contains unknown field `things`"),
        ("name =", "name", "expected TOML"),
        ('"shown.parquet"', '"shown.*.parquet"', "expected a file, a folder or a pattern of files, got nothing"),
        (
            "country, CAST(grade AS VARCHAR) AS grade",
            "country, [1.5] AS grade",
            "expected text, a boolean, a number or a list of texts, got DECIMAL(2,1)[]",
        ),
        (
            "country, CAST(grade AS VARCHAR) AS grade",
            "country, [country][1]",
            "expected a name without brackets, got `list_value(country)[1]`; give it one with AS",
        ),
        ("kind AS category", "[kind] AS category", "expected one value, got VARCHAR[]; write category[1]"),
        (
            "page AS page_id, bought",
            "CAST(1.5 AS DOUBLE) AS page_id, bought",
            "expected ids that are whole numbers or text, got DOUBLE",
        ),
        ("member, orders", "member, ln(orders) AS orders", "people.csv, row 1"),
    ],
)
def test_a_wrong_data_file_is_one_line(shop: Path, old: str, new: str, message: str) -> None:
    shop.write_text(shop.read_text().replace(old, new, 1))
    with pytest.raises(DataError) as caught:
        load_mapped(shop)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
