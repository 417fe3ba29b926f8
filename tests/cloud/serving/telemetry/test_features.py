"""Inputs of pages of a small run, counted beside a profile of the same requests."""

import math

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest

from pocketrank.cloud.pipeline.config import PageConfig
from pocketrank.cloud.published.profile import Profile, ProfiledFeature, drift
from pocketrank.cloud.serving.telemetry.features import DriftConfig, FeatureDrift
from pocketrank.cloud.serving.telemetry.shared_metrics import PLACE, SharedCounts, shared_metrics
from tests.cloud.serving.profiles import REQUESTS, Made, SeenInputs, made_pages
from tests.cloud.serving.telemetry.test_metrics import samples
from tests.cloud.small_published import SmallRun, small_run

DAY_S = 86_400.0
ALL = DriftConfig(stride=1, window_s=DAY_S)


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    return small_run(tmp_path_factory.mktemp("drift") / "run")


@pytest.fixture(scope="module")
def made(run: SmallRun) -> Made:
    return made_pages(run.folder) * 8


@pytest.fixture(scope="module")
def profile(made: Made) -> Profile:
    return SeenInputs(made).profile()


def columns(made: Made) -> set[str]:
    sent = made[0][1].candidates
    return {*sent.floats.names, *sent.categories.names}


def serving(
    run: SmallRun,
    profile: Profile | None,
    made: Made,
    config: DriftConfig = ALL,
    clock: Clock | None = None,
) -> FeatureDrift:
    features = FeatureDrift(config, clock or Clock())
    features.serve("a", profile, run.record, columns(made))
    return features


def served(features: FeatureDrift) -> Profile:
    found = features.profiles()
    assert found is not None
    return found.serving


def exposed(features: FeatureDrift) -> dict[str, float]:
    registry = CollectorRegistry()
    registry.register(features)
    return samples(generate_latest(registry).decode())


def test_pages_are_counted_as_the_same_pages_were_in_the_profile(run: SmallRun, profile: Profile, made: Made) -> None:
    features = serving(run, profile, made)
    for query, page in made:
        features(query, page)
    assert served(features) == profile
    report = drift(profile, served(features))
    assert {one["psi"] for one in report["features"].values()} == {0.0}
    assert (
        len(report["features"]) == 2 + 3 + 2 + 1 + 2 + 5 + 2
    )  # scores, numbers, codes, known ones, of the history, the request
    metrics = exposed(features)
    assert {name: metrics[f"feature_drift {name}"] for name in report["features"]} == dict.fromkeys(report["features"], 0.0)
    assert metrics["feature_coverage user.known serving"] == metrics["feature_coverage user.known training"] == 0.8
    assert metrics["feature_coverage request.scene serving"] == 0.5
    assert metrics["feature_coverage duration_ms training"] == 1
    assert (metrics["feature_pages serving"], metrics["feature_pages training"]) == (480, 480)


def test_a_shifted_column_is_reported_and_no_other(run: SmallRun, profile: Profile, made: Made) -> None:
    """In training durations were a third of what they are, and half of the second number was unknown."""
    seen = SeenInputs(made)
    seen.of_candidate["duration_ms"] = [value / 3 for value in seen.of_candidate["duration_ms"]]
    seen.of_candidate["age_days"] = [np.nan if n % 2 else value for n, value in enumerate(seen.of_candidate["age_days"])]
    features = serving(run, seen.profile(), made)
    for query, page in made:
        features(query, page)
    metrics = exposed(features)
    assert metrics["feature_drift duration_ms"] > 1
    assert metrics["feature_drift age_days"] > 1
    assert (metrics["feature_coverage age_days training"], metrics["feature_coverage age_days serving"]) == (0.5, 1)
    assert [name for name, value in metrics.items() if name.startswith("feature_drift") and value != 0] == [
        name for name in metrics if name in ("feature_drift duration_ms", "feature_drift age_days")
    ]


def test_one_page_in_so_many_is_counted(run: SmallRun, profile: Profile, made: Made) -> None:
    features = serving(run, profile, made, DriftConfig(stride=7))
    counted = []
    for query, page in made[:50]:
        before = served(features).pages
        features(query, page)
        counted.append(served(features).pages - before)
    assert counted == [1, 0, 0, 0, 0, 0, 0] * 7 + [1]


def test_few_pages_have_no_index(run: SmallRun, profile: Profile, made: Made) -> None:
    features = serving(run, profile, made)
    metrics = exposed(features)
    assert math.isnan(metrics["feature_drift duration_ms"])
    assert math.isnan(metrics["feature_coverage duration_ms serving"])
    assert metrics["feature_pages serving"] == 0
    for query, page in made[:100]:
        features(query, page)
    metrics = exposed(features)
    assert math.isnan(metrics["feature_drift duration_ms"])
    assert metrics["feature_coverage duration_ms serving"] == 1


