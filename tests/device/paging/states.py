"""States to ask a policy about."""

from typing import Any

from pocketrank.device.paging import PagingState


def state(**changes: Any) -> PagingState:
    """A fresh page of 20 that nothing was shown of, with values."""
    fields: dict[str, Any] = {"remaining": 20, "shown": 0, "age_ms": 0, "ttl_ms": 1000, "compute_price": 1.0}
    return PagingState(**fields | {"best": 0.5, "top": 0.45, "arrived": 0.5, "position": 3, "recent": 0.4} | changes)
