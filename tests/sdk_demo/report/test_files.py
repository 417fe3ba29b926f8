import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pocketrank.sdk_demo.report import html_page, write_report
from tests.sdk_demo.conftest import SmallDemo


class _Links(HTMLParser):
    """What a page would load from somewhere, and whether its tags are in order."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value and value[0] != "#"]
        assert tag not in ("script", "link", "img", "iframe")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_needs_nothing_from_elsewhere(small_demo: SmallDemo) -> None:
    text, seen = (small_demo.out / "report.html").read_text(), _Links()
    seen.feed(text)
    assert seen.loads == []
    assert seen.open == []
    assert "@import" not in text
    assert text.count("<svg") == 6


def test_the_page_says_what_it_found_and_that_it_is_simulated(small_demo: SmallDemo) -> None:
    text, emulation = html_page(small_demo.report), small_demo.report["emulation"]
    assert "simulated users" in text
    share = emulation["uplift_share"]
    assert f"{100 * share['mean']:.0f}&nbsp;%" in text
    low, high = emulation["gain"]["on_device"]["effective_views_per_session"]["ci95"]
    assert ("which includes zero" in text) == (low <= 0 <= high)
    for row in small_demo.report["export"]["models"].values():
        assert row["runtime"] in text


def test_without_a_share_the_page_says_so(small_demo: SmallDemo) -> None:
    emulation = small_demo.report["emulation"] | {"uplift_share": None}
    assert "there is no uplift to capture" in html_page(small_demo.report | {"emulation": emulation})


def test_the_same_figures_make_the_same_page(small_demo: SmallDemo) -> None:
    assert html_page(small_demo.report) == html_page(small_demo.report) == (small_demo.out / "report.html").read_text()


def test_a_report_that_cannot_be_written_leaves_the_earlier_one(small_demo: SmallDemo, tmp_path: Path) -> None:
    write_report(small_demo.report, tmp_path)
    with pytest.raises(TypeError):
        write_report(small_demo.report | {"versions": {"x": object()}}, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["versions"] == small_demo.report["versions"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "report.json"]
