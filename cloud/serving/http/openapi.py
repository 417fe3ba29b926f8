"""The OpenAPI document, with what FastAPI cannot know: the hot routes, which are plain ASGI, and the contract's structs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from pocketrank.cloud.serving.access.access import REFUSALS
from pocketrank.cloud.serving.bundles.publish import BundlePublish, BundleReceipt, MissingFilesBody
from pocketrank.cloud.serving.http.wire import JSON, MSGPACK, ErrorBody
from pocketrank.device.contract import ID_TEXT_MAX, FeedbackBatch, FeedbackEvent, FeedbackReceipt, Page, PageRequest, TextBlock

__all__ = ["complete", "content_of", "errors", "route_labels"]

_TEMPLATE = "#/components/schemas/{name}"
_STRUCTS = (
    PageRequest, Page, TextBlock, FeedbackBatch, FeedbackReceipt, ErrorBody, BundlePublish, BundleReceipt, MissingFilesBody,
)  # fmt: skip
_OWN_ID = {"anyOf": [{"type": "integer"}, {"type": "string", "minLength": 1, "maxLength": ID_TEXT_MAX}]}
_HOT = (400, 401, 403, 408, 413, 415, 429, 503)

_DESCRIPTIONS: dict[int, str] = {
    **REFUSALS,
    400: "The body breaks the contract; `path` says where.",
    404: "No such resource.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "Neither MessagePack nor JSON, or an encoding that is not supported.",
    503: "The feedback could not be stored, or the server is not ready. The request had no effect; send it again.",
}


def errors(*statuses: int, descriptions: Mapping[int, str] = _DESCRIPTIONS) -> dict[int | str, dict[str, Any]]:
    """Return the descriptions of these statuses, as FastAPI takes the `responses` of a route."""
    return {status: {"description": descriptions[status], "content": content_of(ErrorBody, JSON)} for status in statuses}


def content_of(struct: type[msgspec.Struct], *types: str) -> dict[str, Any]:
    """Return the `content` of a body that is `struct` in any of these content types."""
    return {name: {"schema": {"$ref": _TEMPLATE.format(name=struct.__name__)}} for name in types}


def complete(document: dict[str, Any], security: list[dict[str, list[str]]]) -> dict[str, Any]:
    """Add the hot routes, which require `security`, and all structs that are exchanged. Changes and returns `document`."""
    _, components = msgspec.json.schema_components(_STRUCTS, ref_template=_TEMPLATE)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas.update(components)
    for name in (PageRequest.__name__, FeedbackBatch.__name__):
        # A telemetry report that breaks the contract is dropped, and the rest of the request is not (`telemetry.devices`).
        properties = schemas[name]["properties"]
        properties["telemetry"] = {"anyOf": [properties["telemetry"], {}], "default": None}
    # Ids may be texts (`own_ids`).
    for struct, field in ((PageRequest, "user_id"), (FeedbackEvent, "user_id"), (FeedbackEvent, "item_id")):
        schemas[struct.__name__]["properties"][field] = _OWN_ID
    schemas[PageRequest.__name__]["properties"]["exclude"]["items"] = _OWN_ID
    item = schemas["Candidates"]["properties"]["item_id"]
    schemas["Candidates"]["properties"]["item_id"] = {"anyOf": [item, {"$ref": _TEMPLATE.format(name="TextBlock")}]}
    feedback = _operation("Upload feedback", "feedback", FeedbackBatch, FeedbackReceipt, security)
    document["paths"]["/v1/page"] = {"post": _operation("Ask for a page", "page", PageRequest, Page, security)}
    document["paths"]["/v1/feedback"] = {"post": feedback}
    return document


def route_labels(document: dict[str, Any]) -> dict[str, str]:
    """Return the labels of the document's paths in metrics and traces, as `telemetry.metrics.route_label` takes them."""
    starts = (path.partition("{")[0] for path in document["paths"])
    return {start: start.rstrip("/") for start in starts}


def _operation(
    summary: str,
    name: str,
    request: type[msgspec.Struct],
    answer: type[msgspec.Struct],
    security: list[dict[str, list[str]]],
) -> dict[str, Any]:
    success = {"description": "JSON, or MessagePack when `Accept` names it.", "content": content_of(answer, MSGPACK, JSON)}
    return {
        "summary": summary,
        "description": f"{request.__doc__}\n\n{answer.__doc__}",
        "operationId": name,
        "requestBody": {"required": True, "content": content_of(request, MSGPACK, JSON)},
        "responses": {"200": success, **{str(status): response for status, response in errors(*_HOT).items()}},
        **({"security": security} if security else {}),
    }
