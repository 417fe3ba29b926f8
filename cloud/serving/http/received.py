"""Requests as a server reads them: lists with bounds, telemetry unread, and ids that may be texts.

A kilobyte of gzip can hold a million numbers or empty lists. msgspec compares the length of a list in MessagePack with its
bound before it reads the list, and that of a list in JSON before it makes the tuple. Telemetry is skipped.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from pocketrank.cloud.pipeline.config import BudgetConfig
from pocketrank.device.contract import ID_TEXT_MAX, FeedbackEvent

__all__ = ["OwnId", "as_received"]

S = TypeVar("S", bound=msgspec.Struct)

OwnId = int | Annotated[str, msgspec.Meta(min_length=1, max_length=ID_TEXT_MAX)]
"""A code, or an id as a team has it."""


class _OwnEvent(FeedbackEvent, frozen=True, kw_only=True):
    """An event whose ids may be texts."""

    user_id: OwnId  # type: ignore[assignment]
    item_id: OwnId  # type: ignore[assignment]


def as_received(struct: type[S], limits: BudgetConfig, *, own_ids: bool = False) -> type[S]:
    """Return `struct` with its lists bounded by `limits`, and with `telemetry` as the bytes that it came in.

    So `DeviceTelemetry` can refuse the telemetry without refusing the request. It is empty when there is none. With `own_ids`
    all ids of users and items may be texts.
    """
    events: Any = tuple[_OwnEvent, ...] if own_ids else tuple[FeedbackEvent, ...]
    items: Any = tuple[OwnId, ...] if own_ids else tuple[int, ...]
    lists: dict[str, tuple[Any, int]] = {
        "events": (events, limits.events_max),
        "feedback": (events, limits.events_max),
        "exclude": (items, limits.exclude_max),
    }
    fields: list[Any] = [("telemetry", msgspec.Raw, msgspec.Raw())]
    if own_ids and "user_id" in struct.__struct_fields__:
        fields.append(("user_id", OwnId))
    for field in msgspec.structs.fields(struct):
        if field.name in lists:
            kind, length = lists[field.name]
            bounded: Any = Annotated[kind, msgspec.Meta(max_length=length)]
            fields.append((field.name, bounded) if field.required else (field.name, bounded, field.default))
    return msgspec.defstruct(  # type: ignore[return-value]
        struct.__name__, fields, bases=(struct,), frozen=True, kw_only=True
    )
