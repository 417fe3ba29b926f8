"""The report on a team's tables."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pocketrank.cloud.data.check import check_data

NOON = 1_700_049_600
"""12:00 UTC on 15 November 2023."""
HOUR = 3600
DAY = 24 * HOUR
NOW_MS = (NOON + 90 * DAY) * 1000


def data_file(
    folder: Path, rows: list[str], *, zone: str = "UTC", header: str = "user_id,item_id,time,liked", sql: str = ""
) -> Path:
    (folder / "log.csv").write_text("\n".join([header, *rows]) + "\n")
    file = folder / "data.toml"
    file.write_text(
        f'name = "small"\ntime_zone = "{zone}"\ntime_unit = "s"\n[tables]\nlog = "log.csv"\n'
        '[impressions]\nsql = "SELECT * FROM log"\n'
        f'{sql}\n[labels]\nlike = "liked"\n[tasks]\nlike = 1.0\n'
    )
    return file


def report(folder: Path, rows: list[str], **options: Any) -> dict[str, Any]:
    return check_data(data_file(folder, rows, **options), now_ms=NOW_MS)


def evening(count: int, *, score: bool = False) -> list[str]:
    """Rows of three days, most of them in the evening and few at night."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        hour = int(np.clip(rng.normal(19, 4), 0, 23))
        like = int(rng.random() < 0.3)
        noise = f",{like * 0.98 + rng.random() * 0.02:.4f}" if score else ""
        rows.append(f"u{i % 50},{i % 20},{NOON - NOON % DAY + i % 3 * DAY + hour * HOUR + i % HOUR},{like}{noise}")
    return rows


def test_sizes_rates_and_coverage(tmp_path: Path) -> None:
    rows = [f"u1,1,{NOON},1", f"u1,1,{NOON},1", f"u2,2,{NOON + 3 * DAY},0", f"u2,1,{NOON + 3 * DAY},"]
    items = "[items]\nsql = 'SELECT 1 AS item_id, NULL::INTEGER AS category'"
    found = report(tmp_path, rows, zone="Asia/Tokyo", sql=items)
    assert (found["rows"], found["duplicates"], found["users"], found["items"]) == (4, 1, 2, 2)
    assert (found["first"], found["last"]) == ("2023-11-15 21:00:00+09:00", "2023-11-18 21:00:00+09:00")
    assert found["labels"] == {"like": {"rate": pytest.approx(2 / 3), "known": 0.75}}
    assert found["coverage"]["impressions"] == {"user_id": 1, "item_id": 1, "time": 1, "liked": 0.75}
    assert found["coverage"]["items"] == {"item_id": 1, "category": 0}
    assert found["described"] == {"item_id": 0.75}
    assert found["days"] == {"2023-11-15": 2, "2023-11-18": 2}
    assert found["gaps"] == ["2023-11-16", "2023-11-17"]
    assert found["hours"] == [4 if hour == 21 else 0 for hour in range(24)]
    assert found["suspicions"] == [
        "1 of 4 rows equal another one in all columns. The import takes each once.",
        "25% of the impressions are of items without a row in `items`. Are the ids the same?",
        "2 days between the first and the last have no impression: 2023-11-16, 2023-11-17.",
    ]


def test_what_is_as_it_should_be_raises_no_suspicion(tmp_path: Path) -> None:
    assert report(tmp_path, evening(1500), zone="UTC")["suspicions"] == []


def test_quiet_hours_by_day_suggest_another_zone(tmp_path: Path) -> None:
    (suspicion,) = report(tmp_path, evening(1500), zone="Asia/Tokyo")["suspicions"]
    assert suspicion.startswith("The fewest impressions are from ")
    assert "by the clocks of Asia/Tokyo, and not at night" in suspicion


def test_dates_and_the_future_are_suspect(tmp_path: Path) -> None:
    late, midnight = NOW_MS // 1000 + DAY, NOON - NOON % DAY
    suspicions = report(tmp_path, [f"u1,1,{midnight},1", f"u2,2,{midnight},0", f"u2,2,{late},0"])["suspicions"]
    assert any(one.startswith("The last impression is in the future, at 2024-02-14 12:00:00+00:00.") for one in suspicions)
    assert any(one.startswith("Most times are at midnight.") for one in suspicions)


def test_ids_that_look_alike_are_suspect(tmp_path: Path) -> None:
    found = report(tmp_path, [f"Ann,1,{NOON},1", f"ann,2,{NOON},0", f'"ann ",3,{NOON},0', f"bob,4,{NOON},0"])
    assert found["ids"] == {"user_id": {"texts": 4, "alike": 3, "examples": [["Ann", "ann", "ann "]]}}
    assert found["suspicions"] == [
        "3 ids of `user_id` differ by case or blanks alone, such as `Ann` and `ann` and `ann `, and are not the same."
    ]


def test_a_score_that_knows_the_label_is_suspect(tmp_path: Path) -> None:
    found = report(tmp_path, evening(1500, score=True), header="user_id,item_id,time,liked,pxtr_like")
    assert found["auc"]["like"]["pxtr_like"] == 1
    assert found["suspicions"] == ["`pxtr_like` predicts `like` with an AUC of 1.000. Was it made before the item was shown?"]


def test_an_attribute_that_knows_the_label_is_suspect(tmp_path: Path) -> None:
    users = "[users]\nsql = 'SELECT user_id, CAST(sum(liked) AS DOUBLE) AS likes, 1.5 AS same FROM log GROUP BY user_id'"
    rows = [f"u{i},1,{NOON + i},{int(i % 3 == 0)}" for i in range(60)]
    found = report(tmp_path, rows, sql=users)
    assert found["auc"] == {"like": {"users.likes": 1}}
    assert any(one.startswith("`users.likes` alone tells `like`, with an AUC of 1.000.") for one in found["suspicions"])


@pytest.mark.parametrize(
    ("value", "expected"), [("1", "is true wherever"), ("0", "is false wherever"), ("", "is unknown everywhere")]
)
def test_a_label_that_never_changes_is_suspect(tmp_path: Path, value: str, expected: str) -> None:
    (suspicion,) = report(tmp_path, [f"u{i},1,{NOON + i},{value}" for i in range(3)])["suspicions"]
    assert f"The label `like` {expected}" in suspicion
