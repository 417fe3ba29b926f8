"""The OpenAPI text of the two hot routes, whose bodies are structs of the contract and not pydantic models."""

from __future__ import annotations

from typing import Any

import msgspec

from cloud.serving.wire import JSON, MSGPACK, ErrorBody
from device.contract import FeedbackBatch, FeedbackReceipt, Page, PageRequest

__all__ = ["ERRORS", "add_hot_routes", "add_structs"]

_TEMPLATE = "#/components/schemas/{name}"

ERRORS: dict[int, str] = {
    400: "The body is not what the contract says; `path` says where.",
    404: "Nothing here by that name.",
    413: "The body is too large.",
    415: "Neither MessagePack nor JSON, or compressed.",
    503: "The feedback could not be kept; nothing of the request had an effect. Send it again.",
}
"""What each status means, besides 200."""


def add_hot_routes(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with `POST /v1/page`, `POST /v1/feedback` and the structs that they exchange, changed in place."""
    add_structs(schema, PageRequest, Page, FeedbackBatch, FeedbackReceipt, ErrorBody)
    for name in (PageRequest.__name__, FeedbackBatch.__name__):
        # A report that the contract does not allow is dropped, and the rest of the request is not (`telemetry`).
        properties = schema["components"]["schemas"][name]["properties"]
        properties["telemetry"] = {"anyOf": [properties["telemetry"], {}], "default": None}
    schema.setdefault("paths", {}).update(
        {
            "/v1/page": {"post": _operation("Ask for a page", "page", PageRequest, Page)},
            "/v1/feedback": {"post": _operation("Upload feedback", "feedback", FeedbackBatch, FeedbackReceipt)},
        }
    )
    return schema


def add_structs(schema: dict[str, Any], *structs: type[msgspec.Struct]) -> dict[str, Any]:
    """`schema` with these structs, and those that they refer to, among its components, changed in place."""
    _, components = msgspec.json.schema_components(structs, ref_template=_TEMPLATE)
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
    return schema


def _operation(summary: str, name: str, takes: type[msgspec.Struct], gives: type[msgspec.Struct]) -> dict[str, Any]:
    return {
        "summary": summary,
        "description": (takes.__doc__ or "") + "\n\n" + (gives.__doc__ or ""),
        "operationId": name,
        "requestBody": {"required": True, "content": _content(takes, MSGPACK, JSON)},
        "responses": {
            "200": {
                "description": "MessagePack, or JSON when `Accept` names it.",
                "content": _content(gives, MSGPACK, JSON),
            },
            **{
                str(status): {"description": text, "content": _content(ErrorBody, JSON)}
                for status, text in ERRORS.items()
                if status != 404
            },
        },
    }


def _content(struct: type[msgspec.Struct], *types: str) -> dict[str, Any]:
    return {name: {"schema": {"$ref": _TEMPLATE.format(name=struct.__name__)}} for name in types}
