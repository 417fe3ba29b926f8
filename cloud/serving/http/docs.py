"""The page at `/docs`: the OpenAPI document as plain HTML.

FastAPI's own page loads scripts from elsewhere. This one has no script, and nothing on it comes from another server.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from starlette.responses import HTMLResponse, Response

__all__ = ["docs_response"]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1b1f24}"
    "table{border-collapse:collapse;margin:.5rem 0 1.5rem}td,th{border:1px solid #d0d7de;padding:.25rem .6rem;text-align:left;"
    "vertical-align:top}h2{margin-top:2.5rem}h3{border-top:1px solid #d0d7de;padding-top:1rem}code{font-size:.9em}"
)
_HEADERS = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}


def docs_response(document: dict[str, Any]) -> Response:
    """Return the page of an OpenAPI document: its operations, then its schemas."""
    title = escape(document["info"]["title"])
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    schemas = [_schema(name, schema) for name, schema in sorted(document["components"]["schemas"].items())]
    html = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{title}</title><style>{_STYLE}</style><h1>{title}</h1><p>{escape(document['info'].get('summary', ''))} "
        f'For tools: <a href="openapi.json">openapi.json</a>.</p>'
        f"<h2>Routes</h2>{''.join(operations)}<h2>Schemas</h2>{''.join(schemas)}</html>"
    )
    return HTMLResponse(html, headers=_HEADERS)


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = [
        (f"<code>{escape(one['name'])}</code>", escape(one["in"]), _type(one.get("schema", {})))
        for one in operation.get("parameters", ())
    ]
    request = operation.get("requestBody", {}).get("content", {})
    body = [(escape(kind), _type(content.get("schema", {}))) for kind, content in request.items()]
    responses = [
        (escape(status), escape(response.get("description", "")), _bodies(response))
        for status, response in sorted(operation["responses"].items())
    ]
    scopes = sorted({scope for entry in operation.get("security", ()) for scopes in entry.values() for scope in scopes})
    return (
        f"<h3><code>{method.upper()} {escape(path)}</code></h3>{_paragraphs(operation.get('description', ''))}"
        + (f"<p>Needs a token with the scope <code>{escape(', '.join(scopes))}</code>.</p>" if scopes else "")
        + _table(("Parameter", "In", "Type"), parameters)
        + _table(("Request body", "Schema"), body)
        + _table(("Status", "Meaning", "Body"), responses)
    )


def _schema(name: str, schema: dict[str, Any]) -> str:
    required = schema.get("required", ())
    properties = [
        (f"<code>{escape(field)}</code>", _type(of), "yes" if field in required else "", escape(of.get("description", "")))
        for field, of in schema.get("properties", {}).items()
    ]
    heading = f'<h3 id="{escape(name)}">{escape(name)}</h3>{_paragraphs(schema.get("description", ""))}'
    return heading + (_table(("Field", "Type", "Required", "Meaning"), properties) or f"<p>{_type(schema)}</p>")


def _type(schema: dict[str, Any]) -> str:
    """Return a schema in one line, with links to the schemas that it names."""
    if "$ref" in schema:
        name = escape(schema["$ref"].rpartition("/")[2])
        return f'<a href="#{name}">{name}</a>'
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(_type(one) for one in schema[several])
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"<code>{escape(str(value))}</code>" for value in values)
    kind = escape(str(schema.get("type", "anything")))
    if kind == "array":
        items = schema.get("items") or {}
        return f"array of {_type(items)}" if isinstance(items, dict) else kind
    if isinstance(values := schema.get("additionalProperties"), dict):
        return f"{kind} of {_type(values)}"
    encoding = schema.get("contentEncoding") or schema.get("format")
    return f"{kind} ({escape(encoding)})" if encoding else kind


def _bodies(response: dict[str, Any]) -> str:
    """Return the schemas of a response, each once."""
    contents = response.get("content", {}).values()
    return " ".join(dict.fromkeys(_type(content["schema"]) for content in contents if content.get("schema")))


def _paragraphs(text: str) -> str:
    return "".join(f"<p>{escape(part.strip())}</p>" for part in text.split("\n\n") if part.strip())


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table of HTML cells, nothing without rows."""
    if not rows:
        return ""
    head = "".join(f"<th>{one}</th>" for one in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
