from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import SampleStream, WindowConfig, build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import HISTORY, ImpressionLog
from pocketrank.cloud.training.passes import Passes
from pocketrank.cloud.training.ranker import RankerTraining, RankerTrainingConfig
from pocketrank.sdk_demo.world import TASK_WEIGHTS, World
from tests.sdk_demo.world.worlds import small


@pytest.fixture(scope="module")
def log() -> ImpressionLog:
    whole = World(small(users=20, items=100)).simulate_log(seed=1)
    at, nobody = whole.impressions.schema.get_field_index("page_id"), pa.nulls(len(whole.impressions), pa.int64())
    without = whole.impressions.set_column(at, "page_id", nobody)
    return replace(whole, impressions=without, pages=whole.pages.slice(0, 0))


def trained(samples: Samples, second_cut: Samples | None = None) -> list[NDArray[np.float32]]:
    statistics = ItemStatistics(samples)
    training = RankerTraining(samples, statistics, RankerTrainingConfig(), learn_until=2, seed=0, rows=len(samples.row_event))
    return training.window(samples, second_cut)


def test_a_second_cut_is_scored_by_the_same_ranker_and_changes_nothing(log: ImpressionLog) -> None:
    config = SampleConfig(tasks=tuple(TASK_WEIGHTS))
    samples, shorter = build_samples(log, config), build_samples(log, replace(config, list_max=3))
    (alone,), same, both = trained(samples), trained(samples, samples), trained(samples, shorter)
    for result in (same, both):
        np.testing.assert_array_equal(result[0], alone)
    np.testing.assert_array_equal(same[1], same[0])
    assert both[1].shape == shorter.list_labels.shape
    # a row that is the first of its list in both cuts knows the same history; one further back knows more in the shorter
    long, short = alone[samples.row_list, samples.row_slot], both[1][shorter.row_list, shorter.row_slot]
    fresher = shorter.list_event[shorter.row_list] > samples.list_event[samples.row_list]
    assert fresher.any()
    np.testing.assert_allclose(short[~fresher], long[~fresher], atol=1e-6)
    assert (np.abs(short[fresher] - long[fresher]).max(1) > 1e-6).any()


def test_scores_of_a_shard_are_those_of_before_its_span(log: ImpressionLog) -> None:
    """Whichever shards were learned before: no score has seen a row of its own span."""
    stream = SampleStream(log, SampleConfig(tasks=tuple(TASK_WEIGHTS)), WindowConfig(events=log.rows - 1))
    (span,) = stream.spans()
    shards = [span.build(0), span.build(1)]
    assert all(len(samples.row_event) > 10 for samples in shards)
    assert not set(shards[0].list_user) & set(shards[1].list_user)

    def scores(order: Sequence[int]) -> dict[int, NDArray[np.float32]]:
        statistics = ItemStatistics(shards[0])
        statistics.enter(None)
        training = RankerTraining(shards[0], statistics, RankerTrainingConfig(), learn_until=99, seed=0, rows=log.rows)
        training.begin_span()
        return {shard: training.shard(shards[shard], span.first) for shard in order}

    one, other = scores([0, 1]), scores([1, 0, 0])
    np.testing.assert_array_equal(one[0], other[0])
    np.testing.assert_array_equal(one[1], other[1])


def test_all_events_from_before_the_log_are_learned_before_a_shard_is_scored(log: ImpressionLog, tmp_path: Path) -> None:
    users, items = log.users["user_id"].to_pylist(), log.items["item_id"].to_pylist()
    liked = {"user_id": users, "item_id": [items[:12]] * len(users), "long_view": [[True, False] * 6] * len(users)}
    history = pa.Table.from_pydict(liked | {"like": [[False] * 12] * len(users)}, schema=HISTORY)
    stream = SampleStream(
        replace(log, history=history), SampleConfig(tasks=tuple(TASK_WEIGHTS)), WindowConfig(events=log.rows - 1)
    )
    begin = partial(RankerTraining, config=RankerTrainingConfig(), learn_until=99, seed=0, rows=log.rows)
    Passes(stream).train_ranker(begin, tmp_path / "pxtr")

    (span,) = stream.spans()
    shards = [span.build(shard) for shard in range(span.shards)]
    statistics = ItemStatistics(shards[0])
    statistics.enter(None)
    for learned in (shards, shards[:1]):
        training = begin(shards[0], statistics)
        for samples in learned:
            assert (samples.list_day < 0).any()
            training.learn_history(samples)
        training.begin_span()
        scores = training.shard(shards[0], span.first)[shards[0].row_list, shards[0].row_slot]
        assert np.array_equal(scores, np.load(tmp_path / "pxtr" / "0-0.npy")) == (learned is shards)
