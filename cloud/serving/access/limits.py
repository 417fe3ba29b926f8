"""How often a caller may ask, and how much it may send.

A token bucket for each caller: it holds `burst` requests and fills at `per_s`. What is kept of a bucket is the one moment at
which it will be full again (the generic cell rate algorithm, ITU-T I.371), so that a request costs one look-up.

The buckets are a process's own: several worker processes together let through that many times the rate.

Errors::

    WireError
    └── TooManyError           429: the bucket is empty; knows after how many seconds it is not
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv6Address, IPv6Network
from time import monotonic
from typing import Annotated, Literal

import msgspec

from pocketrank.cloud.serving.http.wire import WireError

__all__ = ["LimitsConfig", "RateLimit", "RequestLimits", "SCOPES", "TokenScope", "TooManyError", "caller"]

TokenScope = Literal["device", "publish", "admin"]
"""What a caller may do: ask for pages, send feedback and download the bundle; upload one; look after the server."""

SCOPES: tuple[TokenScope, ...] = ("device", "publish", "admin")
"""All of them."""

_OTHERS = object()
_SUBNET = 64  # bits of an IPv6 address that are one customer's
_CALLERS = 4096


class RateLimit(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bucket of requests."""

    per_s: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    """Requests a second, in the long run."""
    burst: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    """Requests at once, after a pause."""


@dataclass(frozen=True)
class LimitsConfig:
    """The limits of callers that have none of their own."""

    device: RateLimit | None = RateLimit(10.0, 100)
    """Of a token used as `device`, None without end. One phone asks for a page in seconds and downloads some dozens of files; a
    token that a fleet shares wants a rate of its own."""
    publish: RateLimit | None = RateLimit(10.0, 500)
    """Of a token used as `publish`: a bundle has at most some hundred files, each of them a request."""
    admin: RateLimit | None = RateLimit(10.0, 50)
    """Of a token used as `admin`: scrapes and probes."""
    anonymous: RateLimit | None = None
    """Of an address at an open server. None, because on loopback there is nobody to be kept out."""
    callers_max: int = 65_536
    """Buckets that are kept, some 10 MB. Beyond them new callers share one until others are full again."""
    publish_bytes: int = 256 << 20
    """The largest file of a bundle that is taken: all that `BundleFiles` serves. Other bodies: `BudgetConfig.body_max`."""

    def rate(self, scope: TokenScope) -> RateLimit | None:
        """The rate of a token used as `scope`."""
        return self.device if scope == "device" else self.publish if scope == "publish" else self.admin


class TooManyError(WireError):
    """The caller asks faster than it may. `retry_after_s` is when it may again; the header has it in whole seconds."""

    def __init__(self, limit: RateLimit, retry_after_s: float) -> None:
        expected = f"at most {limit.per_s:g} requests a second, {limit.burst} at once"
        super().__init__(429, "$", expected, "more", {"Retry-After": str(max(1, math.ceil(retry_after_s)))})
        self.retry_after_s = retry_after_s


class RequestLimits:
    """The buckets of all callers. For the one thread of an event loop. `clock` is in seconds and only goes forward."""

    def __init__(self, config: LimitsConfig | None = None, clock: Callable[[], float] = monotonic) -> None:
        self.config = config or LimitsConfig()
        self._clock = clock
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()  # those that asked last are last

    @property
    def callers(self) -> int:
        """Buckets that are kept now."""
        return len(self._full_at)

    def __call__(self, key: Hashable, limit: RateLimit) -> None:
        """Take one request out of the bucket `key`. Raises `TooManyError`, which takes nothing."""
        now, buckets = self._clock(), self._full_at
        full_at = buckets.get(key)
        if full_at is None:
            if len(buckets) >= self.config.callers_max:
                key = self._make_room(key, now)
            full_at = buckets.get(key, now)
        per_s = limit.per_s
        taken = (full_at if full_at > now else now) + 1 / per_s
        if (wait := taken - now - limit.burst / per_s) > 1e-9:  # what floats lose
            raise TooManyError(limit, wait)
        buckets[key] = taken
        buckets.move_to_end(key)

    def _make_room(self, key: Hashable, now: float) -> Hashable:
        # A full bucket says nothing. To forget any other would let its caller off whenever enough strangers come.
        while len(self._full_at) >= self.config.callers_max:
            oldest = next(iter(self._full_at))
            if self._full_at[oldest] > now:
                return _OTHERS
            del self._full_at[oldest]
        return key


def caller(client: tuple[str, int] | None) -> str:
    """The bucket of an ASGI `client`: its IPv4 address, or its IPv6 subnet, as one customer has 2^64 addresses."""
    if client is None:  # a Unix socket
        return ""
    host = client[0]
    return _subnet(host) if ":" in host else host


@lru_cache(_CALLERS)
def _subnet(host: str) -> str:
    try:
        address = IPv6Address(host)
    except ValueError:
        return host
    return str(address.ipv4_mapped or IPv6Network((int(address), _SUBNET), strict=False))
