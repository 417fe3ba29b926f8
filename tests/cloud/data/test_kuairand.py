import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.cloud.data.log import open_log, save_log
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig
from pocketrank.cloud.data.schema import IDS, IMPRESSIONS, LABELS, DataError, ImpressionLog, LogDigest
from tests.cloud.data.folders import (
    DAY,
    LOG,
    NOON,
    USER,
    VIDEO,
    Row,
    impression,
    load,
    user,
    video,
    write,
    write_folder,
    write_sequences,
)
from tests.data import kuairand_folder


@pytest.mark.parametrize(("size", "suffix"), [("pure", ".csv"), ("27k", ".csv.gz")])
def test_loads_each_size_plain_and_zipped(tmp_path: Path, size: str, suffix: str) -> None:
    log = load(write_folder(tmp_path, size=size, suffix=suffix))
    assert (log.name, log.simulated) == ("kuairand", False)
    assert log.impressions.schema.equals(IMPRESSIONS)
    assert log.impressions["item_id"].to_pylist() == [10, 11, 11]
    assert log.impressions["click"].to_pylist() == [False, True, False]


def test_maps_labels_times_and_scene(tmp_path: Path) -> None:
    names = {
        "is_click": "click", "is_like": "like", "is_follow": "follow", "is_comment": "comment", "is_forward": "share",
        "is_profile_enter": "profile_enter", "is_hate": "dislike", "long_view": "long_view",
    }  # fmt: skip
    rows = [impression(1, 10, NOON + i, **{public: 1}, tab=i) for i, public in enumerate(names)]
    table = load(write_folder(tmp_path, log=rows)).impressions
    for i, name in enumerate(names.values()):
        assert [row for row, held in enumerate(table[name].to_pylist()) if held] == [i]
    assert table["scene"].to_pylist() == list(range(8))
    assert table["watch_ms"].to_pylist() == [5000] * 8
    assert table["impression_ms"].to_pylist() == [NOON + i for i in range(8)]
    unknown = {column for column in table.column_names if table[column].null_count == 8}
    assert unknown >= {"effective_view", "has_next", "session_id", "page_id", "position", "ended", "volume", "network"}
    assert set(LABELS) - unknown == set(names.values())


def test_reads_parts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "data", size="27k", log=[impression()])
    (folder / "log_standard_4_22_to_5_08_27k.csv").rename(folder / "log_standard_4_22_to_5_08_27k_part1.csv")
    write(folder / "log_standard_4_22_to_5_08_27k_part2.csv.gz", LOG, [impression(2, 12, NOON - 1)])
    write(folder / "log_standard_4_08_to_4_21_27k_part1.csv", LOG, [impression(1, 10, NOON - 9 * DAY)])
    write(folder / "video_features_basic_27k_part2.csv", VIDEO, [video(12)])
    write(folder / "log_random_4_22_to_5_08_27k.csv", LOG, [impression(1, 11, NOON + 5, is_rand=1)])
    log = load(folder)
    assert log.impressions["item_id"].to_pylist() == [10, 12, 10]
    assert log.items["item_id"].to_pylist() == [10, 11, 12]


def test_exact_duplicates_are_dropped(tmp_path: Path) -> None:
    rows = [impression(), impression(hourmin=1300), impression(), impression(2), impression(hourmin=1300)]
    assert len(load(write_folder(tmp_path, log=rows)).impressions) == 3


rows_of_a_log = st.lists(
    st.builds(impression, st.integers(1, 2), st.integers(10, 11), st.integers(NOON, NOON + 3), is_like=st.integers(0, 1)),
    min_size=1,
    max_size=10,
)


@settings(max_examples=5, deadline=None)
@given(rows=rows_of_a_log, data=st.data())
def test_the_order_and_repetition_of_rows_make_no_difference(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Row], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("kuairand")
    first = load(write_folder(folder, log=rows))
    other = [*data.draw(st.permutations(rows)), data.draw(st.sampled_from(rows))]
    again = load(write_folder(folder, log=other))
    assert all(getattr(again, table).equals(getattr(first, table)) for table in ImpressionLog.TABLES)
    assert len(first.impressions) == len({tuple(row.items()) for row in rows})


