"""Parts of a report's HTML: one file without scripts and without external fonts or images."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["document", "figure", "table"]

_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #111827; background: #f3f4f6; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
section.head, figure, table { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; }
section.head { padding: 1.5rem; }
.label { background: #fef3c7; border: 1px solid #f59e0b; border-radius: 999px; padding: .1rem .7rem; font-size: .85rem;
  font-weight: 600; }
.share { font-size: 3.2rem; font-weight: 700; color: #1d4ed8; line-height: 1.1; margin: 1rem 0 0; }
.note { color: #4b5563; margin: .25rem 0; max-width: 100ch; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px), 1fr)); gap: 1rem; }
figure { margin: 0; padding: 1rem; }
figure svg { width: 100%; height: auto; }
figcaption { font-weight: 600; margin-bottom: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: separate; border-spacing: 0; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .5rem .75rem; text-align: right; border-bottom: 1px solid #e5e7eb; vertical-align: top; }
th:first-child, td:first-child, table.facts td { text-align: left; }
tr:last-child td { border-bottom: 0; }
thead th { font-size: .85rem; color: #4b5563; }
small { color: #6b7280; white-space: nowrap; }
h3 { font-size: 1rem; margin: 1.25rem 0 .5rem; }
pre { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; padding: 1rem; overflow-x: auto; font-size: .8rem; }
"""


def document(title: str, body: str) -> str:
    """Return a page with the HTML `body`."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Pocketrank: {escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n{body}</main>\n"
        "</body>\n</html>\n"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table; cells of `rows` are HTML already. One without headings is a list of facts."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    if not any(head):
        return f'<table class="facts">{body}</table>'
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def figure(caption: str, svg: str) -> str:
    """Return a plot with its caption."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"
