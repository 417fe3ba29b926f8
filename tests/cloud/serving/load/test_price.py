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


def test_normal_load_costs_one_and_thrice_that_three() -> None:
    assert price_of(0) == price_of(0.5) == price_of(1) == 1
    assert price_of(3) == 3


def test_the_price_follows_pages_that_wait_and_forgets_them() -> None:
    now = [0.0]
    price = ComputePrice(2, PriceConfig(memory_s=10.0), clock=lambda: now[0])
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


def test_a_clock_that_goes_back_does_no_harm() -> None:
    now = [10.0]
    price = ComputePrice(1, clock=lambda: now[0])
    price.enter()
    now[0] = 0.0
    assert price() == 1


@pytest.mark.parametrize(
    "wrong", [{"normal": 0.0}, {"price_min": 0.0}, {"price_max": 0.5}, {"price_max": math.inf}, {"memory_s": 0.0}]
)
def test_numbers_that_make_no_price_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected normal"):
        PriceConfig(**wrong)
