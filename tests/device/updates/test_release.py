from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reliability.released import NOW_MS, release_of
from pocketrank.device.bundle.files import ExpiredReleaseError, FutureReleaseError, ReleaseError
from pocketrank.device.contract import Release, in_rollout
from pocketrank.device.updates.release import AHEAD_MAX_MS, at_least, follow

DAY_MS = 86_400_000
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


@pytest.mark.parametrize("ahead_ms", [AHEAD_MAX_MS + 1, 365 * DAY_MS, 1 << 52])
def test_a_release_dated_ahead_is_refused_and_one_within_two_days_is_not(ahead_ms: int) -> None:
    def dated(ms: int) -> Release:
        return release_of(b"m", 5, number=10, created_ms=NOW_MS + ms, expires_ms=NOW_MS + ms + DAY_MS)

    with pytest.raises(FutureReleaseError, match="2 days after this device's clock"):
        follow(dated(ahead_ms), LAST, NOW_MS)
    with pytest.raises(FutureReleaseError):
        follow(dated(ahead_ms), None, NOW_MS)
    assert follow(dated(AHEAD_MAX_MS), LAST, NOW_MS).serial == 10


@pytest.mark.parametrize("created_ms", [0, NOW_MS - 30 * DAY_MS, NOW_MS + 365 * DAY_MS, (1 << 53) - 9])
def test_a_kill_is_followed_whatever_its_dates(created_ms: int) -> None:
    kill = release_of(b"m", 5, number=10, created_ms=created_ms, expires_ms=created_ms + 1, kill=True)
    assert follow(kill, LAST, NOW_MS) == kill
    assert follow(kill, None, NOW_MS) == kill
    assert follow(kill, kill, NOW_MS) == kill
    for number in (8, 9):
        with pytest.raises(ReleaseError, match="a serial above 9"):
            follow(msgspec.structs.replace(kill, serial=number), LAST, NOW_MS)
    # The release that ends the kill is followed, however short-lived it is.
    short = release_of(b"m", 5, number=11, created_ms=NOW_MS, expires_ms=NOW_MS + 1)
    assert follow(short, kill, NOW_MS) == short


@pytest.mark.parametrize("clock_ms", [0, NOW_MS - 3 * 365 * DAY_MS])
def test_a_device_that_is_years_behind_follows_kills_only(clock_ms: int) -> None:
    with pytest.raises(FutureReleaseError):
        follow(release_of(b"m", 5, number=10), LAST, clock_ms)
    assert follow(release_of(b"m", 5, number=10, kill=True), LAST, clock_ms).kill


@pytest.mark.parametrize(("manifest", "serial"), [(b"m", 4), (b"n", 5)], ids=["older", "another_of_the_same_serial"])
def test_a_kill_that_names_another_bundle_is_followed_and_lowers_no_floor(manifest: bytes, serial: int) -> None:
    kill = release_of(manifest, serial, number=10, kill=True)
    followed = follow(kill, LAST, NOW_MS)
    assert (followed.kill, followed.serial, followed.bundle) == (True, 10, LAST.bundle)
    assert follow(kill, followed, NOW_MS) == followed
    with pytest.raises(ReleaseError, match="a bundle serial of at least 5"):
        follow(release_of(b"m", 4, number=11), followed, NOW_MS)


def test_a_release_dated_ahead_that_was_followed_once_locks_no_other_out() -> None:
    ahead = release_of(b"m", 5, number=9, created_ms=NOW_MS + 365 * DAY_MS, expires_ms=NOW_MS + 372 * DAY_MS)
    assert at_least(NOW_MS, ahead) == NOW_MS + AHEAD_MAX_MS
    later = release_of(b"m", 5, number=10)
    assert follow(later, ahead, NOW_MS) == later
    with pytest.raises(ExpiredReleaseError):  # within two days the clock is held to the date
        follow(release_of(b"m", 5, number=10, created_ms=0, expires_ms=NOW_MS + 5), ahead, NOW_MS)


@pytest.mark.parametrize(
    "changes", [{"number": 0}, {"number": 1 << 53}, {"rollout": 101.0}, {"rollout": float("nan")}, {"expires_ms": NOW_MS}]
)
def test_numbers_out_of_range(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected"):
        release_of(b"m", 5, **changes)