def test_items(tmp_path: Path) -> None:
    videos = [
        video(10, video_duration="1234.0", tag="", music_id="", upload_dt="", author_id=""),
        video(11, video_duration="", tag=0),
        video(12, video_duration="700.0", tag="-124"),
        video(13, video_duration="", tag=68),
    ]
    log = [impression(video=10, duration_ms=ms, time_ms=NOON + ms) for ms in (0, 10, 20)] + [impression(video=99)]
    items = load(write_folder(tmp_path, log=log, videos=videos)).items
    assert items["item_id"].to_pylist() == [10, 11, 12, 13, 99]
    assert items["duration_ms"].to_pylist() == [15, 0, 700, 0, 9000]
    assert items["category"].to_pylist() == [0, 1, 0, 69, 0]
    assert items["music_id"].to_pylist() == [None, 55, 55, 55, None]
    assert items["author_id"].to_pylist() == [None, 7, 7, 7, None]
    local_midnight = NOON - 17 * DAY - DAY // 2
    assert items["upload_ms"].to_pylist() == [None, local_midnight, local_midnight, local_midnight, None]


def test_users(tmp_path: Path) -> None:
    users = [
        user(3, user_active_degree="UNKNOWN", is_live_streamer="-124", fans_user_num=-1, onehot_feat4=""),
        user(1, user_active_degree="high_active", is_live_streamer="1", fans_user_num=9, onehot_feat4="2.0"),
        user(2, user_active_degree="full_active", is_live_streamer="1", fans_user_num="4.0", onehot_feat4="2"),
    ]
    table = load(write_folder(tmp_path, users=users)).users
    assert table["user_id"].to_pylist() == [1, 2, 3]
    categories = np.array(table["categories"].to_pylist())
    assert categories.shape == (3, 26)
    assert categories[:, 0].tolist() == [2, 1, 0]
    assert categories[:, 2].tolist() == [1, 1, 0]
    assert categories[:, 8 + 4].tolist() == [1, 1, 0]
    fans = [floats[1] for floats in table["floats"].to_pylist()]
    assert fans == pytest.approx([math.log(10), math.log(5), 0])


def test_history_is_read_if_there_is_one(tmp_path: Path) -> None:
    folder = write_folder(tmp_path)
    assert len(load(folder).history) == 0
    write_sequences(folder / "user_sequences.parquet", [(1, [10, 11], [11], [])])
    assert load(folder).history["long_view"].to_pylist() == [[False, True]]


