"""Routes by which a team's backend changes the catalogue of a running server.

::

    PUT    /v1/items      ItemsPut -> ChangeReceipt       scope publish
    DELETE /v1/items      ItemsDelete -> ChangeReceipt    scope publish
    PUT    /v1/users      UsersPut -> ChangeReceipt       scope publish
    DELETE /v1/users      UsersDelete -> ChangeReceipt    scope publish

A change is in the event log when it is answered, and every process applies it within a second. An item that is put again
replaces all its attributes. Ids and the names of categories are the team's own. One that cannot be used is refused by its
place, and the others of the call have their effect.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from pathlib import Path
from time import time
from typing import Annotated, Any

import msgspec
from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from pocketrank.cloud.pages.engine import PageEngine
from pocketrank.cloud.pages.own_ids import OwnIds
from pocketrank.cloud.serving.access.access import Access
from pocketrank.cloud.serving.http.body import BodyReader
from pocketrank.cloud.serving.http.openapi import content_of, errors
from pocketrank.cloud.serving.http.received import OwnId
from pocketrank.cloud.serving.http.wire import JSON, MSGPACK, WireError, content_type, decode
from pocketrank.cloud.streams.event_log import EventLog, EventLogError, NewRecord, Topic
from pocketrank.cloud.streams.feedback_log import FeedbackLogError
from pocketrank.cloud.streams.messages import ItemChange, UserChange
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import RefusedEvent

__all__ = ["ChangeReceipt", "ItemPut", "ItemsDelete", "ItemsPut", "UserPut", "UsersDelete", "UsersPut", "catalogue_routes"]

_BODY_BYTES_MAX = 8 << 20
_MANY = msgspec.Meta(max_length=1000)
_YEAR_10000_MS = 253_402_300_800_000
_INT64 = 1 << 63

Category = int | str
"""A code, or the text that the data of the run has."""


class ItemPut(msgspec.Struct, frozen=True, kw_only=True):
    """An item with all its attributes."""

    item_id: OwnId
    duration_ms: int = 0
    """0 = unknown"""
    author_id: OwnId | None = None
    category: Category | None = None
    upload_ms: int | None = None
    """Milliseconds since the epoch; None = unknown."""
    vector: Annotated[tuple[float, ...], msgspec.Meta(max_length=4096)] = ()
    """Content vector, as wide as those of the run; empty = unknown."""
    categories: dict[str, Category] = {}
    """Further categories by name."""
    floats: dict[str, float | None] = {}
    """Further numbers by name, in the units of the data."""


class ItemsPut(msgspec.Struct, frozen=True, kw_only=True):
    """Items to put."""

    items: Annotated[tuple[ItemPut, ...], _MANY]


class ItemsDelete(msgspec.Struct, frozen=True, kw_only=True):
    """Items to remove."""

    item_ids: Annotated[tuple[OwnId, ...], _MANY]


class UserPut(msgspec.Struct, frozen=True, kw_only=True):
    """A user with all attributes."""

    user_id: OwnId
    categories: dict[str, Category] = {}
    floats: dict[str, float | None] = {}


class UsersPut(msgspec.Struct, frozen=True, kw_only=True):
    """Users to put."""

    users: Annotated[tuple[UserPut, ...], _MANY]


class UsersDelete(msgspec.Struct, frozen=True, kw_only=True):
    """Users whose attributes are to be removed. What they did is deleted by `pocketrank forget`."""

    user_ids: Annotated[tuple[OwnId, ...], _MANY]


class ChangeReceipt(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a change."""

    accepted: int
    refused: tuple[RefusedEvent, ...] = ()
    """Those that cannot be used, by their place in the call."""


class _Codes:
    """Codes of a team's own ids and categories."""

    def __init__(self, engine: PageEngine, ids: OwnIds, published: Path) -> None:
        self.record, self._ids = engine.record, ids
        path = published / "categories.json"
        self._categories: dict[str, dict[str, int]] = msgspec.json.decode(path.read_bytes())["codes"] if path.is_file() else {}

    def id(self, kind: str, own: int | str) -> int:
        """Return the code of an id, which is new perhaps and then durable. Raises `ValueError`, `FeedbackLogError`."""
        if kind in self._ids.published.kinds:
            return self._ids.remember({(kind, str(own))})[kind, str(own)]
        code = int(own)
        if not -_INT64 < code < _INT64:
            raise ValueError(f"Expected a whole number of 64 bits as {kind}, got {own}")
        return code

    def category(self, name: str, own: Category | None) -> int:
        """Return the code of a category; 0 for one that the run does not know. Raises `ValueError`."""
        if own is None:
            return 0
        known = self._categories.get(name)
        if known is not None:
            return known.get(str(own), 0)
        if isinstance(own, str) or not 0 <= own < 1 << 31:
            raise ValueError(f"Expected a code of `{name}`, because the run has no texts of it, got {own!r}")
        return own


