import math
from pathlib import Path

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank.cloud.published.profile import CODES_MAX, NOISE_MAX, Profile, ProfiledFeature, drift, psi
from pocketrank.cloud.published.published import PublishedError

RNG = np.random.default_rng(0)


def number(values: object, name: str = "x") -> ProfiledFeature:
    return ProfiledFeature.fit(name, "candidate", np.asarray(values, np.float32))


def profile(*features: ProfiledFeature, pages: int = 1000) -> Profile:
    return Profile(pages=pages, features=features)


def changed(before: NDArray[np.float32], after: NDArray[np.float32]) -> float:
    """The PSI of a number."""
    feature = number(before)
    return psi(feature.counts, feature.counted(after).counts)


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=12))
def test_the_index_is_the_sum_over_bins(counts: list[tuple[int, int]]) -> None:
    training, serving = zip(*counts, strict=True)
    expected = 0.0
    for a, b in counts:
        p, q = a / sum(training), b / sum(serving)
        expected += (q - p) * math.log(q / p)
    assert psi(training, serving) == pytest.approx(expected, abs=1e-12)
    assert psi(serving, training) == pytest.approx(expected, abs=1e-12)
    assert psi(training, training) == 0


def test_an_empty_bin_counts_as_a_ten_thousandth() -> None:
    assert psi([500, 500, 0], [500, 0, 500]) == pytest.approx(2 * (0.5 - 1e-4) * math.log(0.5 / 1e-4))


@given(
    arrays(np.float32, st.integers(0, 60), elements=st.floats(width=32)), arrays(np.float32, 20, elements=st.floats(width=32))
)
def test_every_value_is_in_one_bin(values: NDArray[np.float32], others: NDArray[np.float32]) -> None:
    """Infinite and unknown ones, too."""
    feature = number(values)
    assert feature.rows == len(values)
    assert feature.counts[0] == np.isnan(values).sum()
    other = feature.counted(others)
    assert (other.rows, other.counts[0]) == (20, np.isnan(others).sum())
    assert len(feature.labels()) == feature.bins == len(feature.counts)
    profile(feature).check("here")
    assert msgspec.json.decode(msgspec.json.encode(profile(feature)), type=Profile) == profile(feature)


def test_bins_are_deciles_with_the_unknown_apart() -> None:
    values = np.append(RNG.permutation(1000), [np.nan] * 250)
    feature = number(values)
    assert feature.edges == tuple(range(100, 1000, 100))
    assert feature.counts == (250, 101, *[100] * 8, 99)
    assert feature.coverage == 0.8
    assert feature.labels()[:3] == ["unknown", "≤ 100", "100 to 200"]
    assert feature.labels()[-1] == "> 900"


def test_infinite_values_are_in_the_outer_bins() -> None:
    feature = number(range(100))
    assert feature.counted(np.array([np.inf, np.inf, -np.inf, np.nan])).counts == (1, 1, *[0] * 8, 2)
    assert number([np.inf, -np.inf, np.nan]).counts == (1, 2)
    assert number([np.inf]).labels() == ["unknown", "known"]


@pytest.mark.parametrize(("rate", "other"), [(0.95, 0.5), (0.05, 0.5), (1.0, 0.7), (0.0, 0.3)])
def test_a_number_of_few_values_has_a_bin_for_each(rate: float, other: float) -> None:
    def flags(share: float) -> NDArray[np.float32]:
        return (np.arange(1000) < 1000 * share).astype(np.float32)

    p, q = (np.clip([rate, 1 - rate], 1e-4, 1), np.array([other, 1 - other]))
    assert changed(flags(rate), flags(other)) == pytest.approx(((q - p) * np.log(q / p)).sum(), rel=1e-3)
    assert changed(flags(rate), flags(rate)) == 0


def test_a_constant_that_becomes_less_is_found() -> None:
    assert number([3] * 10).labels() == ["unknown", "< 3", "3", "> 3"]
    assert number([0] * 5 + list(range(5))).labels() == ["unknown", "< 0", "0", "0 to 1", "1 to 2", "2 to 3", "3 to 4", "> 4"]
    assert number([0] * 3 + [1.5] + [2] * 5 + [3]).labels() == [
        "unknown",
        "< 0",
        "0",
        "0 to 1.5",
        "1.5 to < 2",
        "2",
        "2 to 3",
        "> 3",
    ]
    assert changed(np.full(50, 3, np.float32), np.full(50, 2.5, np.float32)) > 10


def test_a_category_has_bins_for_its_frequent_codes() -> None:
    codes = np.repeat(np.arange(40), np.arange(40) + 1).astype(np.int32)  # code 39 is the most frequent, and 0 the unknown
    feature = ProfiledFeature.fit("x", "candidate", codes)
    assert feature.codes == tuple(range(40 - CODES_MAX, 40))
    assert feature.counts[:2] == (1, 40 - CODES_MAX + 1)
    assert feature.counts[-1] == sum(range(2, 40 - CODES_MAX + 1))
    assert feature.counted(np.array([0, -3, 39, 16, 15, 99])).counts == (2, 1, *[0] * (CODES_MAX - 2), 1, 2)
    assert feature.labels()[0::25] == ["unknown", "others"]
    nothing = ProfiledFeature.fit("x", "page", np.zeros(3, np.int64))
    assert (nothing.codes, nothing.counts, nothing.counted(np.array([7])).counts) == ((), (3, 0), (0, 1))


