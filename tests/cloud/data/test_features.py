"""Statistics over time windows, against a count of every event by hand."""

from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import msgspec
import numpy as np
import pyarrow as pa
import pytest

from pocketrank.cloud.data.features import BehaviourSequence, FeatureConfig, Statistic
from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import HISTORY, DataError, ImpressionLog
from pocketrank.sdk_demo.world import World
from tests.cloud.data.logs import columns
from tests.sdk_demo.world.worlds import small

ZONE = ZoneInfo("America/New_York")
FEATURES = FeatureConfig(
    user_events=15,
    smoothing=3,
    statistics=(
        Statistic(of="item", days=(1, 3), rates=("long_view", "share")),
        Statistic(of="author", days=(2,), rates=("watch_log",), device=True),
        Statistic(of="user", days=(1, 60), rates=("engaged",)),
        Statistic(of=("user", "category"), days=(1, 7), rates=("like", "long_view")),
    ),
)


@pytest.fixture(scope="module")
def log() -> ImpressionLog:
    simulated = World(small(users=30, items=200)).simulate_log(seed=2)
    users, marks = simulated.users["user_id"].to_pylist()[:2], [True, False, True, True]
    past = columns(HISTORY, 2, user_id=users, item_id=[[1, 2, 3, 4]] * 2, long_view=[marks] * 2, like=[marks] * 2)
    table = simulated.impressions
    shared = pa.array(np.random.default_rng(0).random(len(table)) < 0.1)
    table = table.set_column(table.column_names.index("share"), table.schema.field("share"), shared)
    return replace(simulated, impressions=table, history=past)


@pytest.fixture(scope="module")
def samples(log: ImpressionLog) -> Samples:
    return build_samples(log, SampleConfig(tasks=("long_view",), time_zone=ZONE.key, features=FEATURES))


def by_hand(s: Samples, number: int, slot: int) -> list[float]:
    """The statistics of a candidate from all events before its list, one by one."""
    begins, item = int(s.list_event[number]), int(s.list_item[number, slot])
    now, user = int(s.event_ms[begins]), int(s.list_user[number])
    day = datetime.fromtimestamp(now / 1000, UTC).astimezone(ZONE).date()
    mine = range(max(int(s.user_start[user]), begins - FEATURES.user_events), begins)
    before = np.flatnonzero((s.event_ms < now) & (s.event_day >= 0))
    codes = {"item": np.arange(len(s.item_ids)), "author": s.item_author, "category": s.item_category}
    history = [*HISTORY_FEEDBACK, "share"]
    logged = s.event_history[s.event_day >= 0]
    out = []
    for statistic in FEATURES.statistics:
        for days in statistic.days:
            events = [
                event
                for event in (mine if statistic.keys[0] == "user" else before)
                if s.event_ms[event] > 0
                and (day - datetime.fromtimestamp(s.event_ms[event] / 1000, UTC).astimezone(ZONE).date()).days < days
                and all(codes[key][s.event_item[event]] == codes[key][item] > 0 for key in statistic.keys if key != "user")
            ]
            out.append(np.log1p(len(events)) / 4)
            for rate in statistic.rates:
                column = history.index(rate)
                mean = logged[:, column].mean()
                smoothed = (sum(s.event_history[event, column] for event in events) + 3 * mean) / (len(events) + 3)
                logit = lambda p: np.log(p / (1 - p))  # noqa: E731
                out.append(smoothed - mean if rate == "watch_log" else logit(smoothed) - logit(mean))
    return out


def test_statistics_are_those_counted_by_hand(samples: Samples) -> None:
    s, rng = samples, np.random.default_rng(0)
    assert s.list_statistics.shape == (*s.list_item.shape, 2 * 3 + 2 + 2 * 2 + 2 * 3)
    filled = np.argwhere((s.list_item > 0) & (s.list_day >= 0)[:, None])
    for number, slot in filled[rng.choice(len(filled), 300, replace=False)]:
        np.testing.assert_allclose(s.list_statistics[number, slot], by_hand(s, number, slot), atol=2e-5)
    assert (s.list_statistics[filled[:, 0], filled[:, 1]] != 0).any(0).all()


def test_events_carry_the_statistics_of_their_place_in_the_list(samples: Samples) -> None:
    s = samples
    expected = s.list_statistics[s.row_list, s.row_slot]
    np.testing.assert_array_equal(s.event_statistics[s.row_event], expected)


def test_lists_from_before_the_log_have_no_statistics(samples: Samples) -> None:
    before = samples.list_day < 0
    assert before.any()
    assert not samples.list_statistics[before].any()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"statistics": [{"of": ["author", "user"]}]}, "or `user` and one of them"),
        ({"statistics": [{"of": []}]}, "or `user` and one of them"),
        ({"statistics": [{"of": "author", "days": [0]}]}, "1 to 60 days"),
        ({"statistics": [{"of": "author", "days": [7, 7]}]}, "different lengths"),
        ({"statistics": [{"of": "author"}, {"of": "author"}]}, "once, got author_count_1d"),
        ({"sequences": [{"behaviour": "like", "length": 0}]}, "length of 1 or more"),
        ({"sequences": [{"behaviour": "like"}, {"behaviour": "like"}]}, "each sequence once"),
        ({"user_events": 0}, "user_events of 1 or more"),
        ({"smoothing": 0}, "smoothing above 0"),
        ({"statistics": [{"of": "author", "day": [7]}]}, "unknown field `day`"),
    ],
)
def test_a_config_that_makes_no_sense_is_refused(table: dict[str, object], message: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=message):
        msgspec.convert(table, FeatureConfig)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (FeatureConfig(sequences=(BehaviourSequence(behaviour="has_next"),)), "Expected behaviours among .*, got has_next"),
        (FeatureConfig(statistics=(Statistic(of="brand"),)), "`user` or of item, author, category, got brand"),
    ],
)
def test_a_log_without_what_a_feature_needs_is_refused(log: ImpressionLog, features: FeatureConfig, message: str) -> None:
    with pytest.raises(DataError, match=message):
        build_samples(log, SampleConfig(tasks=("long_view",), features=features))
