"""The report as one HTML file without scripts and without external fonts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from pocketrank.sdk_demo.report import plots

__all__ = ["html_page"]

_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Pocketrank: demo report</title>
<style>
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #111827; background: #f3f4f6; margin: 0; }
main { max-width: 1080px; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.5rem; margin: 0 0 .25rem; }
h2 { font-size: 1.15rem; margin: 2.25rem 0 .75rem; }
section.head, figure, table { background: #fff; border: 1px solid #e5e7eb; border-radius: 10px; }
section.head { padding: 1.5rem; }
.label { background: #fef3c7; border: 1px solid #f59e0b; border-radius: 999px; padding: .1rem .7rem; font-size: .85rem;
  font-weight: 600; }
.share { font-size: 3.2rem; font-weight: 700; color: #1d4ed8; line-height: 1.1; margin: 1rem 0 0; } .note { color: #4b5563;
margin: .25rem 0; max-width: 100ch; } .plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 430px),
1fr)); gap: 1rem; } figure { margin: 0; padding: 1rem; } figure svg { width: 100%; height: auto; } figcaption { font-weight:
600; margin-bottom: .5rem; } .wide { overflow-x: auto; } table { border-collapse: separate; border-spacing: 0; width: 100%;
font-variant-numeric: tabular-nums; } th, td { padding: .5rem .75rem; text-align: right; border-bottom: 1px solid #e5e7eb;
vertical-align: top; } th:first-child, td:first-child, table.facts td { text-align: left; } tr:last-child td { border-bottom: 0;
} thead th { font-size: .85rem; color: #4b5563; } small { color: #6b7280; white-space: nowrap; } </style> </head> <body> <main>
<section class="head"> <h1>Pocketrank: the demo</h1> <p><span class="label">simulated users</span></p> $headline </section>
<h2>Per session</h2> <div class="wide">$policies</div> <p class="note">Mean and 95&nbsp;% interval (bootstrap over users,
$resampled). All policies had the same users with the same random numbers. <em>Cloud order</em> shows each page as the cloud
ranked it. <em>On device</em> reorders the rest of the page after every swipe. The <em>oracle</em> knows each user's hidden
state and shows the item that is most likely to be an effective view now: an upper bound.</p> <h2>By position in the
session</h2> <div class="plots">$along</div> <h2>Latency</h2> <div class="plots">$latency</div> <p class="note">Phones and
server shared this machine. A phone's times will differ.</p> <h2>Models</h2> <div class="plots">$models</div> <h2>Export</h2>
<div class="wide">$export</div> <p class="note">Largest difference from torch's scores on full, padded, empty-feedback and
one-candidate inputs. Core ML cannot run on Linux: its saved program was evaluated operation by operation in numpy, which does
not test Apple's runtime.</p> <h2>Data and run</h2> <div class="wide">$data</div> </main> </body> </html>
""")

_FIGURES = {
    "effective_views_per_session": ("effective views", 2),
    "likes_per_session": ("likes", 3),
    "watch_s_per_session": ("watch, s", 0),
    "items_per_session": ("items", 1),
    "requests_per_session": ("page requests", 2),
}


def html_page(report: Mapping[str, Any]) -> str:
    """Return the page for a report of `pocketrank.sdk_demo.demo.run_demo`."""
    emulation, latency = report["emulation"], report["latency_ms"]
    return _PAGE.substitute(
        headline=_headline(emulation),
        policies=_policies(emulation["policies"]),
        resampled=f"{emulation['sessions']:,} sessions of {emulation['users']:,} users for each policy",
        along=_figure("Effective views by position", plots.effective_views(emulation))
        + _figure("Sessions that reach each position", plots.alive(emulation)),
        latency=_figure("Reordering at a swipe, in the SDK", plots.histogram(latency, "rerank", "reordering at a swipe"))
        + _figure("A page over HTTP", plots.histogram(latency, "page", "page request")),
        models="".join(
            _figure(f"AUC of each model: {task.replace('_', ' ')}", plots.model_auc(report["models"], task))
            for task in ("effective_view", "like")
        ),
        export=_export(report["export"]["models"]),
        data=_data(report),
    )


def _headline(emulation: Mapping[str, Any]) -> str:
    share, gain = emulation["uplift_share"], emulation["gain"]["on_device"]["effective_views_per_session"]
    floor = emulation["policies"]["cloud_order"]["effective_views_per_session"]
    low, high = gain["ci95"]
    verdict = "which excludes zero" if low > 0 or high < 0 else "which includes zero"
    gained = (
        f"Effective views per session: {gain['mean']:+.2f} over cloud order ({100 * gain['mean'] / floor:+.0f}&nbsp;%), "
        f"95&nbsp;% interval {low:+.2f} to {high:+.2f}, {verdict}."
    )
    if share is None:
        return f'<p class="note">The oracle gained nothing over cloud order: there is no uplift to capture.</p><p>{gained}</p>'
    low, high = share["ci95"]
    return (
        f'<p class="share">{100 * share["mean"]:.0f}&nbsp;%</p>'
        "<p><strong>of the oracle's uplift over cloud order is captured on the device</strong> "
        f"(95&nbsp;% interval {100 * low:.0f} to {100 * high:.0f}&nbsp;%).</p>"
        f'<p class="note">{gained}</p>'
        '<p class="note">The users are simulated by a model of ours. They show that the system works, and compare policies on '
        "equal terms. They do not predict what an app would gain.</p>"
    )


def _policies(policies: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(plots.LABELS[policy]),
            *(
                f"{row[name]:,.{digits}f}<br><small>{_interval(row[f'{name}_ci95'], digits)}</small>"
                for name, (_, digits) in _FIGURES.items()
            ),
        ]
        for policy, row in policies.items()
    ]
    return _table(["policy", *(title for title, _ in _FIGURES.values())], rows)


def _interval(ends: Sequence[float] | None, digits: int) -> str:
    return "" if ends is None else f"{ends[0]:,.{digits}f} to {ends[1]:,.{digits}f}"


def _export(models: Mapping[str, Any]) -> str:
    rows = [
        [
            escape(f"{row['format']}, {row['form'].replace('_', '-')}, {row['precision']}"),
            f"{row['bytes'] / 1000:,.0f} kB",
            f"{row['max_abs_diff']:.1e}",
            "" if row["p50_ms"] is None else f"{row['p50_ms']:.2f} ms",
            escape(row["runtime"]),
        ]
        for row in models.values()
    ]
    return _table(["model", "size", "largest difference", "median run", "checked in"], rows)


def _data(report: Mapping[str, Any]) -> str:
    data = report["data"]
    rates = ", ".join(f"{name.replace('_', ' ')} {rate:.4f}" for name, rate in data["rates"].items())
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in report["seconds"].items())
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    size = f"{data['impressions']:,} impressions, {data['items']:,} items, {data['users']:,} users"
    rows = [["log (simulated)", size], ["rates in the log", rates], ["seconds", seconds], ["versions", versions]]
    return _table(["", ""], [[escape(name), escape(value)] for name, value in rows])


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """`rows` are HTML already."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    if not any(head):
        return f'<table class="facts">{body}</table>'
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def _figure(caption: str, svg: str) -> str:
    return f"<figure><figcaption>{escape(caption)}</figcaption>{svg}</figure>"
