"""The OpenAPI text of the two hot routes, whose bodies are structs of the contract and not pydantic models."""

from __future__ import annotations

from typing import Any

import msgspec

from cloud.serving.wire import JSON, MSGPACK, ErrorBody
from device.contract import FeedbackBatch, FeedbackReceipt, Page, PageRequest

__all__ = ["ERRORS", "add_hot_routes"]

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
    structs = (PageRequest, Page, FeedbackBatch, FeedbackReceipt, ErrorBody)
    _, components = msgspec.json.schema_components(structs, ref_template=_TEMPLATE)
    schema.setdefault("components", {}).setdefault("schemas", {}).update(components)
    schema.setdefault("paths", {}).update(
        {
            "/v1/page": {"post": _operation("Ask for a page", "page", PageRequest, Page)},
            "/v1/feedback": {"post": _operation("Upload feedback", "feedback", FeedbackBatch, FeedbackReceipt)},
        }
    )
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
