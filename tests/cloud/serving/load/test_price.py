import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.cloud.serving.load.price import ComputePrice, PriceConfig, price_of

loads = st.floats(0, 1e6)


@given(loads, loads)
def test_the_price_never_falls_as_load_rises_and_stays_within_its_bounds(one: float, other: float) -> None:
    config = PriceConfig()
    low, high = sorted((one, other))
    assert config.price_min <= price_of(low) <= price_of(high) <= config.price_max


def test_a_page_costs_one_at_normal_load_and_three_at_three_times_that() -> None:
    assert price_of(0) == price_of(0.5) == price_of(1) == 1
    assert price_of(3) == 3


def test_the_price_follows_pages_that_wait_and_forgets_them() -> None:
    now = [0.0]
    price = ComputePrice(PriceConfig(normal=2.0, memory_s=10.0), clock=lambda: now[0])
    for _ in range(8):
        price.enter()
    assert price() == 1, "a burst of no length is no load"
    now[0] = 10.0
    assert price() == pytest.approx(4 * (1 - math.exp(-1)))
    now[0] = 1000.0
    assert price() == pytest.approx(4)
    for _ in range(8):
        price.leave()
    now[0] = 2000.0
    assert price() == 1


def test_load_beyond_the_highest_price_is_forgotten_as_soon_as_the_load_of_that_price() -> None:
    now, prices = [0.0], []
    for pages in (6, 1000):
        now[0] = 0.0
        price = ComputePrice(PriceConfig(normal=2.0, price_max=3.0, memory_s=10.0), clock=lambda: now[0])
        for _ in range(pages):
            price.enter()
        now[0] = 1000.0
        assert price() == pytest.approx(3.0)
        for _ in range(pages):
            price.leave()
        now[0] += 10.0 * math.log(2.0)
        prices.append(price())
    assert prices == pytest.approx([1.5, 1.5])


def test_the_price_is_the_same_however_often_it_is_asked_for() -> None:
    now = [0.0]
    seldom, often = (ComputePrice(clock=lambda: now[0]) for _ in range(2))
    for price in (seldom, often):
        for _ in range(5):
            price.enter()
    for _ in range(100):
        now[0] += 0.1
        often()
        assert often() >= 1
    assert seldom() == pytest.approx(often())
    assert seldom() == pytest.approx(5 * (1 - math.exp(-1)))


def test_load_is_averaged_over_time_whenever_pages_enter_and_leave() -> None:
    now = [0.0]
    price = ComputePrice(PriceConfig(memory_s=1e-3), clock=lambda: now[0])
    for entered, left in ((4.0, 10.0), (2.0, 8.0), (2.0, 8.0), (5.0, 5.5)):
        start = now[0]
        now[0] = start + entered
        for _ in range(5):
            price.enter()
        now[0] = start + left
        for _ in range(5):
            price.leave()
        now[0] = start + 10.0
        assert price() == pytest.approx(max(1.0, 5 * (left - entered) / 10.0))


def test_the_price_never_leaves_its_bounds() -> None:
    config = PriceConfig(normal=2.0, price_min=0.25, price_max=4.0)
    assert [price_of(load, config) for load in (0.0, 0.5, 1.0, 8.0, 9.0)] == [0.25, 0.25, 0.5, 4.0, 4.0]


def test_a_clock_that_goes_back_does_no_harm() -> None:
    now = [10.0]
    price = ComputePrice(clock=lambda: now[0])
    price.enter()
    now[0] = 0.0
    assert price() == 1


@pytest.mark.parametrize(
    "wrong", [{"normal": 0.0}, {"price_min": 0.0}, {"price_max": 0.5}, {"price_max": math.inf}, {"memory_s": 0.0}]
)
def test_numbers_that_make_no_price_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected normal"):
        PriceConfig(**wrong)
