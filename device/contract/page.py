"""The request for a page, and the page that answers it."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from pocketrank.device.contract.feedback import FeedbackEvent
from pocketrank.device.contract.telemetry import TelemetryReport
from pocketrank.device.contract.wire import Block, Columns, Versioned, Wire

__all__ = ["NO_FEEDBACK", "Candidates", "Page", "PageRequest"]

NO_FEEDBACK = "no_feedback"
"""In `Page.degraded`: the request's feedback could not be kept, and has to be sent again."""


class Candidates(Wire, frozen=True, kw_only=True):
    """The n candidates of a page in cloud order, stored by column."""

    item_id: Block
    """i8 [n]. An item may appear twice; a device keeps the first."""
    floats: Columns
    """f4 [n, F] in raw units. The probabilities of the cloud's tasks are named `pxtr_<task>`."""
    categories: Columns
    """i4 [n, C]. Code 0 is unknown."""
    numbering: str | UnsetType = UNSET
    """Name of the codes in `categories`. Codes of another name than that of the feature spec mean something else, and a device
    does not read them. Left out where codes have none; they are then read."""
    vector: Block | None = None
    """f2 [n, D], the item vectors of the split form. None when the page carries none."""
    item_key: tuple[str, ...] | UnsetType = UNSET
    """[n] the team's own ids of the items, where the request asks for them (`PageRequest.own_ids`). In JSON they stand in place
    of the codes, in a `TextBlock` named `item_id`. Left out otherwise."""


class PageRequest(Versioned, frozen=True, kw_only=True):
    """A device's request for a page."""

    request_id: str
    """Chosen by the device. The page repeats it."""
    user_id: int
    session_id: str
    now_ms: int
    """The device's clock, in milliseconds since the Unix epoch."""
    size: int
    """Number of candidates wanted."""
    scene: int = 0
    """The feed that the page is for."""
    split_version: str | None = None
    """Split version of the installed bundle. None asks for a page without vectors."""
    feedback: tuple[FeedbackEvent, ...] = ()
    """Impressions that ended since the last request."""
    exclude: tuple[int, ...] = ()
    """Items that are not wanted: those that this session has already shown."""
    experiment: str | None = None
    """Arm of an experiment. Feedback within an experiment is visible only to later requests of the same experiment, so that its
    arms do not influence one another."""
    telemetry: TelemetryReport | None = None
    """What the device counted since its last report."""
    own_ids: bool | UnsetType = UNSET
    """Whether the page has the team's own ids (`Candidates.item_key`). By default a page in JSON has them, if they are texts,
    and one in MessagePack has codes only. In a JSON request, whole numbers are own ids, too, unless this is false."""


class Page(Versioned, frozen=True, kw_only=True):
    """A page of candidates in cloud order, with everything that the device model needs."""

    page_id: str
    request_id: str
    created_ms: int
    ttl_ms: int
    """The page is stale once this many milliseconds have passed since `created_ms`."""
    candidates: Candidates
    compute_price: float = 1.0
    """The cloud's relative price of one more page. 1.0 is normal load."""
    user_vector: Block | None = None
    """f2 [D], the user's vector of the split form. None when the page carries none."""
    split_version: str | None = None
    """The lower half that computed the vectors. None when the page carries none."""
    split_reason: str | None = None
    """Why the page carries no vectors."""
    degraded: tuple[str, ...] = ()
    """Stages that the cloud left out or replaced, because time ran out or because something failed; and `NO_FEEDBACK`."""
