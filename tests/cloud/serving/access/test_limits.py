import itertools

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.serving.access.limits import (
    LimitsConfig,
    RateLimit,
    RequestLimits,
    TooManyError,
    address_of,
    cost_of_body,
    cost_of_feedback,
)
from tests.cloud.events import event


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def _taken(limits: RequestLimits, key: object, limit: RateLimit, calls_max: int = 1000) -> int:
    """Return the number of requests that are accepted before the first refusal."""
    for count in range(calls_max):
        try:
            limits(key, limit)
        except TooManyError:
            return count
    return calls_max


def test_a_burst_then_the_rate() -> None:
    clock = Clock()
    limits, limit = RequestLimits(clock=clock), RateLimit(2.0, 5)
    assert _taken(limits, "a", limit) == 5
    for _ in range(3):
        clock.now += 0.5
        assert _taken(limits, "a", limit) == 1
    clock.now += 1e9
    assert _taken(limits, "a", limit) == 5


def test_a_refusal_says_when_to_retry_and_costs_nothing() -> None:
    clock = Clock()
    limits, limit = RequestLimits(clock=clock), RateLimit(0.25, 1)
    limits("a", limit)
    clock.now += 1.5
    for _ in range(3):
        with pytest.raises(TooManyError) as caught:
            limits("a", limit)
        assert caught.value.retry_after_s == pytest.approx(2.5)
        assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": "3"})
    clock.now += caught.value.retry_after_s
    limits("a", limit)


def test_what_makes_more_work_takes_more_but_never_more_than_there_is() -> None:
    clock = Clock()
    limits, limit = RequestLimits(clock=clock), RateLimit(1.0, 10)
    limits("a", limit, 7)
    with pytest.raises(TooManyError):
        limits("a", limit, 4)
    assert _taken(limits, "a", limit) == 3
    clock.now += 10
    limits("a", limit, 1_000_000)  # else it could never be sent
    assert _taken(limits, "a", limit) == 0
    clock.now += 10
    assert _taken(limits, "a", limit) == 10


def test_what_a_device_sends_costs_a_request_and_what_fills_the_memory_costs_more() -> None:
    assert cost_of_body(bytes(3000)) == cost_of_feedback([]) == cost_of_feedback([event() for _ in range(10)]) == 0
    assert cost_of_body(bytes(1 << 20)) == 64
    assert cost_of_feedback([event() for _ in range(256)]) == 16
    assert cost_of_feedback([event(user_id=user) for user in range(100)]) == 99 + 6
    assert cost_of_feedback([event(experiment=str(name)) for name in range(10)]) == 9


def test_each_caller_has_its_own_bucket() -> None:
    limits, limit = RequestLimits(clock=Clock()), RateLimit(1.0, 3)
    assert [_taken(limits, key, limit) for key in ("a", "b", ("a", "device"))] == [3, 3, 3]


@given(
    per_s=st.floats(0.1, 1000),
    burst=st.integers(1, 50),
    gaps=st.lists(st.floats(0, 3), max_size=200),
)
def test_never_more_than_the_burst_and_the_rate(per_s: float, burst: int, gaps: list[float]) -> None:
    clock = Clock()
    limits, limit = RequestLimits(clock=clock), RateLimit(per_s, burst)
    times = []
    for gap in gaps:
        clock.now += gap
        try:
            limits("a", limit)
        except TooManyError:
            continue
        times.append(clock.now)
    for first, second in itertools.combinations(range(len(times)), 2):
        assert second - first + 1 <= burst + (times[second] - times[first]) * per_s + 1e-3


def test_memory_is_bounded_and_new_callers_reset_nobodys_bucket() -> None:
    clock = Clock()
    limits, limit = RequestLimits(LimitsConfig(callers_max=10), clock), RateLimit(1.0, 4)
    assert _taken(limits, "greedy", limit) == 4
    assert [_taken(limits, n, limit) for n in range(9)] == [4] * 9
    assert sum(_taken(limits, f"stranger {n}", limit) for n in range(100)) == 4  # of one bucket together
    assert limits.callers == 11
    assert _taken(limits, "greedy", limit) == 0
    clock.now += 4.0  # all are full again, and make room
    assert [_taken(limits, f"new {n}", limit) for n in range(20)] == [4] * 10 + [4] + [0] * 9  # the eleventh is of all others
    assert limits.callers <= 11


def test_a_full_bucket_makes_room_whenever_its_caller_was_first_seen() -> None:
    clock = Clock()
    limits, limit = RequestLimits(LimitsConfig(callers_max=2), clock), RateLimit(1.0, 4)
    for key in ("often", "once", "often", "often", "often"):
        limits(key, limit)
    clock.now += 2.0  # only the bucket of `once` is full again
    limits("new", limit)
    assert limits.callers == 2
    assert _taken(limits, "often", limit) == 2


@pytest.mark.parametrize(
    ("client", "key"),
    [
        (("192.0.2.7", 1), "192.0.2.7"),
        (("2001:db8:1:2:3:4:5:6", 1), "2001:db8:1:2::/64"),
        (("2001:db8:1:2:ffff::1", 9), "2001:db8:1:2::/64"),
        (("::ffff:192.0.2.7", 1), "192.0.2.7"),
        (("fe80::1%eth0", 1), "fe80::/64"),
        (("no:address", 1), "no:address"),
        (None, ""),
    ],
)
def test_the_addresses_of_one_customer_share_a_bucket(client: tuple[str, int] | None, key: str) -> None:
    assert address_of(client) == key


@pytest.mark.parametrize("text", [b"[0,1]", b"[-1,1]", b"[1,0]", b'{"per_s":1,"burst":1,"brust":2}', b'{"per_s":1}'])
def test_a_limit_that_makes_no_sense_is_refused(text: bytes) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=RateLimit)
