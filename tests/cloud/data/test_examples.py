"""The data files in `examples/`, on real tables or on tiny ones of the public layouts."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pocketrank.cloud.data.draft import draft_data_file
from pocketrank.cloud.data.import_log import load_mapped
from pocketrank.cloud.data.schema import ImpressionLog
from tests.cloud.data.folders import EXAMPLES
from tests.data import data_folder


def named(log: ImpressionLog, kind: str, codes: list[int]) -> list[str]:
    texts = {row["code"]: row["text"] for row in log.ids.to_pylist() if row["kind"] == kind}
    return [texts[code] for code in codes]


def test_movielens(tmp_path: Path) -> None:
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n7,1,4.0,1260759144\n7,2,3.5,1260759179\n8,3,2.0,1260759182\n"
    )
    (tmp_path / "movies.csv").write_text(
        "movieId,title,genres\n1,Toy Story (1995),Animation|Children\n"
        '2,"Thing, The",(no genres listed)\n3,Alphaville (1965) ,Drama\n'
    )
    log = load_mapped(EXAMPLES / "movielens.toml", tables=tmp_path)
    assert log.impressions.select(["user_id", "item_id", "like", "long_view"]).to_pylist() == [
        {"user_id": 7, "item_id": 1, "like": True, "long_view": True},
        {"user_id": 7, "item_id": 2, "like": False, "long_view": True},
        {"user_id": 8, "item_id": 3, "like": False, "long_view": False},
    ]
    assert log.items["category"].to_pylist() == [1, 0, 2]
    assert log.item_categories == ("genres[0]", "genres[1]")
    assert log.items["categories"].to_pylist() == [[1, 2], [0, 0], [3, 0]]
    assert log.items["upload_ms"].to_pylist() == [788_918_400_000, None, -157_766_400_000]


def test_a_draft_for_movielens_is_the_example(tmp_path: Path) -> None:
    folder = data_folder("movielens_small")
    ours = load_mapped(EXAMPLES / "movielens.toml", tables=folder)
    assert (len(ours.impressions), len(ours.items), len(ours.users)) == (100_004, 9125, 671)
    assert ours.impressions["impression_ms"][0].as_py() == 789_652_009_000
    (tmp_path / "data.toml").write_text(draft_data_file(folder, tmp_path))
    drafted = load_mapped(tmp_path / "data.toml")
    names = ["user_id", "item_id", "impression_ms", "like"]
    assert drafted.impressions.select(names).equals(ours.impressions.select(names))
    assert drafted.tasks == {"like": 1.0}
    assert len(set(drafted.items["category"].to_pylist())) == len(set(ours.items["category"].to_pylist()))
    assert drafted.item_categories == ours.item_categories


def test_a_draft_takes_lists_as_categories_of_several_values(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({"user": ["a", "b"], "item": [1, 2], "time": [1_700_000_000, 1_700_000_001], "liked": [0, 1]}),
        tmp_path / "log.parquet",
    )
    pq.write_table(
        pa.table({"item": [1, 2], "category": [["x", "y"], ["y"]], "moods": [["m"], ["n", "m"]]}), tmp_path / "items.parquet"
    )
    (tmp_path / "users.csv").write_text("user,hobbies\na,chess|tea\nb,tea\n")
    (tmp_path / "data.toml").write_text(draft_data_file(tmp_path))
    log = load_mapped(tmp_path / "data.toml")
    assert log.item_categories == ("categories[0]", "categories[1]", "moods[0]", "moods[1]")
    assert log.items["category"].to_pylist() == [1, 2]
    assert log.items["categories"].to_pylist() == [[1, 2, 1, 0], [2, 0, 2, 1]]
    assert log.user_categories == ("hobbies[0]", "hobbies[1]")


def test_tenrec(tmp_path: Path) -> None:
    header = "user_id,item_id,click,follow,like,share,video_category,watching_times,gender,age"
    rows = [
        "2,11,1,0,0,0,5,1,0,3",
        "1,12,0,0,0,0,4,0,1,2",
        "1,11,1,0,1,0,5,2,1,2",
        "1,13,0,0,0,1,4,0,1,2",
        "1,12,1,1,0,0,4,1,1,2",
    ]
    (tmp_path / "QB-video.csv").write_text("\n".join([header, *rows]) + "\n")
    log = load_mapped(EXAMPLES / "tenrec.toml", tables=tmp_path)
    shown = log.impressions.to_pylist()
    assert [row["item_id"] for row in shown if row["user_id"] == 1] == [12, 11, 13, 12]
    assert [row["like"] for row in shown if row["user_id"] == 1] == [False, True, False, False]
    first = 1_609_430_400_000
    assert [row["impression_ms"] - first for row in shown if row["user_id"] == 1] == [
        7 * 86_400_000 * week for week in range(4)
    ]
    assert log.items["category"].to_pylist() == [2, 1, 1]
    assert log.users["categories"].to_pylist() == [[2, 1], [1, 2]]
    assert log.tasks == {"click": 1.0, "like": 1.0, "follow": 0.0, "share": 0.0}


def test_mind(tmp_path: Path) -> None:
    (tmp_path / "behaviors.tsv").write_text(
        "1\tU1\t11/11/2019 9:05:58 AM\tN9 N8\tN1-0 N2-1\n2\tU2\t11/12/2019 6:11:30 PM\t\tN2-0\n"
        "3\tU1\t11/15/2019 12:00:01 AM\tN9 N8\tN3-1\n"
    )
    (tmp_path / "news.tsv").write_text(
        "".join(
            f'N{i}\t{kind}\tsub\tThe "Best\tabstract\turl\t[]\t[]\n' for i, kind in enumerate(("news", "sports", "news"), 1)
        )
    )
    log = load_mapped(EXAMPLES / "mind.toml", tables=tmp_path)
    shown = {name: log.impressions[name].to_pylist() for name in ("user_id", "item_id", "page_id", "click", "impression_ms")}
    assert named(log, "user_id", shown["user_id"]) == ["U1", "U1", "U2", "U1"]
    clicked = dict(
        zip(zip(shown["page_id"], named(log, "item_id", shown["item_id"]), strict=True), shown["click"], strict=True)
    )
    assert clicked == {(1, "N1"): False, (1, "N2"): True, (2, "N2"): False, (3, "N3"): True}
    assert sorted(set(shown["impression_ms"])) == [1_573_463_158_000, 1_573_582_290_000, 1_573_776_001_000]
    items = dict(zip(named(log, "item_id", log.items["item_id"].to_pylist()), log.items["category"].to_pylist(), strict=True))
    assert items == {"N1": 1, "N2": 2, "N3": 1}
    (past,) = log.history.to_pylist()
    assert named(log, "user_id", [past["user_id"]]) == ["U1"]
    assert (named(log, "item_id", past["item_id"]), past["long_view"]) == (["N9", "N8"], [True, True])
    assert [named(log, "item_id", page) for page in log.pages["item_id"].to_pylist()] == [["N1", "N2"], ["N2"], ["N3"]]


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.toml")))
def test_an_example_says_how_it_is_used(example: str) -> None:
    text = (EXAMPLES / example).read_text()
    assert f"#   pocketrank train --data examples/{example} " in text
