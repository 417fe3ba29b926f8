from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import SampleConfig, Samples, build_samples
from pocketrank.cloud.data.schema import ImpressionLog
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
