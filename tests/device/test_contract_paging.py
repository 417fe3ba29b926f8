import math
from typing import Any

import pytest

from pocketrank.device.contract import PagePlan, PagingModel, PagingTerm

PLAN = {"size": 30, "consume": 10, "level": 0.0, "drop": 0.05}


@pytest.mark.parametrize(
    ("plans", "more", "message"),
    [
        ([], {}, "at least one plan"),
        ([PLAN | {"consume": 31}], {}, "consume <= size"),
        ([PLAN | {"consume": 0}], {}, "1 <= consume"),
        ([PLAN | {"drop": -0.1}], {}, "drop >= 0"),
        ([PLAN | {"level": math.nan}], {}, "finite"),
        ([PLAN], {"bias": math.inf}, "finite"),
        ([PLAN], {"terms": (PagingTerm(feature="best", weight=math.nan),)}, "finite"),
        ([PLAN], {"terms": (PagingTerm(feature="best", weight=1.0, knot=math.inf),)}, "finite"),
        ([PLAN, PLAN], {}, "falling drop"),
        ([PLAN, PLAN | {"drop": 0.01, "size": 20}], {}, "not falling size"),
    ],
)
def test_numbers_that_cannot_be_are_refused(plans: list[dict[str, Any]], more: dict[str, Any], message: str) -> None:
    made = tuple(PagePlan(**plan) for plan in plans)
    with pytest.raises(ValueError, match=message):
        PagingModel(**{"bias": 0.0, "terms": (), "plans": made} | more)
