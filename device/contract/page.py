"""What a device asks for, and what it gets."""

from __future__ import annotations

from pocketrank.device.contract.feedback import FeedbackEvent
from pocketrank.device.contract.telemetry import TelemetryReport
from pocketrank.device.contract.wire import Block, Columns, Versioned, Wire

__all__ = ["Candidates", "Page", "PageRequest"]


class Candidates(Wire, frozen=True, kw_only=True):
    """The n candidates of a page, columnar, in cloud order.

    `item_id` is i8 [n]; `floats` f4 [n, F] in raw units, pXTRs as `pxtr_<task>`; `categories` i4 [n, C] with 0 = unknown;
    `vector` f2 [n, D], absent when the page carries none.
    """

    item_id: Block
    floats: Columns
    categories: Columns
    vector: Block | None = None


class PageRequest(Versioned, frozen=True, kw_only=True):
    """What a device sends to ask for a page.

    `size` is the number of candidates wanted. `feedback` is what happened since the last call. `exclude` lists items that
    are not wanted: what this session has shown. `split_version` is that of the installed bundle; None asks for a page
    without vectors. What a user does within an `experiment` is known to later requests of the same experiment only, so that
    its arms do not teach one another. `telemetry` is what the device tells of itself.
    """

    request_id: str
    user_id: int
    session_id: str
    now_ms: int
    size: int
    scene: int = 0
    split_version: str | None = None
    feedback: tuple[FeedbackEvent, ...] = ()
    exclude: tuple[int, ...] = ()
    experiment: str | None = None
    telemetry: TelemetryReport | None = None


class Page(Versioned, frozen=True, kw_only=True):
    """A page of candidates in cloud order with all that the device model needs.

    `split_version` names the lower half that produced the vectors; when it is None the page has none and `split_reason` says
    why. `user_vector` is f2 [D]. `compute_price` is the cloud's relative price of one more page (1.0 = normal load). After
    `ttl_ms` from `created_ms` the page is stale. `degraded` names what the cloud left out or replaced for want of time, or
    because something failed.
    """

    page_id: str
    request_id: str
    created_ms: int
    ttl_ms: int
    candidates: Candidates
    compute_price: float = 1.0
    user_vector: Block | None = None
    split_version: str | None = None
    split_reason: str | None = None
    degraded: tuple[str, ...] = ()
