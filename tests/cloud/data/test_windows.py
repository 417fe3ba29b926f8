"""A log in many windows gives every row the inputs that it has in one."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pocketrank.cloud.data.features import FeatureConfig, Statistic
from pocketrank.cloud.data.latest_events import LatestEvents
from pocketrank.cloud.data.log import save_log
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import SampleStream, WindowConfig, build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import ImpressionLog
from pocketrank.sdk_demo.world import TASK_WEIGHTS, World
from tests.sdk_demo.world.worlds import small

FEATURES = FeatureConfig(
    user_events=12,
    statistics=(
        Statistic(of="author", days=(1, 3), rates=("click", "watch_log")),
        Statistic(of=("user", "category"), days=(7,), rates=("like",)),
    ),
)
CONFIG = SampleConfig(tasks=tuple(TASK_WEIGHTS), time_zone="Asia/Shanghai", events_max=12, history_max=12, features=FEATURES)
TINY = [WindowConfig(rows=200), WindowConfig(rows=200, events=2000), WindowConfig(rows=10), WindowConfig(rows=10, events=100)]


@pytest.fixture(scope="module")
def log() -> ImpressionLog:
    return World(small(users=40, items=300)).simulate_log(seed=1)


@pytest.fixture(scope="module")
def whole(log: ImpressionLog) -> Samples:
    return build_samples(log, CONFIG)


def windows(stream: SampleStream) -> Iterator[tuple[Samples, ItemStatistics, bool]]:
    """Each shard, the statistics, and whether it is all of its span."""
    statistics = None
    for span in stream.spans():
        for shard in range(span.shards):
            samples = span.build(shard)
            statistics = statistics or ItemStatistics(samples)
            if shard == 0:
                statistics.enter(samples if span.shards == 1 else None)
            if len(samples.row_event):
                yield samples, statistics, span.shards == 1
            statistics.add(samples)
            span.done(samples)


def inputs(s: Samples, row: int) -> tuple[object, ...]:
    """Everything that models see of a row."""
    event, number = s.row_event[row], s.row_list[row]
    seen = slice(s.row_events_from[row], event)
    user = s.event_user[event]
    past = slice(max(s.user_start[user], s.list_event[number] - s.config.history_max), s.list_event[number])
    items = s.list_item[number][s.list_item[number] > 0]
    return (
        s.event_item[seen].tolist(),
        s.event_feedback[seen].tolist(),
        s.event_ms[seen].tolist(),
        (s.event_position[event] - s.event_position[seen]).tolist(),
        np.nan_to_num(s.event_labels[event], nan=-1).tolist(),
        s.event_item[past].tolist(),
        s.event_history[past].tolist(),
        items.tolist(),
        s.list_statistics[number].round(4).tolist(),
        int(s.list_hour[number, s.row_slot[row]]),
        int(s.list_scene[number, s.row_slot[row]]),
        int(s.row_position[row]),
        int(s.list_day[number]),
    )


def keys(s: Samples) -> list[tuple[int, int, int]]:
    at = s.row_event
    return list(zip(s.event_user[at].tolist(), s.event_ms[at].tolist(), s.event_item[at].tolist(), strict=True))


@pytest.mark.parametrize("config", TINY)
def test_every_row_has_the_inputs_that_it_has_in_one_window(
    log: ImpressionLog, whole: Samples, config: WindowConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatestEvents, "IN_MEMORY", 0)  # as with many users
    stream = SampleStream(save_log(log, tmp_path / "log"), CONFIG, config)
    expected = {key: row for row, key in enumerate(keys(whole))}
    seen, pieces = 0, 0
    for samples, _, _ in windows(stream):
        pieces += 1
        for row, key in enumerate(keys(samples)):
            assert inputs(samples, row) == inputs(whole, expected.pop(key))
            seen += 1
    assert not expected
    assert seen == log.rows
    assert pieces >= 3


def test_statistics_go_on_from_window_to_window(log: ImpressionLog, whole: Samples) -> None:
    stream, in_one = SampleStream(log, CONFIG, WindowConfig(rows=200)), ItemStatistics(whole)
    days = []
    last = None
    for samples, statistics, _ in windows(stream):
        for day in range(samples.first_window_day, samples.last_window_day + 1):
            np.testing.assert_array_equal(statistics.as_of(day), in_one.as_of(day))
            days.append(day)
        last = statistics
    assert days == list(range(whole.days))
    assert last is not None
    last.enter(None)
    np.testing.assert_array_equal(last.as_of(whole.days), in_one.as_of(whole.days))


def test_shards_of_a_span_know_of_the_days_before_it(log: ImpressionLog, whole: Samples) -> None:
    stream, in_one = SampleStream(log, CONFIG, WindowConfig(rows=10, events=100)), ItemStatistics(whole)
    sharded = 0
    for samples, statistics, alone in windows(stream):
        first = samples.first_window_day - samples.first_window_day % CONFIG.list_days
        if not alone:
            np.testing.assert_array_equal(statistics.as_of(first), in_one.as_of(first))
            sharded += 1
    assert sharded > 4


@pytest.mark.parametrize("in_memory", [LatestEvents.IN_MEMORY, 0])
def test_the_latest_events_at_the_end_are_the_last_of_each_user(
    log: ImpressionLog, whole: Samples, in_memory: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LatestEvents, "IN_MEMORY", in_memory)
    stream = SampleStream(log, CONFIG, WindowConfig(rows=200))
    latest = stream.new_latest()
    for span in stream.spans(latest):
        span.done(span.build(0))
    item, feedback, _ = latest.history(10)
    for user in range(1, len(whole.user_ids)):
        own = slice(whole.user_start[user], whole.user_start[user + 1])
        np.testing.assert_array_equal(item[user][item[user] > 0], whole.event_item[own][-10:])
        np.testing.assert_array_equal(feedback[user][item[user] > 0], whole.event_history[own][-10:])


def test_days_without_impressions_are_no_window(log: ImpressionLog) -> None:
    times = log.impressions["impression_ms"].to_numpy()
    later = times + np.where(times > np.median(times), 40 * 86_400_000, 0)
    table = log.impressions.set_column(2, log.impressions.schema.field(2), [later])
    gap = ImpressionLog("gap", True, "UTC", log.tasks, table, log.items, log.users)
    spans = list(SampleStream(gap, SampleConfig(tasks=CONFIG.tasks), WindowConfig(rows=100)).spans())
    assert [span.index for span in spans] == list(range(len(spans)))
    assert sum(span.rows for span in spans) == log.rows
    assert all(span.rows for span in spans)


def test_years_of_few_ratings_are_some_hundred_days(log: ImpressionLog) -> None:
    """A day of the samples is then many of the calendar."""
    times = log.impressions["impression_ms"].to_numpy()
    stretched = (times - times[0]) * 200 + times[0]
    table = log.impressions.set_column(2, log.impressions.schema.field(2), [stretched])
    years = ImpressionLog("years", True, "UTC", log.tasks, table, log.items, log.users)
    stream = SampleStream(years, SampleConfig(tasks=CONFIG.tasks, days_max=30))
    assert 15 <= stream.facts.days <= 31
    assert stream.facts.day_start[-1] > 1000
    assert stream.day_rows.min() * 30 >= log.rows * 0.5
    assert stream.day_rows.sum() == log.rows