@pytest.mark.parametrize(
    ("shift", "verdict"), [(0.0, "stable"), (0.25, "stable"), (0.4, "moderate"), (0.7, "large"), (5, "large")]
)
def test_a_verdict_is_by_the_usual_thresholds(shift: float, verdict: str) -> None:
    values = RNG.normal(size=100_000).astype(np.float32)
    training = profile(number(values))
    report = drift(training, training.counted({"x": values + np.float32(shift)}, 1000))
    one = report["features"]["x"]
    assert one["verdict"] == verdict
    assert one["psi"] == pytest.approx(shift**2, rel=0.15, abs=1e-9) or shift > 1  # that of two normal distributions
    assert one["training"]["rows"] == one["serving"]["rows"] == 100_000
    assert sum(one["serving"]["shares"]) == pytest.approx(1)


def test_the_largest_change_is_first_and_what_is_not_compared_last() -> None:
    values = RNG.normal(size=5000).astype(np.float32)
    training = profile(*(number(values, name) for name in "abcd"))
    shifted = {"a": values, "c": np.where(values > 0, np.nan, values), "d": values + 1}
    report = drift(training, training.counted(shifted, 1000))
    assert list(report["features"]) == ["c", "d", "a", "b"]
    assert report["features"]["c"]["serving"]["coverage"] == pytest.approx((values <= 0).mean())
    assert report["features"]["a"]["psi"] == 0
    assert (report["features"]["b"]["verdict"], report["features"]["b"]["serving"]) == ("not counted", None)
    assert report["pages"] == {"training": 1000, "serving": 1000}


@pytest.mark.parametrize(("pages", "verdict"), [(0, "too few"), (100, "too few"), (219, "too few"), (220, "stable")])
def test_few_pages_have_no_verdict(pages: int, verdict: str) -> None:
    """For 10 bins and 1000 pages of training: 9 (1 / 1000 + 1 / pages) is at most 0.05."""
    values = RNG.normal(size=10_000).astype(np.float32)
    training = profile(number(values), pages=1000)
    sample = values[: 10 * pages]
    report = drift(training, training.counted({"x": sample}, pages))
    one = report["features"]["x"]
    assert (one["verdict"], one["psi"] is None) == (verdict, verdict == "too few")
    assert one["serving"]["rows"] == len(sample)


def test_samples_of_a_verdict_are_large_enough() -> None:
    """With as few pages as are compared, the index of equal distributions is below half of the first threshold in the mean."""
    training = profile(number(RNG.normal(size=100_000)), pages=100_000)
    pages = next(
        n for n in range(1, 1000) if drift(training, replace(training, pages=n))["features"]["x"]["verdict"] != "too few"
    )
    assert 150 < pages < 300
    indexes = [changed(RNG.normal(size=100_000), RNG.normal(size=pages)) for _ in range(30)]
    assert NOISE_MAX / 2 < np.mean(indexes) < 1.3 * NOISE_MAX
    assert np.mean(np.array(indexes) < 0.1) > 0.9


def test_counts_in_other_bins_are_refused() -> None:
    with pytest.raises(PublishedError, match="Expected the bins of the run's profile, got others - at `x`"):
        drift(profile(number([1, 2, 3])), profile(number([1, 2, 4])))


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    written = profile(
        number(RNG.normal(size=100)), ProfiledFeature.fit("größe", "page", np.array([1, 2, 2])), number([], "nothing")
    )
    written.save(tmp_path)
    assert Profile.open(tmp_path) == written


def test_a_run_may_have_no_profile(tmp_path: Path) -> None:
    assert Profile.open(tmp_path) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "Expected the profile of a run's inputs, got: "),
        (b"\xff", "Expected the profile of a run's inputs, got: "),
        (b'{"format": 2, "pages": 1, "features": []}', "Expected a profile of format 1, got 2"),
        (b'{"pages": 1, "features": [{"name": "x", "of": "page", "counts": [1]}]}', "and 2 counts, got others - at `x` in "),
        (
            b'{"pages": 1, "features": [{"name": "x", "of": "page", "edges": [2, 1], "counts": [1, 1, 1, 1]}]}',
            "others - at `x`",
        ),
        (b'{"pages": 1, "features": [{"name": "x", "of": "page", "codes": [1], "counts": [1, 1, 1]}]}', "others - at `x`"),
        (b'{"pages": 1, "features": [{"name": "x", "of": "page", "counts": [1, -1]}]}', "and 2 counts, got others"),
    ],
)
def test_a_damaged_profile_is_refused(tmp_path: Path, text: bytes, message: str) -> None:
    (tmp_path / "profile.json").write_bytes(text)
    with pytest.raises(PublishedError, match=message):
        Profile.open(tmp_path)