def catalogue_routes(log: EventLog, served: Callable[[], tuple[PageEngine, OwnIds, Path]], access: Access) -> APIRouter:
    """Return the routes, which write to `log`. `served` returns the engine that is served, the ids, and the published run."""
    router = APIRouter(dependencies=[access.requires("publish")])
    read = BodyReader(_BODY_BYTES_MAX, 10.0)
    known: _Codes | None = None

    def codes() -> _Codes:
        nonlocal known
        engine, ids, published = served()
        found = known
        if found is None or found.record is not engine.record:
            found = known = _Codes(engine, ids, published)
        return found

    def route(method: str, path: str, struct: type[msgspec.Struct], topic: Topic, what: str, describe: str) -> None:
        async def change(request: Request) -> Response:
            headers = dict(request.scope["headers"])
            body: Any = decode(content_type(headers.get(b"content-type")), await read(headers, request.receive), struct)
            return Response(
                msgspec.json.encode(await run_in_threadpool(_change, log, topic, getattr(body, what), codes)), media_type=JSON
            )

        change.__doc__ = describe
        router.add_api_route(
            path,
            change,
            methods=[method],
            response_class=Response,
            name=f"{method.lower()}_{topic}",
            responses={
                200: {"description": "In the event log.", "content": content_of(ChangeReceipt, JSON)},
                **errors(400, 401, 403, 408, 413, 415, 429, 503),
            },
            openapi_extra={"requestBody": {"required": True, "content": content_of(struct, JSON, MSGPACK)}},
        )

    route("PUT", "/v1/items", ItemsPut, "items", "items", "Put items into the catalogue, new ones or with other attributes.")
    route("DELETE", "/v1/items", ItemsDelete, "items", "item_ids", "Remove items: they are on no page from now on.")
    route("PUT", "/v1/users", UsersPut, "users", "users", "Put users with their attributes.")
    route("DELETE", "/v1/users", UsersDelete, "users", "user_ids", "Remove the attributes of users.")
    return router


def _change(log: EventLog, topic: Topic, changes: Sequence[Any], of_served: Callable[[], _Codes]) -> ChangeReceipt:
    """Write changes to a topic. Raises `WireError` (503) when nothing can be written."""
    codes, records, refused = of_served(), list[NewRecord](), list[RefusedEvent]()
    now = int(1000 * time())
    for index, one in enumerate(changes):
        try:
            change = _item(codes, one, now) if topic == "items" else _user(codes, one, now)
        except ValueError as error:
            refused.append(RefusedEvent(index=index, reason=str(error)[:300]))
        except FeedbackLogError as error:
            raise WireError(503, "$", "room for new ids", "none; nothing was changed") from error
        else:
            key = change.item_id if isinstance(change, ItemChange) else change.user_id
            records.append(NewRecord(key, to_msgpack(change)))
    try:
        if records:
            log.append(topic, records)
    except EventLogError as error:
        raise WireError(503, "$", "an event log that can be written", "none; nothing was changed") from error
    return ChangeReceipt(accepted=len(records), refused=tuple(refused))


def _item(codes: _Codes, one: Any, now: int) -> ItemChange:
    if not isinstance(one, ItemPut):
        return ItemChange(item_id=codes.id("item_id", one), removed=True, changed_ms=now)
    if not 0 <= one.duration_ms < 1 << 31:
        raise ValueError(f"Expected duration_ms from 0 to {(1 << 31) - 1}, got {one.duration_ms}")
    if one.upload_ms is not None and not 0 <= one.upload_ms < _YEAR_10000_MS:
        raise ValueError(f"Expected upload_ms in milliseconds from 1970 to the year 9999, got {one.upload_ms}")
    record = codes.record
    _check_names(one.categories, record.category_names[2:], "categories")
    _check_names(one.floats, record.float_names[1:], "floats")
    if not all(map(isfinite, one.vector)):
        raise ValueError("Expected a vector of finite numbers")
    return ItemChange(
        item_id=codes.id("item_id", one.item_id),
        changed_ms=now,
        duration_ms=one.duration_ms,
        author_id=0 if one.author_id is None else codes.id("author_id", one.author_id),
        category=codes.category("category", one.category),
        upload_ms=one.upload_ms,
        vector=one.vector,
        categories={name: codes.category(name, value) for name, value in one.categories.items()},
        floats=_finite(one.floats),
    )


def _user(codes: _Codes, one: Any, now: int) -> UserChange:
    if not isinstance(one, UserPut):
        return UserChange(user_id=codes.id("user_id", one), removed=True, changed_ms=now)
    return UserChange(
        user_id=codes.id("user_id", one.user_id),
        changed_ms=now,
        categories={name: codes.category(f"users.{name}", value) for name, value in one.categories.items()},
        floats=_finite(one.floats),
    )


def _check_names(given: Any, known: Sequence[str], what: str) -> None:
    if unknown := [name for name in given if name not in known]:
        raise ValueError(f"Expected {what} among {', '.join(known) or 'none'}, got {unknown[0][:60]}")


def _finite(floats: dict[str, float | None]) -> dict[str, float]:
    found = {name: value for name, value in floats.items() if value is not None}
    if not all(map(isfinite, found.values())):
        raise ValueError("Expected floats that are finite numbers or null")
    return found
