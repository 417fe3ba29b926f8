from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reliability.released import NOW_MS, release_of
from pocketrank.device.bundle.files import ReleaseError
from pocketrank.device.contract import Release, in_rollout
from pocketrank.device.updates.release import follow

LAST = release_of(b"m", 5, number=9)


@settings(max_examples=50)
@given(st.text(max_size=20), st.text(max_size=20), st.floats(0, 100), st.floats(0, 100))
def test_who_is_in_stays_in_as_a_rollout_grows(device: str, salt: str, a: float, b: float) -> None:
    if in_rollout(device, salt, min(a, b)):
        assert in_rollout(device, salt, max(a, b))
    assert in_rollout(device, salt, 100)
    assert not in_rollout(device, salt, 0)


def test_a_rollout_reaches_its_share_and_each_bundle_another_one() -> None:
    first, second = ({i for i in range(4_000) if in_rollout(f"device-{i}", salt, 10)} for salt in ("small/8", "small/9"))
    assert 340 < len(first) < 460
    assert 340 < len(second) < 460
    assert len(first & second) < 80


@pytest.mark.parametrize(
    "release",
    [LAST, release_of(b"m", 5, number=10), release_of(b"n", 6, number=10), release_of(b"m", 5, number=10, kill=True)],
    ids=["the_same", "same_bundle", "next_bundle", "kill"],
)
def test_later_releases_are_followed(release: Release) -> None:
    follow(release, LAST, NOW_MS)
    follow(release, None, NOW_MS)


@pytest.mark.parametrize(
    ("release", "message"),
    [
        (release_of(b"m", 5, number=10, created_ms=0, expires_ms=NOW_MS), "a time before"),
        (release_of(b"m", 5, number=8), "a serial above 9, or the same release, got 8"),
        (release_of(b"m", 5, number=9, kill=True), "a serial above 9"),
        (release_of(b"m", 4, number=10), "a bundle serial of at least 5, got 4"),
        (release_of(b"n", 5, number=10), "the same bundle 5 as before"),
    ],
    ids=["expired", "older", "another_of_the_same_serial", "older_bundle", "another_bundle_of_the_same_serial"],
)
def test_releases_that_go_back_are_refused(release: Release, message: str) -> None:
    with pytest.raises(ReleaseError, match=message):
        follow(release, LAST, NOW_MS)


@pytest.mark.parametrize(
    "changes", [{"number": 0}, {"number": 1 << 53}, {"rollout": 101.0}, {"rollout": float("nan")}, {"expires_ms": NOW_MS}]
)
def test_numbers_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        release_of(b"m", 5, **changes)
