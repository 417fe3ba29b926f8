"""Prints the reports of `pocketrank.sdk_demo.inspection` on a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

__all__ = ["print_bundle", "print_decisions", "print_why"]

_STAGES = ("whole", "page", "event", "watch", "choose", "search")


def print_bundle(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report of `pocketrank.sdk_demo.inspection.inspect_bundle`."""
    if "name" in report:
        expires = "never" if report["expires_ms"] is None else _date(report["expires_ms"])
        _line(console, f"{report['name']}/{report['serial']}: split version {report['split_version']}")
        _line(console, f"created {_date(report['created_ms'])}, expires {expires}", "EXPIRED" if report["expired"] else "")
        files = report["files"]
        bad = files["listed"] - files["as_listed"]
        state = f"{bad} do not match the manifest" if bad else "all match the manifest"
        _line(console, f"{files['listed']} files, {files['bytes']:,} bytes: {state}")
        if files["unlisted"]:
            _line(console, f"not in the manifest, so devices ignore: {', '.join(files['unlisted'])}")
        _print_models(console, report["models"])
        for name, value in report["further"].items():
            _line(console, f"{name}: {_plain(value)}")
        if report["spec"] is not None:
            _print_spec(console, report["spec"])
    for problem in report["problems"]:
        _line(console, "", f"damaged: {problem}")


def _print_models(console: Console, models: Sequence[Mapping[str, Any]]) -> None:
    table = _table()
    table.add_column("model", no_wrap=True)
    stages = [stage for stage in _STAGES if any(stage in row["stages"] for row in models)]
    for column in (*stages, "differs\nfrom torch", "AUC\nlost", "swipe's\nrun, ms"):
        table.add_column(column, justify="right")
    for row in models:
        name = ".".join(filter(None, (row["form"], row["precision"], row["format"], row["group"])))
        files = {stage: part["path"] for stage, part in row["stages"].items()}
        first = {path: stage for stage, path in reversed(files.items())}  # show the size of a shared file once
        sizes = [
            "" if stage not in files else f"{row['stages'][stage]['bytes']:,}" if first[files[stage]] == stage else "same file"
            for stage in stages
        ]
        run = row["refused"] if row["rerank_ms"] is None else f"{row['rerank_ms']:.3f}"
        table.add_row(name, *sizes, _number(row["max_abs_diff"], ".1e"), _number(row["auc_lost"], ".4f"), run)
    _print(console, "models, bytes by stage", table)


def _print_spec(console: Console, spec: Mapping[str, Any]) -> None:
    weights = ", ".join(f"{task} {spec['task_weights'].get(task, 0):g}" for task in spec["tasks"])
    _line(console, f"tasks and weights: {weights}")
    if spec["survival_task"]:
        _line(console, f"task that predicts whether the user stays: {spec['survival_task']}")
    sizes = f", compiled for {', '.join(map(str, spec['list_sizes']))}" if spec["list_sizes"] else ""
    _line(console, f"up to {spec['candidates_max']} candidates{sizes}; the last {spec['events_max']} events")
    _line(console, f"search: {_plain(spec['search']) if spec['search'] else 'the best next item'}")
    table = _table()
    for column in ("of", "feature"):
        table.add_column(column, no_wrap=True)
    for column in ("from", "to", "default", "scale"):
        table.add_column(column, justify="right")
    for group in ("candidate_floats", "feedback_floats", "context_floats"):
        for f in spec[group]:
            scale = "" if f["scale"] == 1 else f"{f['scale']:g}"
            table.add_row(
                group.removesuffix("_floats"), f["name"], f"{f['min']:g}", f"{f['max']:g}", f"{f['default']:g}", scale
            )
    for f in spec["candidate_categories"]:
        table.add_row("candidate", f["name"], "0", str(f["size"] - 1), "0")
    if spec["vector_width"]:
        table.add_row("candidate", f"vector, {spec['vector_width']} wide")
    _print(console, "features, in the model's units", table)


def print_decisions(console: Console, report: Mapping[str, Any]) -> None:
    """Print the decisions of a report of `pocketrank.sdk_demo.inspection.inspect_session`."""
    table = _table()
    for column, left in (
        ("", False), ("item", False), ("ordered by", True), ("cloud rank\n→ rank", False), ("score", False),
        ("next best", False), ("paging", True), ("ms", False), ("strategies", True),
    ):  # fmt: skip
        table.add_column(column, justify="left" if left else "right")
    for row in report["decisions"]:
        table.add_row(
            str(row["position"]),
            str(row["shown"]),
            _ordered_by(row),
            _ranks(row),
            _number(row["total"], ".4f"),
            _number(row["best_other"], ".4f"),
            _paging(row["paging"]),
            f"{row['spent_ms']:.2f}",
            "\n".join(row["strategies"]),
        )
    if report["decisions"]:
        _print(console, f"{report['path']}: items shown, and what ordered them", table)
    else:
        _line(console, f"{report['path']}: no decisions; items that the app itself chose are not recorded")
    if report["damage"]:
        _line(console, "", report["damage"])
    if report["cut"]:
        _line(console, "the trace ends there because its process was killed; everything before is intact")


