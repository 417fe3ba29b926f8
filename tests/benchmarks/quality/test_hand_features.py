from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from benchmarks.quality.hand_features import TreeConfig, Trees, hand_features
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.training.metrics import auc
from tests.benchmarks.quality.test_quality import TASKS, folder
from tests.cloud.data.folders import load


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    log = load(folder(tmp_path_factory.mktemp("hand") / "data"))
    return build_samples(log, SampleConfig(tasks=TASKS, time_zone="Asia/Shanghai", test_from=date(2022, 5, 1)))


def features(samples: Samples, *, fresh: bool = True) -> np.ndarray:
    scored = samples.with_pxtr(np.full((len(samples.row_event), len(TASKS)), 0.5, np.float32))
    return hand_features(scored, ItemStatistics(samples), fresh=fresh)


def test_a_row_knows_what_was_before_it_and_nothing_of_itself_or_later(samples: Samples) -> None:
    before = features(samples)
    event = samples.row_event[len(samples.row_event) // 2]
    history, labels = samples.event_history.copy(), samples.event_labels.copy()
    later = np.arange(len(history)) >= event
    history[later] = 1 - history[later]
    # what is labelled later is known from the next day on; test days know of no test row
    late = samples.event_day == samples.learn_until
    labels[late] = 1 - labels[late]
    after = features(replace(samples, event_history=history, event_labels=labels))
    known = samples.row_event <= event
    np.testing.assert_array_equal(after[known], before[known])
    assert (after[~known] != before[~known]).any()


def test_features_as_of_the_request_know_nothing_since(samples: Samples) -> None:
    fresh, stale = features(samples), features(samples, fresh=False)
    first = samples.row_event == samples.list_event[samples.row_list]
    np.testing.assert_array_equal(stale[first], fresh[first])
    assert (stale[~first] != fresh[~first]).any(1).all()
    history = samples.event_history.copy()
    request = samples.list_event[samples.row_list]
    at = int(np.flatnonzero(samples.row_event > request + 1)[0])
    since = np.arange(len(history)) >= request[at]
    history[since] = 1 - history[since]
    np.testing.assert_array_equal(features(replace(samples, event_history=history), fresh=False)[at], stale[at])


def test_trees_find_what_decides() -> None:
    rng = np.random.default_rng(0)
    x = rng.random((4000, 3)).astype(np.float32)
    y = np.stack([x[:, 0] > 0.5, x[:, 1] > 0.5], 1).astype(np.float32)
    y[::7, 0] = np.nan
    for objective in ("lambdarank", "binary"):
        trees = Trees(TreeConfig(objective, 0.1, 20))
        trees.fit(x, y, np.arange(len(x)), seed=0)
        scores = trees.predict(x)
        for k in (0, 1):
            found = auc((x[:, k] > 0.5).astype(float), scores[:, k])
            assert found is not None
            assert found > 0.99
