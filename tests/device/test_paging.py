import pytest

from device.paging import FixedPaging, PagingState


def _state(**changes: float) -> PagingState:
    fields = {"remaining": 20, "shown": 0, "age_ms": 0, "ttl_ms": 1000, "compute_price": 1.0}
    return PagingState(**fields | changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "request_now", "reason"),
    [
        (_state(), False, "continue"),
        (_state(shown=9), False, "continue"),
        (_state(shown=10), True, "consumed"),
        (_state(remaining=0, shown=3), True, "empty"),
        (_state(age_ms=999), False, "continue"),
        (_state(age_ms=1000), True, "stale"),
    ],
)
def test_fixed_paging(state: PagingState, request_now: bool, reason: str) -> None:
    decision = FixedPaging(consume=10, size=30)(state)
    assert (decision.request, decision.reason, decision.size) == (request_now, reason, 30)


@pytest.mark.parametrize(("consume", "size"), [(0, 30), (10, 0)])
def test_numbers_below_one_are_refused(consume: int, size: int) -> None:
    with pytest.raises(ValueError, match="expected consume >= 1"):
        FixedPaging(consume, size)
