"""The page at `/docs`, read by a parser of HTML."""

from html.parser import HTMLParser
from typing import Any

from starlette.responses import Response

from pocketrank.cloud.serving.http.docs import docs_response
from pocketrank.cloud.serving.http.openapi import complete

DOCUMENT: dict[str, Any] = {
    "info": {"title": "Small <b>", "summary": "An API."},
    "paths": {
        "/things/{name}": {
            "get": {
                "description": "Return a thing.",
                "parameters": [{"name": "name", "in": "path", "schema": {"type": "string"}}],
                "security": [{"token": ["admin"]}],
                "responses": {"200": {"description": "It.", "content": {"application/json": {"schema": {"type": "object"}}}}},
            }
        }
    },
}


class Elements(HTMLParser):
    """Elements that a browser would load, the targets of links, and the text."""

    def __init__(self, page: Response) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loaded: list[str] = []
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.text = ""
        self.feed(bytes(page.body).decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        named = {name: value or "" for name, value in attrs}
        self.tags.add(tag)
        self.loaded += [value for name, value in named.items() if name in ("src", "data") or (tag == "link" and name == "href")]
        if tag == "a":
            self.links.add(named["href"])
        if "id" in named:
            self.ids.add(named["id"])

    def handle_data(self, data: str) -> None:
        self.text += data + " "


def test_the_page_needs_nothing_from_elsewhere_and_its_links_lead_somewhere() -> None:
    page = docs_response(complete({**DOCUMENT, "paths": {**DOCUMENT["paths"]}}, [{"token": ["device"]}]))
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["content-security-policy"].startswith("default-src 'none'")
    found = Elements(page)
    assert not found.loaded
    assert not {"script", "link", "img", "iframe"} & found.tags
    assert found.links - {f"#{name}" for name in found.ids} == {"openapi.json"}
    for text in (
        "GET /things/{name}",
        "POST /v1/page",
        "Small <b>",
        "Return a thing.",
        "PageRequest",
        "admin",
        "split_version",
    ):
        assert text in found.text
    assert "b" not in found.tags
