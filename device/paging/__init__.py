"""When a device asks the cloud for the next page, and for how many candidates.

`base` is the seam; `fixed` asks after so many, `threshold` when what is left is no longer worth much, `uplift` when a fresh
page is predicted to win more than it costs. `moment` remembers what of a session they look at.
"""

from pocketrank.device.paging.base import PageDecision, Paging, PagingState, must_ask
from pocketrank.device.paging.fixed import FixedPaging
from pocketrank.device.paging.moment import PagingMoment
from pocketrank.device.paging.threshold import ThresholdPaging
from pocketrank.device.paging.uplift import FEATURES, PagingModelError, UpliftPaging, features, paging_of

__all__ = [
    "FEATURES",
    "FixedPaging",
    "PageDecision",
    "Paging",
    "PagingModelError",
    "PagingMoment",
    "PagingState",
    "ThresholdPaging",
    "UpliftPaging",
    "features",
    "must_ask",
    "paging_of",
]
