import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.contract import Network, PagePlan, PagingModel, PagingTerm
from pocketrank.device.paging import FEATURES, PagingModelError, PagingState, UpliftPaging, features
from tests.device.paging.states import state

MODEL = PagingModel(
    bias=-0.01,
    terms=(
        PagingTerm(feature="best", weight=0.5, knot=0.45),
        PagingTerm(feature="best", weight=0.5, knot=0.1),
        PagingTerm(feature="shown", weight=0.01),
    ),
    plans=(
        PagePlan(size=10, consume=4, level=0.03, drop=0.08),
        PagePlan(size=30, consume=12, level=0.0, drop=0.03),
        PagePlan(size=60, consume=40, level=-0.03, drop=0.015),
    ),
)

numbers = st.floats(-5, 5)
knots = st.none() | st.floats(-1, 5)
values = st.one_of(st.just(math.nan), st.floats(-1, 1))
states = st.builds(
    PagingState,
    remaining=st.integers(0, 100),
    shown=st.integers(0, 100),
    age_ms=st.integers(0, 2000),
    ttl_ms=st.just(1000),
    compute_price=st.just(1.0),
    best=values,
    top=values,
    arrived=values,
    position=st.integers(0, 300),
    recent=values,
    network=st.sampled_from([None, *Network]),
    battery_saver=st.sampled_from([None, False, True]),
)


@st.composite
def models(draw: st.DrawFn) -> PagingModel:
    count = draw(st.integers(1, 5))
    drops = sorted(draw(st.lists(st.floats(0, 1), min_size=count, max_size=count, unique=True)), reverse=True)
    sizes = sorted(draw(st.lists(st.integers(1, 100), min_size=count, max_size=count)))
    plans = [
        PagePlan(size=size, consume=draw(st.integers(1, size)), level=draw(numbers), drop=drop)
        for size, drop in zip(sizes, drops, strict=True)
    ]
    terms = draw(st.lists(st.builds(PagingTerm, feature=st.sampled_from(FEATURES), weight=numbers, knot=knots), max_size=5))
    return PagingModel(bias=draw(numbers), terms=tuple(terms), plans=tuple(plans))


@given(models(), states, st.lists(st.floats(0, 50), min_size=2, max_size=6))
def test_the_dearer_a_page_the_less_often_and_the_larger_it_is_asked_for(
    model: PagingModel, seen: PagingState, prices: list[float]
) -> None:
    policy = UpliftPaging(model)
    decisions = [policy(seen._replace(compute_price=price)) for price in sorted(prices)]
    sizes = [decision.size for decision in decisions]
    assert sizes == sorted(sizes)
    if not any(math.isnan(v) for v in (seen.best, seen.top, seen.arrived)):
        asks = [decision.request for decision in decisions]
        assert asks == sorted(asks, reverse=True)


@given(models(), states)
def test_the_plan_is_the_best_of_all_at_the_price(model: PagingModel, seen: PagingState) -> None:
    known = features(seen)
    if known is None or seen.remaining == 0 or seen.age_ms >= seen.ttl_ms:
        return
    policy = UpliftPaging(model)
    margin = policy.gain(known) + max(plan.level - plan.drop for plan in model.plans)
    if abs(margin) > 1e-9:
        assert policy(seen).request == (margin > 0)


@given(models(), states, st.sampled_from([math.nan, math.inf, -math.inf, -3.0, 1e300]))
def test_no_price_that_a_server_may_send_breaks_it(model: PagingModel, seen: PagingState, price: float) -> None:
    decision = UpliftPaging(model)(seen._replace(compute_price=price))
    assert decision.size in {plan.size for plan in model.plans}


@given(models())
def test_a_model_survives_the_manifest(model: PagingModel) -> None:
    assert msgspec.json.decode(msgspec.json.encode(model), type=PagingModel) == model


@pytest.mark.parametrize(
    ("seen", "request_now", "reason", "size"),
    [
        (state(), False, "continue", 30),
        (state(best=0.3), True, "uplift", 30),
        (state(best=0.3, compute_price=9), False, "continue", 60),
        (state(best=0.3, compute_price=0), True, "uplift", 10),
        (state(remaining=0), True, "empty", 30),
        (state(age_ms=1000, compute_price=9), True, "stale", 60),
        (state(best=math.nan, shown=11), False, "continue", 30),
        (state(best=math.nan, shown=12), True, "consumed", 30),
        (PagingState(0, 0, 0, 0, 1.0), True, "empty", 30),
    ],
)
def test_it_asks_where_the_gain_is_worth_the_price(seen: PagingState, request_now: bool, reason: str, size: int) -> None:
    decision = UpliftPaging(MODEL)(seen)
    assert (decision.request, decision.reason, decision.size) == (request_now, reason, size)


def test_features_are_in_the_order_of_their_names() -> None:
    seen = state(remaining=1, shown=2, age_ms=30_000, ttl_ms=60_000, network=Network.CELLULAR, battery_saver=True)
    told = dict(zip(FEATURES, features(seen) or (), strict=True))
    assert told["best"] == 0.5
    assert told["left"] == math.log(2)
    assert told["age"] == 0.5
    assert told["position"] == math.log(4)
    assert (told["cellular"], told["battery_saver"]) == (1, 1)
    assert features(seen._replace(top=math.nan)) is None


def test_a_feature_of_another_sdk_is_refused() -> None:
    with pytest.raises(PagingModelError, match="weather"):
        UpliftPaging(msgspec.structs.replace(MODEL, terms=(PagingTerm(feature="weather", weight=1.0),)))
