"""The report as one HTML file without scripts and without external fonts or images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

from pocketrank.sdk_demo.report import plots
from pocketrank.sdk_demo.report.html import document, figure, table

__all__ = ["html_page"]

_BODY = Template("""<section class="head">
<h1>Pocketrank: the demo</h1>
<p><span class="label">simulated users</span></p> $headline
</section>
<h2>Per session</h2>
<div class="wide">$policies</div>
<p class="note">Mean and 95&nbsp;% interval (bootstrap over users, $resampled). All policies had the same users with the
same random numbers. <em>Cloud order</em> shows each page as the cloud ranked it. <em>On device</em> reorders the rest of
the page after every swipe. The <em>oracle</em> knows each user's hidden state and shows the item that is most likely to be
an effective view now: an upper bound.</p>
<h2>By position in the session</h2>
<div class="plots">$along</div>
<h2>Latency</h2>
<div class="plots">$latency</div>
<p class="note">Phones and server shared this machine. A phone's times will differ.</p>
<h2>Models</h2>
<div class="plots">$models</div>
<h2>Export</h2>
<div class="wide">$export</div>
<p class="note">Largest difference from torch's scores on full, padded, empty-feedback and one-candidate inputs. Core ML
cannot run on Linux: its saved program was evaluated operation by operation in numpy, which does not test Apple's
runtime.</p>
<h2>Data and run</h2>
<div class="wide">$data</div>
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
    body = _BODY.substitute(
        headline=_headline(emulation),
        policies=_policies(emulation["policies"]),
        resampled=f"{emulation['sessions']:,} sessions of {emulation['users']:,} users for each policy",
        along=figure("Effective views by position", plots.effective_views(emulation))
        + figure("Sessions that reach each position", plots.alive(emulation)),
        latency=figure("Reordering at a swipe, in the SDK", plots.histogram(latency, "rerank", "reordering at a swipe"))
        + figure("A page over HTTP", plots.histogram(latency, "page", "page request")),
        models="".join(
            figure(f"AUC of each model: {task.replace('_', ' ')}", plots.model_auc(report["models"], task))
            for task in ("effective_view", "like")
        ),
        export=_export(report["export"]["models"]),
        data=_data(report),
    )
    return document("demo report", body)


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
    return table(["policy", *(title for title, _ in _FIGURES.values())], rows)


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
    return table(["model", "size", "largest difference", "median run", "checked in"], rows)


def _data(report: Mapping[str, Any]) -> str:
    data = report["data"]
    rates = ", ".join(f"{name.replace('_', ' ')} {rate:.4f}" for name, rate in data["rates"].items())
    seconds = ", ".join(f"{name} {value:.0f}" for name, value in report["seconds"].items())
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    size = f"{data['impressions']:,} impressions, {data['items']:,} items, {data['users']:,} users"
    rows = [["log (simulated)", size], ["rates in the log", rates], ["seconds", seconds], ["versions", versions]]
    return table(["", ""], [[escape(name), escape(value)] for name, value in rows])
