"""The command line of `benchmarks.serving`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks.command import command_parser, figure_table, from_options, one_line_errors
from benchmarks.errors import BenchmarkError
from benchmarks.serving.host import Cores, on_core
from benchmarks.serving.load import Load
from benchmarks.serving.parts import measure_growth, measure_http, measure_page, measure_peers
from benchmarks.serving.published import WorldSize, publish_small, publish_world
from benchmarks.serving.rounds import Bench, ServingExtent
from pocketrank.cloud.training.run import Run
from pocketrank.sdk_demo.cli.output import JsonTarget, progress

__all__ = ["PARTS", "main", "measure_serving", "print_report"]

_HELP = """\
Time the cloud's page server on one core under load from another process: its pages beside the ranking model's own run and
beside peers, its HTTP beside a bare one, the growth of its catalogue, and the embedding stores.

  python -m benchmarks.serving --json serving.json          everything; about ten minutes and 3 GB of memory
  python -m benchmarks.serving --only page --seconds 2      a quick look at the page alone
  python -m benchmarks.serving --only growth --sizes 10000 100000
"""
PARTS = {
    "page": "pages and the model alone",
    "peers": "pages of peers",
    "http": "a constant page",
    "growth": "larger and larger catalogues",
    "stores": "embedding stores",
}
"""Parts of the benchmark, and the text of their progress bars."""

_FIGURES = {"rps": ".0f", "p50_ms": ".2f", "p99_ms": ".2f", "cpu_ms": ".3f", "bytes": ".0f", "others_share": ".0%"}
"""Figures of a server that are printed, and how."""


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the options in `arguments`."""
    defaults = ServingExtent()
    parser = command_parser("serving", _HELP)
    parser.add_argument("--only", choices=PARTS, action="append", help="a part to measure; may be repeated [all]")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="of a round of one server [%(default)s]")
    parser.add_argument("--rounds", type=int, default=defaults.rounds, help="turns of all servers of a part [%(default)s]")
    parser.add_argument("--connections", type=int, default=defaults.connections, help="requests under way [%(default)s]")
    parser.add_argument("--items", type=int, default=defaults.items, help="catalogue of page, peers and http [%(default)s]")
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=defaults.sizes, metavar="ITEMS", help="catalogues of growth, smallest first"
    )
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    with TemporaryDirectory(prefix="pocketrank-") as work:
        extent = from_options(ServingExtent, options)
        report = measure_serving(options.only or tuple(PARTS), extent, Path(work), target.console)
    target.write(report)
    print_report(target.console, report)


def measure_serving(
    parts: Sequence[str], extent: ServingExtent, work: Path, console: Console, small: Run | None = None
) -> dict[str, Any]:
    """Measure `parts` of `PARTS` with `work` for scratch and return the report. Raises `BenchmarkError` for useless figures.

    `small` is a run of `publish_small`; without it one is made.
    """
    _check(extent)
    where, size = Cores(), WorldSize(extent.items)
    report: dict[str, Any] = {}
    if set(parts) - {"stores"}:
        with progress(console, "drawing a catalogue") as update:
            small = small or publish_small(work / "small", size)
            update(0.7)
            run = publish_world(work / "run", size, small)
        with on_core(where.load), Load(where.load, work) as load:
            bench = Bench(extent, where, load, work)
            measures = {
                "page": partial(measure_page, bench, run),
                "peers": partial(measure_peers, bench, run),
                "http": partial(measure_http, bench, run),
                "growth": partial(measure_growth, bench, small, size),
            }
            for part, measure in measures.items():
                if part in parts:
                    with progress(console, PARTS[part]) as update:
                        report |= measure(update)
    if "stores" in parts:
        with progress(console, PARTS["stores"]):
            report["stores"] = import_module("benchmarks.stores").measure_stores()
    setup = {
        "items": size.items,
        "users": size.users,
        "vector_width": size.vector_width,
        "history": size.history_max,
        "weights": "random",
        "connections": extent.connections,
        "http_connections": extent.http_connections,
        "seconds": extent.seconds,
        "rounds": extent.rounds,
        "cores": os.cpu_count(),
        "cores_shared": where.shared,
    }
    return {**report, "setup": setup}


def _check(extent: ServingExtent) -> None:
    if not 0 < extent.seconds <= 600:
        raise BenchmarkError("--seconds", "above 0, up to 600", str(extent.seconds))
    for name in ("rounds", "connections"):
        if (got := getattr(extent, name)) < 1:
            raise BenchmarkError(f"--{name}", "1 or more", str(got))
    items_min = 1000
    if min(extent.items, *extent.sizes) < items_min or list(extent.sizes) != sorted(set(extent.sizes)) or len(extent.sizes) < 2:
        got = f"{extent.items} and {', '.join(map(str, extent.sizes))}"
        raise BenchmarkError("--items and --sizes", f"catalogues from {items_min} on, two or more sizes in rising order", got)


def print_report(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report as tables."""
    setup = report["setup"]
    title = f"Pages from one core, {setup['connections']} connections"
    table = figure_table(title, "a second", "p50 ms", "p99 ms", "CPU ms", "bytes", "others' share")
    for name, row in _rows(report):
        table.add_row(name, *(f"{row[figure]:{form}}" for figure, form in _FIGURES.items()))
    if table.row_count:
        console.print(table)
    lines = []
    if "page" in report:
        feedback = report["page"]["with_feedback"]["ratio_to_model"]
        ratio, served = report["ratio_to_model"], report["ratio_to_model_served"]
        lines += [
            f"The ranking model alone takes {report['model_ms']:.2f} ms, as it is served {report['model_served_ms']:.2f}; all",
            f"other CPU time of a page is {ratio:.2f} of the one and {served:.2f} of the other;",
            f"with events in it {feedback:.2f} of the one.",
        ]
    if "peers" in report:
        lines.append(f"{report['peers_ratio']:.2f} times the pages of the best peer, {report['peers_best']}.")
    if "http" in report:
        lines.append(f"A constant page: {report['http']['ratio']:.2f} of a bare server's rate.")
    if "growth" in report:
        growth = report["growth"]
        lines.append(
            f"From {growth['items'][0]:,} to {growth['items'][-1]:,} items p99 grows {growth['p99_ratio']:.2f} times; "
            f"one more item takes {growth['bytes_per_item']:.0f} bytes of memory."
        )
    if setup["cores_shared"]:
        lines.append("Server and load shared one core: these figures can only be compared with each other.")
    console.print("\n".join(lines), highlight=False)


def _rows(report: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    rows: list[tuple[str, Mapping[str, Any]]] = []
    if "page" in report:
        rows += [("page", report["page"]), ("page, with feedback", report["page"]["with_feedback"])]
    if "peers" in report:
        rows += [("page, beside peers", report["peers_ours"]), *(report["peers"].items())]
    if "http" in report:
        rows += [("constant page, our stack", report["http"]["ours"]), ("constant page, bare", report["http"]["raw_asgi"])]
    if "growth" in report:
        growth = report["growth"]
        for i, items in enumerate(growth["items"]):
            rows.append((f"page, {items:,} items", {name: growth[name][i] for name in _FIGURES}))
    return rows


if __name__ == "__main__":
    sys.exit(main())
