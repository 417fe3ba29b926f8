"""The profile of training rows, from the samples of a small world. `test_train.py` has that of a whole run."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from pocketrank.cloud.data.features import FeatureConfig, Statistic
from pocketrank.cloud.data.sample_stream import SampleStream, WindowConfig, build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import IDS, ImpressionLog
from pocketrank.cloud.published.profile import Profile, ProfiledFeature
from pocketrank.cloud.training.profile import ProfileSample, _Reservoir, code_texts
from pocketrank.sdk_demo.world import TASK_WEIGHTS, World
from tests.sdk_demo.world.worlds import small

FEATURES = FeatureConfig(statistics=(Statistic(of="author", days=(7,), device=True), Statistic(of="item")))
CONFIG = SampleConfig(tasks=tuple(TASK_WEIGHTS), history_max=7, features=FEATURES)


@pytest.fixture(scope="module")
def log() -> ImpressionLog:
    return World(small(users=40, items=200)).simulate_log(seed=3)


@pytest.fixture(scope="module")
def samples(log: ImpressionLog) -> Samples:
    return build_samples(log, CONFIG)


def sampled(samples: Samples, size: int = 100_000) -> ProfileSample:
    sample = ProfileSample(samples, size=size)
    sample.add(samples, np.arange(len(samples.row_event)))
    return sample


def test_statistics_that_pages_carry_are_inputs(samples: Samples) -> None:
    columns = sampled(samples).columns
    expected = samples.event_statistics[samples.row_event, 0]
    np.testing.assert_array_equal(np.sort(columns["author_count_7d"]), np.sort(expected))
    assert not any(name.startswith("item_count") for name in columns)


def feature(profile: Profile, name: str) -> ProfiledFeature:
    (found,) = [one for one in profile.features if one.name == name]
    return found


def test_a_profile_is_that_of_the_rows_of_the_log(log: ImpressionLog, samples: Samples) -> None:
    """Recomputed from the tables."""
    profile = sampled(samples).profile(log.ids)
    rows = log.impressions.join(log.items.select(["item_id", "duration_ms", "category", "upload_ms"]), "item_id")
    duration, category = rows["duration_ms"].to_numpy().astype(np.float32), rows["category"].to_numpy().astype(np.int64)
    assert feature(profile, "duration_ms") == ProfiledFeature.fit("duration_ms", "candidate", duration)
    expected = ProfiledFeature.fit("category", "candidate", category)
    assert feature(profile, "category") == expected
    age = ((rows["impression_ms"].to_numpy() - rows["upload_ms"].to_numpy()) / 86_400_000).astype(np.float32)
    assert feature(profile, "age").rows == len(age)
    np.testing.assert_allclose(feature(profile, "age").edges, np.sort(age)[len(age) * np.arange(1, 10) // 10], rtol=1e-5)
    assert feature(profile, "item.known").coverage == feature(profile, "user.known").coverage == 1
    assert feature(profile, f"pxtr_{CONFIG.tasks[0]}").coverage == 0  # there was no ranker yet
    names = {f"pxtr_{task}" for task in CONFIG.tasks} | {
        "duration_ms",
        "age",
        "category",
        "author",
        "item.known",
        "author_count_7d",
    }
    assert {one.name for one in profile.features if one.of == "candidate"} == names


def test_a_page_counts_once_with_the_history_before_it(log: ImpressionLog, samples: Samples) -> None:
    sample = sampled(samples)
    impressions = log.impressions.sort_by([("user_id", "ascending"), ("impression_ms", "ascending")]).to_pylist()
    expected, done, past = [], set(), {}
    for row in impressions:
        before = past.setdefault(row["user_id"], [])
        if row["page_id"] not in done:
            done.add(row["page_id"])
            likes = [one["like"] for one in before[-7:]]
            expected.append((len(likes), np.float32(np.mean(likes)) if likes else np.nan))
        before.append(row)
    assert sample.pages == len(expected) > 100
    got = list(zip(sample.columns["history.length"], sample.columns["history.like"], strict=True))
    np.testing.assert_array_equal(sorted(got), sorted(expected))
    assert 0 < feature(sample.profile(log.ids), "history.like").counts[0] == sum(length == 0 for length, _ in expected)
    assert feature(sample.profile(log.ids), "history.length").coverage == 1


def test_windows_have_the_profile_of_the_whole(log: ImpressionLog, samples: Samples) -> None:
    stream = SampleStream(log, CONFIG, WindowConfig(rows=100, events=600))
    sample, parts = ProfileSample(stream.facts), 0
    for span in stream.spans():
        for shard in range(span.shards):
            part = span.build(shard)
            sample.add(part, np.arange(len(part.row_event)))
            span.done(part)
            parts += 1
    assert parts > 5
    assert sample.profile(log.ids) == sampled(samples).profile(log.ids)


def test_a_sample_is_bounded_and_of_all_parts() -> None:
    sample = _Reservoir(100)
    for part in range(10):
        sample.add(1000, lambda chosen, part=part: {"part": np.full(len(chosen), part), "row": chosen})  # type: ignore[misc]
    assert len(sample) == len(sample.columns["part"]) == 100
    assert len(np.unique(np.stack(list(sample.columns.values())), axis=1).T) == 100, "no row twice"
    counts = np.bincount(sample.columns["part"], minlength=10)
    assert counts.min() > 2
    assert counts.max() < 25


def test_a_large_log_is_sampled(samples: Samples) -> None:
    sample = sampled(samples, size=50)
    assert (sample.pages, len(sample.columns["age"]), len(sample.columns["request.hour"])) == (50, 50, 50)


def test_codes_have_the_texts_of_the_dictionaries(samples: Samples) -> None:
    authors = np.unique(samples.item_author)[1:3]
    own = samples.item_author_id[[int(np.flatnonzero(samples.item_author == code)[0]) for code in authors]]
    ids = pa.Table.from_pylist(
        [
            {"kind": "author_id", "code": int(own[0]), "text": "ana"},
            {"kind": "category", "code": 2, "text": "hats"},
            {"kind": "items.brand", "code": 2, "text": "acme"},
        ],
        schema=IDS,
    )
    assert code_texts(ids, samples, "author", authors) == ["ana", str(own[1])]
    assert code_texts(ids, samples, "category", np.array([1, 2])) == ["1", "hats"]
    assert code_texts(ids, samples, "brand", np.array([2, 3])) == ["acme", "3"]
    assert code_texts(ids, samples, "brand[1]", np.array([2, 3])) == ["acme", "3"]
    assert code_texts(ids, samples, "request.hour", np.array([1, 24])) == ["0", "23"]


def test_items_and_users_of_another_log_may_be_unknown(log: ImpressionLog, samples: Samples) -> None:
    items, users = samples.item_ids[:101], samples.user_ids[:31]
    sample = ProfileSample(samples, (items, users))
    sample.add(samples, np.arange(len(samples.row_event)))
    known = np.isin(log.impressions["item_id"].to_numpy(), items)
    profile = sample.profile(log.ids)
    assert feature(profile, "item.known").coverage == pytest.approx(known.mean())
    assert 0.5 < (feature(profile, "user.known").coverage or 0) < 0.95


def test_unknown_numbers_are_counted(log: ImpressionLog) -> None:
    items = log.items.set_column(
        log.items.schema.get_field_index("duration_ms"),
        log.items.schema.field("duration_ms"),
        pa.array([0] * 100 + log.items["duration_ms"].to_pylist()[100:], pa.int64()),
    )
    profile = sampled(build_samples(replace(log, items=items), CONFIG)).profile(log.ids)
    first = set(items["item_id"].to_pylist()[:100])
    unknown = sum(item in first for item in log.impressions["item_id"].to_pylist())
    assert feature(profile, "duration_ms").counts[0] == unknown > 0
