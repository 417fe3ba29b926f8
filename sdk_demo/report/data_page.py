"""The report on a team's tables as one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from pocketrank.sdk_demo.report import plots
from pocketrank.sdk_demo.report.html import document, figure, table

__all__ = ["data_page"]


def data_page(report: Mapping[str, Any]) -> str:
    """Return the page for a report of `pocketrank.cloud.data.check.check_data`."""
    suspicions = [f"<li>{_marked(one)}</li>" for one in report["suspicions"]]
    facts = [
        ["rows", f"{report['rows']:,}, of which {report['duplicates']:,} equal another one"],
        ["users and items", f"{report['users']:,} and {report['items']:,}"],
        ["from and to", f"{report['first']} and {report['last']}"],
        ["days without rows", f"{len(report['gaps']):,}"],
    ]
    labels = [
        [escape(name), "" if label["rate"] is None else f"{label['rate']:.4f}", f"{label['known']:.1%}"]
        for name, label in report["labels"].items()
    ]
    ids = [
        [
            escape(kind),
            f"{one['texts']:,}",
            f"{one['alike']:,}",
            escape("; ".join(" / ".join(texts) for texts in one["examples"])),
        ]
        for kind, one in report["ids"].items()
    ]
    inputs = list(dict.fromkeys(name for row in report["auc"].values() for name in row))
    auc = [[escape(name), *(_auc(report["auc"][label].get(name)) for label in report["auc"])] for name in inputs]
    parts = [
        f'<section class="head"><h1>{escape(report["name"])}</h1>{table(["", ""], [[escape(a), escape(b)] for a, b in facts])}',
        "</section>\n<h2>Suspicions</h2>\n",
        f"<ul>{''.join(suspicions)}</ul>" if suspicions else '<p class="note">None.</p>',
        f'\n<h2>Clock of {escape(report["time_zone"])}</h2>\n<div class="plots">',
        figure("Rows by day", plots.rows_per_day(report["days"])),
        figure("Rows by hour of the day", plots.hours(report["hours"])),
        f'</div>\n<h2>Labels</h2>\n<div class="wide">{table(["label", "rate", "known"], labels)}</div>',
        '\n<h2>Coverage</h2>\n<p class="note">Rows with a value, by query and column.</p><div class="plots">',
        *(figure(name, plots.shares(columns, f"known in {name}")) for name, columns in report["coverage"].items()),
        "</div>\n",
    ]
    if ids:
        head = ["ids that are text", "different", "alike but for case and blanks", "examples"]
        parts.append(f'<h2>Ids</h2>\n<div class="wide">{table(head, ids)}</div>\n')
    if auc:
        parts.append(
            '<h2>What each input alone tells of a label</h2>\n<p class="note">AUC: 0.5 is nothing, 0 and 1 are everything.</p>'
            f'<div class="wide">{table(["input", *report["auc"]], auc)}</div>\n'
        )
    return document("data report", "".join(parts))


def _auc(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _marked(sentence: str) -> str:
    """Return a sentence as HTML, with code where it has backticks."""
    parts = escape(sentence).split("`")
    return "".join(f"<code>{part}</code>" if number % 2 else part for number, part in enumerate(parts))
