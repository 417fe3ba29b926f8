import pytest

from pocketrank.device.paging import FixedPaging, PagingState
from tests.device.paging.states import state


@pytest.mark.parametrize(
    ("seen", "request_now", "reason"),
    [
        (state(), False, "continue"),
        (state(shown=9), False, "continue"),
        (state(shown=10), True, "consumed"),
        (state(remaining=0, shown=3), True, "empty"),
        (state(age_ms=999), False, "continue"),
        (state(age_ms=1000), True, "stale"),
        (PagingState(0, 0, 0, 0, 1.0), True, "empty"),
    ],
)
def test_fixed_paging(seen: PagingState, request_now: bool, reason: str) -> None:
    decision = FixedPaging(consume=10, size=30)(seen)
    assert (decision.request, decision.reason, decision.size) == (request_now, reason, 30)


@pytest.mark.parametrize(("consume", "size"), [(0, 30), (10, 0)])
def test_numbers_below_one_are_refused(consume: int, size: int) -> None:
    with pytest.raises(ValueError, match="expected consume >= 1"):
        FixedPaging(consume, size)
