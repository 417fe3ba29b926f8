import math

import pytest

from pocketrank.device.paging import PagingState, ThresholdPaging
from tests.device.paging.states import state


@pytest.mark.parametrize(
    ("seen", "request_now", "reason"),
    [
        (state(shown=3, best=0.36), False, "continue"),
        (state(shown=3, best=0.34), True, "value"),
        (state(shown=2, best=0.1), False, "continue"),
        (state(shown=3, remaining=2, best=0.5), True, "consumed"),
        (state(shown=2, remaining=2), False, "continue"),
        (state(shown=3, best=math.nan), False, "continue"),
        (state(remaining=0), True, "empty"),
        (state(age_ms=1000), True, "stale"),
    ],
)
def test_threshold_paging(seen: PagingState, request_now: bool, reason: str) -> None:
    decision = ThresholdPaging(0.35, left=2, consume=3, size=40)(seen)
    assert (decision.request, decision.reason, decision.size) == (request_now, reason, 40)


@pytest.mark.parametrize("wrong", [{"value": math.nan}, {"left": -1}, {"consume": 0}, {"size": 0}])
def test_numbers_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected a value, left >= 0"):
        ThresholdPaging(**{"value": 0.3} | wrong)  # type: ignore[arg-type]
