"""Feedback events for tests, with defaults for all fields, and their acceptance."""

from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from msgspec.structs import replace

from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.device.contract import FeedbackEvent, FeedbackReceipt


def event(user_id: int = 1, item_id: int = 1000, *, ms: int = 1_700_000_000_000, **more: Any) -> FeedbackEvent:
    """Return an event, with a new id unless one is given."""
    fields: dict[str, Any] = {
        "event_id": uuid4().hex,
        "user_id": user_id,
        "session_id": "s",
        "item_id": item_id,
        "position": 0,
        "impression_ms": ms,
        "watch_ms": 3000,
    }
    return FeedbackEvent(**{**fields, **more})


def accept(intake: FeedbackIntake, events: Sequence[FeedbackEvent]) -> FeedbackReceipt:
    """Accept one batch as the server does. Raises what the intake returns as an error."""
    admitted, refused = intake.admit(events)
    (result,) = intake.together([admitted])
    if isinstance(result, FeedbackReceipt):
        return replace(result, refused=refused)
    raise result
