"""Feedback of devices: the events that the contract allows are given to the server's own store, and acknowledged once kept.

The server's store is a function `keep`. It takes the allowed events, and returns how many of them are new once all of them are
durable. An event is identified by its user and `event_id`: one that the store has already has no second effect.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

from pocketrank.device.contract import (
    NO_FEEDBACK,
    ContractError,
    FeedbackBatch,
    FeedbackEvent,
    FeedbackReceipt,
    PageRequest,
    RefusedEvent,
    check_event,
)
from pocketrank.pages.errors import FeedbackNotKeptError

__all__ = ["receive_batch", "receive_with"]

_logger = logging.getLogger(__name__)

Keep = Callable[[Sequence[FeedbackEvent]], int]


def receive_batch(batch: FeedbackBatch, keep: Keep) -> FeedbackReceipt:
    """Hand the events of a batch to `keep`, and return the receipt to answer with.

    Raises `FeedbackNotKeptError` when `keep` raises; the device then sends the batch again.
    """
    good, refused = _allowed(batch.events)
    new = _kept(good, keep)
    return FeedbackReceipt(accepted=new, duplicates=len(good) - new, refused=refused)


def receive_with(request: PageRequest, keep: Keep) -> tuple[str, ...]:
    """Hand the events that came with a page request to `keep`. Returns what is to be said in the page's `degraded`.

    A page is never lost for its feedback: when `keep` raises, the page says `no_feedback`, and the device sends it again.
    """
    try:
        _kept(_allowed(request.feedback)[0], keep)
    except FeedbackNotKeptError:
        return (NO_FEEDBACK,)
    return ()


def _allowed(events: Sequence[FeedbackEvent]) -> tuple[list[FeedbackEvent], tuple[RefusedEvent, ...]]:
    good, refused = list[FeedbackEvent](), list[RefusedEvent]()
    for index, event in enumerate(events):
        try:
            check_event(event, f"[{index}]")
            good.append(event)
        except ContractError as error:
            refused.append(RefusedEvent(index=index, reason=str(error)))
    return good, tuple(refused)


def _kept(events: list[FeedbackEvent], keep: Keep) -> int:
    if not events:
        return 0
    try:
        new = keep(events)
        if not 0 <= new <= len(events):
            raise ValueError(f"Expected the number of new events, 0 to {len(events)}, got {new} - at the result of `keep`")
    except Exception as error:  # the server's own code
        _logger.exception("Feedback could not be kept")
        raise FeedbackNotKeptError from error
    return new