def test_pages_are_counted_until_the_window_has_passed(run: SmallRun, profile: Profile, made: Made) -> None:
    clock = Clock()
    clock.now = 6000.0
    features = serving(run, profile, made, DriftConfig(stride=1, window_s=600, buckets=6), clock)
    counts = []
    for _ in range(7):
        features(*made[0])
        counts.append(served(features).pages)
        clock.now += 100
    assert counts == [1, 2, 3, 4, 5, 6, 6]
    clock.now += 300
    assert served(features).pages == 2
    features(*made[1])
    assert served(features).pages == 3
    clock.now += 599
    assert served(features).pages == 1
    clock.now += 1e9
    assert served(features) == profile.counted(
        {one.name: np.zeros(0) for one in profile.features if one.name != "request.hour"}, pages=0
    )


def test_the_hour_is_compared_over_days_alone(run: SmallRun, profile: Profile, made: Made) -> None:
    features = serving(run, profile, made, DriftConfig(stride=1, window_s=DAY_S - 1))
    assert {one.name for one in profile.features} - {one.name for one in served(features).features} == {"request.hour"}
    assert drift(profile, served(features))["features"]["request.hour"]["verdict"] == "not counted"
    assert "feature_drift request.hour" not in exposed(features)


def test_a_run_without_a_profile_has_no_metrics(run: SmallRun, made: Made) -> None:
    features = serving(run, None, made)
    features(*made[0])
    features.flush()
    assert features.profiles() is None
    assert exposed(features) == {}


def test_inputs_that_serving_does_not_know_are_left_out(run: SmallRun, profile: Profile, made: Made) -> None:
    own = [ProfiledFeature.fit(name, of, np.arange(9.0)) for name, of in (("history.buy", "page"), ("price", "candidate"))]  # type: ignore[arg-type]
    features = serving(run, Profile(pages=480, features=(*profile.features, *own)), made)
    for query, page in made:
        features(query, page)
    assert served(features) == profile


def test_another_run_starts_anew(run: SmallRun, profile: Profile, made: Made) -> None:
    features = serving(run, profile, made, DriftConfig(stride=3))
    features(*made[0])
    other = Profile(pages=9, features=(ProfiledFeature.fit("duration_ms", "candidate", np.array([1.0])),))
    features.serve("b", other, run.record, columns(made))
    assert served(features).pages == 0
    features(*made[1])
    found = features.profiles()
    assert found is not None
    assert (found.run, found.training, found.serving.pages, len(found.serving.features)) == ("b", other, 1, 1)


def test_columns_that_pages_do_not_have_are_left_out(run: SmallRun, profile: Profile) -> None:
    made = made_pages(run.folder, REQUESTS[:1], PageConfig(features=("age", "author")))
    features = serving(run, profile, made)
    features(*made[0])
    assert {one.name for one in served(features).features if one.of == "candidate"} == {"age", "author", "item.known"}


def test_the_counts_of_all_workers_are_added_up(
    run: SmallRun, profile: Profile, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    with shared_metrics() as shared:

        def worker(place: int) -> FeatureDrift:
            for name, value in shared.environment(place).items():
                monkeypatch.setenv(name, value)
            return serving(run, profile, made)

        first, second = worker(0), worker(1)
        for n, (query, page) in enumerate(made):
            (first if n % 3 else second)(query, page)
        first.flush()
        assert served(first).pages == 320, "the second has not passed its counts on"
        assert served(second) == profile
        assert served(first) == profile
        second.serve("b", profile, run.record, columns(made))
        second(*made[0])
        assert served(second).pages == 1, "the first serves another run"
        assert served(first).pages == 320
        shared.died(0)
        replaced = worker(0)
        replaced.serve("b", profile, run.record, columns(made))
        replaced(*made[1])
        assert served(replaced).pages == 2


def test_counts_of_another_key_are_no_part_of_a_total(monkeypatch: pytest.MonkeyPatch) -> None:
    with shared_metrics() as shared:
        counts = []
        for place in range(3):
            for name, value in shared.environment(place).items():
                monkeypatch.setenv(name, value)
            counts.append(SharedCounts("things"))
        one, other = (bytes([n] * SharedCounts.KEY_BYTES) for n in (1, 2))
        counts[0].write(one, np.array([1, 2]))
        counts[1].write(one, np.array([10, 20]))
        counts[2].write(other, np.array([5, 6, 7]))
        assert counts[0].total(one).tolist() == [11, 22]
        assert counts[2].total(other).tolist() == [5, 6, 7]
        counts[1].write(other, np.array([1, 1, 1]))
        assert counts[0].total(one).tolist() == [1, 2]
        assert counts[1].total(other).tolist() == [6, 7, 8]
    monkeypatch.delenv(PLACE)
    alone = SharedCounts("things")
    alone.write(one, np.array([4]))
    assert alone.total(one).tolist() == [4]


@pytest.mark.parametrize("wrong", [{"stride": 0}, {"window_s": 0.0}, {"window_s": math.nan}, {"buckets": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected stride, buckets >= 1"):
        DriftConfig(**wrong)  # type: ignore[arg-type]