@pytest.mark.parametrize(
    ("fields", "column"),
    [
        ({"is_like": 2}, "is_like"),
        ({"is_click": "yes"}, "is_click"),
        ({"play_time_ms": -1}, "play_time_ms"),
        ({"time_ms": NOON // 1000}, "time_ms"),
        ({"time_ms": NOON * 1000}, "time_ms"),
        ({"user_id": ""}, "user_id"),
        ({"video_id": "ten"}, "video_id"),
        ({"tab": 1.5}, "tab"),
    ],
)
def test_a_bad_impression_is_named(tmp_path: Path, fields: Row, column: str) -> None:
    folder = write_folder(tmp_path, log=[impression(), impression() | fields])
    with pytest.raises(DataError) as caught:
        load(folder)
    assert caught.value.file.endswith("log_standard_4_22_to_5_08_pure.csv")
    assert (caught.value.row, caught.value.column) == (2, column)


@pytest.mark.parametrize(
    "fields",
    [
        {"tag": "sport"},
        {"upload_dt": "yesterday"},
        {"video_duration": "long"},
        {"author_id": 2**63},
        {"music_id": f"{2**63}"},
        {"video_id": 2**63},
    ],
)
def test_a_bad_video_is_named(tmp_path: Path, fields: Row) -> None:
    with pytest.raises(DataError) as caught:
        load(write_folder(tmp_path, videos=[video(10), video(11) | fields]))
    assert caught.value.file.endswith("video_features_basic_pure.csv")
    assert (caught.value.row, [caught.value.column]) == (2, list(fields))


def test_rows_of_one_user_must_agree(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, users=[user(1), user(1)])
    assert len(load(folder).users) == 1
    write(folder / "user_features_pure.csv", USER, [user(2), user(1), user(1, register_days=3)])
    with pytest.raises(
        DataError, match="row 2, column `user_id`: expected one row for each user_id, got several that differ for 1"
    ):
        load(folder)


@pytest.mark.parametrize("identifier", [2**53 + 1, 6946312345678901234, 2**63 - 1])
def test_ids_are_exact(tmp_path: Path, identifier: int) -> None:
    """Also in a column with empty fields, which other tools keep as floats, up to the samples that training takes them from."""
    videos = [video(10, author_id=identifier, music_id=identifier), video(11, author_id="", music_id=""), video(identifier)]
    log = load(
        write_folder(tmp_path, log=[impression(identifier, identifier)], videos=videos, users=[user(identifier), user(1)])
    )
    assert log.items["author_id"].to_pylist() == [identifier, None, 7]
    assert log.items["music_id"].to_pylist() == [identifier, None, 55]
    assert log.items["item_id"].to_pylist() == [10, 11, identifier]
    assert log.impressions.select(["user_id", "item_id"]).to_pylist() == [{"user_id": identifier, "item_id": identifier}]
    assert log.users["user_id"].to_pylist() == [1, identifier]
    save_log(log, tmp_path / "log")
    opened = open_log(tmp_path / "log").load()
    assert opened.items.equals(log.items)
    samples = build_samples(opened, SampleConfig(("click",)))
    assert samples.item_author_id.tolist() == [0, identifier, 0, 7]
    assert (samples.item_ids[-1], samples.user_ids[-1]) == (identifier, identifier)


@pytest.mark.parametrize("padded", ["5000 ", " 5000", " 5000\t"])
def test_space_around_a_number_is_ignored(tmp_path: Path, padded: str) -> None:
    first = impression(play_time_ms=padded, is_like="1 ", tab="2 ", comment_stay_time=" ")
    log = load(
        write_folder(
            tmp_path,
            log=[first, impression(2, 11, NOON + 1)],
            videos=[video(10, author_id=padded, upload_dt="2022-04-10 "), video(11)],
            users=[user(1, register_days=padded), user(2)],
        )
    )
    assert log.impressions["watch_ms"].to_pylist() == [5000, 5000]
    assert log.impressions["like"].to_pylist() == [True, False]
    assert log.items["author_id"].to_pylist() == [5000, 7]
    assert log.items["upload_ms"][0] == log.items["upload_ms"][1]
    assert log.users["floats"].to_pylist()[0][3] == pytest.approx(math.log1p(5000))


def test_the_longest_watch_is_taken(tmp_path: Path) -> None:
    """Beyond 2^53, which a float between the two would change."""
    log = load(write_folder(tmp_path, log=[impression(play_time_ms=2**63 - 1)]))
    assert log.impressions["watch_ms"].to_pylist() == [2**63 - 1]


def digest_of_known_columns(log: ImpressionLog) -> str:
    """The digest without the ids and without columns that are null everywhere."""
    tables = {name: getattr(log, name) for name in log.TABLES}
    known = {
        name: table.select([column for column in table.column_names if table[column].null_count < len(table)])
        for name, table in tables.items()
    }
    digest = LogDigest()
    digest.update(known["impressions"])
    return digest.finish(known | {"ids": IDS.empty_table()})


def test_the_real_slice() -> None:
    log = load(kuairand_folder())
    # That of the tables which the loader in Python made that this data file has replaced.
    assert digest_of_known_columns(log) == "af3d3dd969a45508cfcbd994171ae6050b0e51ffa5921d2477fc057e2f594db5"
    table = pl.DataFrame(log.impressions)
    assert len(table) == 180_384
    for label, rate in {"click": 0.44, "long_view": 0.31, "like": 0.017, "profile_enter": 0.019}.items():
        assert table[label].mean() == pytest.approx(rate, rel=0.05), label
    items = pl.DataFrame(log.items)
    assert len(items) == 7_583
    assert (items["duration_ms"] == 0).sum() == 239
    # What the data set documents as a long view: to the end, or 18 s of a longer one.
    known = table.join(items, on="item_id").filter(pl.col("duration_ms") > 0)
    documented = known["watch_ms"] >= known.select(pl.min_horizontal("duration_ms", 18_000)).to_series()
    assert (documented == known["long_view"]).mean() > 0.98
    assert len(log.users) == 27_285
    assert len(log.history) == 26_469