def print_why(console: Console, why: Mapping[str, Any], top: int) -> None:
    """Print a report of `pocketrank.sdk_demo.inspection.why`, with its first `top` candidates and events."""
    row, explained = why["decision"], why["explained"]
    moved = "" if row["cloud_rank"] is None else f", cloud rank {row['cloud_rank']} of {row['held']}"
    _line(console, f"position {row['position']} showed item {row['shown']}{moved}")
    page, bundle = (row[name] or "unknown" for name in ("page_id", "bundle"))
    _line(console, f"{_date(row['now_ms'])}, page {page}, bundle {bundle}, events known: {row['events']}")
    personal = " and the personal layer" if row["personal"] else ""
    _line(console, f"ordered by {_ordered_by(row)}{personal} in {row['spent_ms']:.2f} ms")
    for strategy in row["strategies"]:
        _line(console, f"strategy: {strategy}")
    if row["best_other"] is not None and row["best_other"] > row["total"] and why.get("search") and not row["strategies"]:
        _line(console, "another item has a higher score, but no list that begins with it does: the search compares lists")
    if row["paging"] is not None:
        _line(console, f"paging: {_paging(row['paging'])}")
    _print_candidates(console, why, top)
    if not why["events"]:
        _line(console, "no events: nothing that the user did influenced this decision")
    else:
        _print_events(console, why, top)
    if explained is None:
        _line(console, "for attention and influence, name the session's bundle with --bundle" if why["events"] else "")
        return
    if explained["null_attention"]:
        shares = explained["null_attention"]
        _line(console, f"attention to no event: {_mean(shares):.1%} on average, by head {_percents(shares)}")
    elif why["events"]:
        _line(console, f"no attention: {explained['model']} is not an ONNX graph with attention over events")
    differs = explained["differs"]
    if differs is None:
        _line(console, f"no recorded scores: these are the scores of {explained['model']}, run now")
    else:
        _line(console, f"run again: {explained['model']}; its scores differ from the recorded ones by at most {differs:.1e}")


def _print_candidates(console: Console, why: Mapping[str, Any], top: int) -> None:
    tasks, rows = why.get("tasks", []), why["candidates"]
    table = _table()
    ranks = ["cloud\nrank", *(["without\nevents"] if why["explained"] else [])]
    for column in ("", "item", *ranks, *tasks, *(["score"] if tasks else [])):
        table.add_column(column, justify="right")
    for rank, row in enumerate(rows[:top], 1):
        before = [str(row["cloud_rank"]), *([str(row.get("unwatched", ""))] if why["explained"] else [])]
        scores = [_number(row.get("scores", {}).get(task), ".3f") for task in tasks]
        shown = "bold" if row["item"] == why["decision"]["shown"] else None
        total = [_number(row.get("total"), ".4f")] if tasks else []
        table.add_row(str(rank), str(row["item"]), *before, *scores, *total, style=shown)
    _print(console, f"candidates in their order, {min(top, len(rows))} of {len(rows)}", table)


def _print_events(console: Console, why: Mapping[str, Any], top: int) -> None:
    events = why["events"]
    has_influence = all("influence" in event for event in events)
    if has_influence:
        events = sorted(events, key=lambda event: -abs(event["influence"]["total"]))
    has_attention = any(event.get("attention") for event in events)
    sorted_by = "by influence on the item shown" if has_influence else "newest first"
    table = _table()
    columns = ("item", "s ago", *(["influence"] if has_influence else []), *(["attention", "by head"] if has_attention else []))
    for column in columns:
        table.add_column(column, justify="right")
    table.add_column("what the user did")
    for event in events[:top]:
        cells = [str(event["item"] or "unknown"), f"{event['seconds_ago']:.0f}"]
        if has_influence:
            cells.append(f"{event['influence']['total']:+.4f}")
        if has_attention:
            cells += [f"{_mean(event['attention']):.1%}", _percents(event["attention"])]
        table.add_row(*cells, _actions(event["did"], event["categories"]))
    _print(console, f"events, {sorted_by}, {min(top, len(events))} of {len(events)}", table)


def _actions(did: Mapping[str, Any], categories: Mapping[str, int]) -> str:
    """Describe in words what a user did with an item."""
    parts = [f"{name} {code}" for name, code in categories.items()]
    for name, value in did.items():
        if name == "watch_ms":
            parts.append(f"watched {value / 1e3:.1f} s")
        elif name == "ended":
            parts.append(f"ended by {value}" if isinstance(value, str) else f"ended {value}")
        elif value is True:
            parts.append(name.replace("_", " "))
        else:
            parts.append(f"{name.replace('_', ' ')} {value if isinstance(value, str) else format(value, 'g')}")
    return ", ".join(parts)


def _ordered_by(row: Mapping[str, Any]) -> str:
    order = row["form"] if row["ordered"] else "cloud order"
    return f"{order}: {row['fallback']}" if row["fallback"] else order


def _paging(decision: Mapping[str, Any] | None) -> str:
    if decision is None:
        return ""
    return f"request {decision['size']}: {decision['reason']}" if decision["request"] else str(decision["reason"])


def _ranks(row: Mapping[str, Any]) -> str:
    return "" if row["cloud_rank"] is None else f"{row['cloud_rank']} of {row['held']} → {row['rank']}"


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares)


def _percents(shares: Sequence[float]) -> str:
    return " ".join(f"{100 * share:.0f}" for share in shares)


def _number(value: float | None, kind: str) -> str:
    return "" if value is None else format(value, kind)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items() if part is not None)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _date(ms: int) -> str:
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(ms / 1000))
    except (OverflowError, OSError, ValueError):  # beyond the years of a calendar
        return f"{ms} ms"


def _table() -> Table:
    return Table(box=SIMPLE_HEAD)


def _print(console: Console, title: str, table: Table) -> None:
    _line(console, title)  # a title of the table would be wrapped at the table's width
    console.print(table)


def _line(console: Console, text: str, warning: str = "") -> None:
    if text or warning:
        line = Text(text).append(" " if text and warning else "").append(warning, style="red")
        console.print(line, soft_wrap=True, highlight=False)
