"""Writes the two files of a report."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pocketrank.cloud.files import write_atomically
from pocketrank.sdk_demo.report.page import html_page

__all__ = ["HTML", "JSON", "write_report"]

HTML = "report.html"
"""File name of the page."""
JSON = "report.json"
"""File name of the figures."""


def write_report(report: Mapping[str, Any], folder: Path) -> None:
    """Write `report.html`, then `report.json`, so that a folder with the second also has the first.

    `report` holds plain values; NaN is written as null.
    """
    figures = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    write_atomically(folder / HTML, html_page(report).encode())
    write_atomically(folder / JSON, figures)
