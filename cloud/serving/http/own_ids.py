"""A team's own ids in requests and pages: texts become codes as a request is read, and codes texts as a page is written.

A text is always a team's own id, in both encodings. A whole number is one, too, in JSON, unless `own_ids` is false; in
MessagePack it is a code. For a kind of ids without a dictionary, code and id are the same number, of which a text is the
decimal form. So 19 digits arrive whole from languages whose numbers are floats.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from typing import Any, TypeVar, cast

import msgspec
from msgspec import structs

from pocketrank.cloud.pages.own_ids import OwnIds
from pocketrank.cloud.published.id_texts import PublishedIds
from pocketrank.cloud.serving.access.access import Caller
from pocketrank.cloud.serving.http.wire import JSON, MSGPACK, decode
from pocketrank.cloud.streams.feedback_log import FeedbackLogError
from pocketrank.device.codec import from_block
from pocketrank.device.contract import DecodeError, FeedbackEvent, Page, PageRequest

__all__ = ["WireIds"]

_NUMBER = re.compile(r"0|-?[1-9][0-9]{0,18}")
_INT64 = 1 << 63
_KINDS = ("user_id", "item_id")

S = TypeVar("S", bound=msgspec.Struct)

_logger = logging.getLogger(__name__)


class _ReadEvents(tuple[FeedbackEvent, ...]):
    """Events whose ids may still be texts."""


class WireIds:
    """Reader of requests and writer of pages with the own ids of `ids`."""

    def __init__(self, ids: OwnIds) -> None:
        self._ids = ids

    @property
    def _published(self) -> PublishedIds:
        return self._ids.published

    def decode(self, kind: str, body: bytes, codes: type[S], texts: type[S]) -> S:
        """Return the request in `body`, whose content type is `kind`, with codes for all ids but those of feedback that nobody
        knows yet (`remembered`).

        `codes` is its struct, and `texts` the same struct whose ids may be texts. Raises `ContractError`.
        """
        if kind == MSGPACK:
            try:
                return decode(kind, body, codes)
            except DecodeError as error:  # devices send codes, so texts are only looked for where one stands
                if error.got != "`str`":
                    raise
        return cast(S, self._coded(decode(kind, body, texts), kind))

    def _coded(self, request: Any, kind: str) -> Any:
        numbers = kind == JSON and request.own_ids is not False
        if not isinstance(request, PageRequest):
            return structs.replace(request, events=self._events(request.events, "$.events", numbers))
        user = self._code("user_id", request.user_id, "$.user_id", numbers)
        exclude = [self._code("item_id", item, f"$.exclude[{i}]", numbers) for i, item in enumerate(request.exclude)]
        return structs.replace(
            request,
            user_id=self._unknown_user(user) if isinstance(user, str) else user,
            exclude=tuple(item for item in exclude if not isinstance(item, str)),  # the run has no such item to leave out
            feedback=self._events(request.feedback, "$.feedback", numbers),
        )

    def _events(self, events: Sequence[Any], path: str, numbers: bool) -> _ReadEvents:
        return _ReadEvents(
            _with_ids(event, {kind: self._code(kind, getattr(event, kind), f"{path}[{i}].{kind}", numbers) for kind in _KINDS})
            for i, event in enumerate(events)
        )

    def _code(self, kind: str, id: int | str, path: str, numbers: bool) -> int | str:
        """Return the code of an id; the text itself when the run does not know it. `numbers` says that numbers are own ids."""
        if kind in self._published.kinds:
            if isinstance(id, int) and not numbers:
                return id
            code = self._published.code(kind, str(id))
            return str(id) if code is None else code
        if isinstance(id, int):
            return id
        code = int(id) if _NUMBER.fullmatch(id) else _INT64
        if not -_INT64 <= code < _INT64:
            raise DecodeError(path, "a whole number of 64 signed bits", f"`{id[:60]}`")
        return code

    def _unknown_user(self, text: str) -> int:
        try:
            return self._ids.code("user_id", text)
        except FeedbackLogError as error:  # a page is made for an unknown user all the same
            _logger.error("the file of ids cannot be read: %s", error)
            return self._published.free("user_id", text)

    async def remembered(self, events: Sequence[FeedbackEvent]) -> Sequence[FeedbackEvent]:
        """Return `events` with codes for the texts that `decode` left in them. The codes are durable when this returns.

        Raises `FeedbackLogError`.
        """
        if not isinstance(events, _ReadEvents):  # they came as codes
            return events
        unknown = [[(kind, id) for kind in _KINDS if isinstance(id := getattr(event, kind), str)] for event in events]
        if not any(unknown):
            return events
        codes = await asyncio.to_thread(self._ids.remember, {one for some in unknown for one in some})
        return [
            _with_ids(event, {kind: codes[kind, text] for kind, text in some})
            for event, some in zip(events, unknown, strict=True)
        ]

    def speaker(self, caller: Caller) -> int | None:
        """Return the code of the one user for whom `caller` may speak; None if for any.

        Call it after `remembered`, which may give that user a code. Raises `LogOpenError`.
        """
        user = caller.user_id
        return self._ids.code("user_id", user) if isinstance(user, str) else user

    def keyed(self, request: Any, answer: Any) -> Any:
        """Return an answer in JSON, or to a request whose `own_ids` is true: a page gets the own ids of its items, unless
        `own_ids` is false, or is absent and they are whole numbers.
        """
        wanted = "item_id" in self._published.kinds if request.own_ids is msgspec.UNSET else request.own_ids
        if not (wanted and isinstance(answer, Page)):
            return answer
        keys = self._ids.texts("item_id", from_block(answer.candidates.item_id))
        return structs.replace(answer, candidates=structs.replace(answer.candidates, item_key=tuple(keys)))


def _with_ids(event: FeedbackEvent, ids: dict[str, Any]) -> FeedbackEvent:
    """Return an event with other ids: itself when they are the same, since most are."""
    changed = {kind: id for kind, id in ids.items() if id is not getattr(event, kind)}
    return structs.replace(event, **changed) if changed else event
