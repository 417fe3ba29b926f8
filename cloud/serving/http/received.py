"""Requests as a server reads them: lists with bounds, and telemetry unread.

A kilobyte of gzip can hold a million numbers or empty lists. msgspec compares the length of a list in MessagePack with its
bound before it reads the list, and that of a list in JSON before it makes the tuple. Telemetry is skipped.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from pocketrank.cloud.pipeline.config import BudgetConfig
from pocketrank.device.contract import FeedbackEvent

__all__ = ["as_received"]

S = TypeVar("S", bound=msgspec.Struct)


def as_received(struct: type[S], limits: BudgetConfig) -> type[S]:
    """Return `struct` with its lists bounded by `limits`, and with `telemetry` as the bytes that it came in.

    So `DeviceTelemetry` can refuse the telemetry without refusing the request. It is empty when there is none.
    """
    lists: dict[str, tuple[Any, int]] = {
        "events": (tuple[FeedbackEvent, ...], limits.events_max),
        "feedback": (tuple[FeedbackEvent, ...], limits.events_max),
        "exclude": (tuple[int, ...], limits.exclude_max),
    }
    fields: list[Any] = [("telemetry", msgspec.Raw, msgspec.Raw())]
    for field in msgspec.structs.fields(struct):
        if field.name in lists:
            kind, length = lists[field.name]
            bounded: Any = Annotated[kind, msgspec.Meta(max_length=length)]
            fields.append((field.name, bounded) if field.required else (field.name, bounded, field.default))
    return msgspec.defstruct(  # type: ignore[return-value]
        struct.__name__, fields, bases=(struct,), frozen=True, kw_only=True
    )
