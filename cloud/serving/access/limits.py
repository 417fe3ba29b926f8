"""Rate limits of callers, and the size limit of what they upload.

Each caller has a token bucket, which holds `burst` requests and is refilled at `per_s`. Only the time at which a bucket will be
full again is stored (the generic cell rate algorithm, ITU-T I.371), so a request costs one look-up.

A request that makes more work than others takes more out of the bucket: see `cost_of_body` and `cost_of_feedback`.

Each process has its own buckets: several worker processes together allow that many times the rate.

Errors::

    WireError
    └── TooManyError           429: the bucket is empty; holds after how many seconds to retry
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from time import monotonic
from typing import Annotated, Literal

import msgspec

from pocketrank.cloud.serving.http.wire import WireError
from pocketrank.device.contract import FeedbackEvent

__all__ = [
    "SCOPES",
    "LimitsConfig",
    "RateLimit",
    "RequestLimits",
    "TokenScope",
    "TooManyError",
    "address_of",
    "cost_of_body",
    "cost_of_feedback",
]

TokenScope = Literal["device", "publish", "admin"]
"""Permission to request pages, send feedback and download the bundle; to upload a bundle; to monitor the server."""

SCOPES: tuple[TokenScope, ...] = ("device", "publish", "admin")
"""All scopes, in the order in which they are listed."""

_OTHERS = object()
"""Key of the bucket that all callers beyond `callers_max` share."""
_SUBNET_BITS = 64
"""Bits of an IPv6 address that one customer has in common."""
_SUBNETS_CACHED = 4096
_BODY_BYTES = 16 << 10
"""Bytes of a body that cost as much as a request. A page request has some 500, and one with ten events 3,000."""
_EVENTS = 16
"""Events that cost as much as a request."""


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rate limit of a caller."""

    per_s: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    """Requests per second in the long run."""
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """Requests at once after a pause."""


@dataclass(frozen=True)
class LimitsConfig:
    """Limits of callers that have none of their own. None means unlimited."""

    user: RateLimit | None = RateLimit(10.0, 100)
    """Rate of a user with a token of their own. A phone requests a page every few seconds and downloads dozens of files."""
    device: RateLimit | None = RateLimit(100.0, 1000)
    """Rate of one address that uses a token as `device`. The phones of a fleet share such a token, and each address has a
    bucket: that of ten phones, because a household or a mobile network has one address for many. What a token sends in all is
    limited by its own rate, if it has one."""
    publish: RateLimit | None = RateLimit(10.0, 500)
    """Rate of a token used as `publish`: a bundle has at most some hundred files, and each of them is a request."""
    admin: RateLimit | None = RateLimit(10.0, 50)
    """Rate of a token used as `admin`: scrapes and probes."""
    anonymous: RateLimit | None = None
    """Rate of an address at an open server. None, because only this machine reaches a loopback address."""
    callers_max: int = 65_536
    """Buckets in memory, some 10 MB. Callers beyond them share one bucket until others are full again."""
    publish_bytes: int = 256 << 20
    """Largest file of an uploaded bundle, which `BundleFiles` can still serve. `BudgetConfig.body_max` bounds other bodies."""


class TooManyError(WireError):
    """A caller that exceeds its rate. It may retry after `retry_after_s`; the header holds it in whole seconds."""

    def __init__(self, limit: RateLimit, retry_after_s: float) -> None:
        expected = f"at most {limit.per_s:g} requests a second, {limit.burst} at once"
        super().__init__(429, "$", expected, "more", {"Retry-After": str(max(1, math.ceil(retry_after_s)))})
        self.retry_after_s = retry_after_s


class RequestLimits:
    """Token buckets of all callers. For the one thread of an event loop. `clock` returns seconds and is monotonic."""

    def __init__(self, config: LimitsConfig | None = None, clock: Callable[[], float] = monotonic) -> None:
        self.config = config or LimitsConfig()
        self._clock = clock
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()  # the most recent callers are last

    @property
    def callers(self) -> int:
        """Number of buckets in memory."""
        return len(self._full_at)

    def __call__(self, key: Hashable, limit: RateLimit, cost: int = 1) -> None:
        """Take `cost` requests out of the bucket `key`, at most as many as it holds when it is full.

        Raises `TooManyError` and takes nothing when there are not so many in it.
        """
        now, buckets = self._clock(), self._full_at
        full_at = buckets.get(key)
        if full_at is None:
            key = self._make_room(key, now)
            full_at = buckets.get(key, now)
        per_s = limit.per_s
        taken = (full_at if full_at > now else now) + min(cost, limit.burst) / per_s
        if (wait := taken - now - limit.burst / per_s) > 1e-9:  # rounding errors
            raise TooManyError(limit, wait)
        buckets[key] = taken
        buckets.move_to_end(key)

    def _make_room(self, key: Hashable, now: float) -> Hashable:
        # A full bucket holds no information. Any other must stay: its caller could empty it by sending from enough addresses.
        while len(self._full_at) >= self.config.callers_max:
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now:
                return _OTHERS
            del self._full_at[oldest]
        return key


def cost_of_body(body: bytes) -> int:
    """Return what a body costs beyond the request itself, in requests. `body` is decompressed and not yet decoded."""
    return len(body) // _BODY_BYTES


def cost_of_feedback(events: Sequence[FeedbackEvent]) -> int:
    """Return what events cost beyond the request itself, in requests.

    A device sends events of one user in one experiment. Each further user or experiment costs a request, because the states of
    users are what fills the memory.
    """
    states = len({(event.user_id, event.experiment) for event in events})
    return len(events) // _EVENTS + max(0, states - 1)


def address_of(client: tuple[str, int] | None) -> str:
    """Return the bucket of an ASGI `client`: its IPv4 address, or its IPv6 subnet, as one customer has 2^64 addresses."""
    if client is None:  # a Unix socket
        return ""
    host = client[0]
    return _subnet(host) if ":" in host else host


@lru_cache(_SUBNETS_CACHED)
def _subnet(host: str) -> str:
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or IPv6Network((int(address), _SUBNET_BITS), strict=False))
