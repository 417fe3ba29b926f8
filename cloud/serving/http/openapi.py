"""The OpenAPI text: what FastAPI does not know of, because hot routes are not its own and bodies are structs of the
contract."""

from __future__ import annotations

from typing import Any

import msgspec

from pocketrank.cloud.serving.access.access import REFUSALS, SECURITY_SCHEME
from pocketrank.cloud.serving.http.wire import JSON, MSGPACK, ErrorBody
from pocketrank.cloud.serving.routes.uploads import UPLOAD_STRUCTS
from pocketrank.device.contract import FeedbackBatch, FeedbackReceipt, Page, PageRequest

__all__ = ["add_structs", "complete", "errors"]

_TEMPLATE = "#/components/schemas/{name}"
_STRUCTS = (PageRequest, Page, FeedbackBatch, FeedbackReceipt, ErrorBody, *UPLOAD_STRUCTS)
_HOT = (400, 401, 403, 408, 413, 415, 429, 503)

_MEANS: dict[int, str] = {
    **REFUSALS,
    400: "The body is not what the contract says; `path` says where.",
    404: "Nothing here by that name.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "Neither MessagePack nor JSON, or in an encoding that is not taken.",
    503: "The feedback could not be kept, or the server is not ready; nothing of the request had an effect. Send it again.",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What these statuses mean, as FastAPI takes the `responses` of a route."""
    return {status: {"description": _MEANS[status], "content": _content(ErrorBody, JSON)} for status in statuses}


def add_structs(schema: dict[str, Any], *structs: type[msgspec.Struct]) -> dict[str, Any]:
    """`schema` with these structs, and those that they refer to, among its components; changed in place."""
    _, components = msgspec.json.schema_components(structs, ref_template=_TEMPLATE)
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
    return schema


def complete(schema: dict[str, Any], security: list[dict[str, list[str]]]) -> dict[str, Any]:
    """`schema` with the hot routes, which ask for `security`, and all structs that are exchanged; changed in place."""
    add_structs(schema, *_STRUCTS)
    schemas = schema["components"]["schemas"]
    for name in (PageRequest.__name__, FeedbackBatch.__name__):
        # A report that the contract does not allow is dropped, and the rest of the request is not (`telemetry`).
        properties = schemas[name]["properties"]
        properties["telemetry"] = {"anyOf": [properties["telemetry"], {}], "default": None}
    schema.setdefault("paths", {}).update(
        {
            "/v1/page": {"post": _operation("Ask for a page", "page", PageRequest, Page, security)},
            "/v1/feedback": {"post": _operation("Upload feedback", "feedback", FeedbackBatch, FeedbackReceipt, security)},
        }
    )
    if security:
        scheme = {"type": "http", "scheme": "bearer"}
        schema["components"].setdefault("securitySchemes", {}).setdefault(SECURITY_SCHEME, scheme)
    return schema


def _operation(
    summary: str,
    name: str,
    takes: type[msgspec.Struct],
    gives: type[msgspec.Struct],
    security: list[dict[str, list[str]]],
) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": summary,
        "description": (takes.__doc__ or "") + "\n\n" + (gives.__doc__ or ""),
        "operationId": name,
        "requestBody": {"required": True, "content": _content(takes, MSGPACK, JSON)},
        "responses": {
            "200": {
                "description": "MessagePack, or JSON when `Accept` names it.",
                "content": _content(gives, MSGPACK, JSON),
            },
            **{str(status): told for status, told in errors(*_HOT).items()},
        },
    }
    return operation | ({"security": security} if security else {})


def _content(struct: type[msgspec.Struct], *types: str) -> dict[str, Any]:
    return {name: {"schema": {"$ref": _TEMPLATE.format(name=struct.__name__)}} for name in types}
