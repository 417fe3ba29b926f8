"""The command line of `benchmarks.latency`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

from rich.console import Console

from benchmarks.command import command_parser, count, figure_table, from_options, one_line_errors
from benchmarks.latency.measure import Repetitions, measure
from benchmarks.latency.searches import PUBLISHED
from benchmarks.latency.subject import FORMATS, subjects
from pocketrank.sdk_demo.cli.output import JsonTarget, progress

__all__ = ["main", "print_report"]

_HELP = """\
Time the on-device model, its stages, list searches and whole swipes, on one thread, beside peers and beside the limit set by
this core's matrix products.

  python -m benchmarks.latency                                 the presets tiny and paper with random weights
  python -m benchmarks.latency --run runs/world                the model of a run, exported first
  python -m benchmarks.latency --bundle bundle --run runs/world       a bundle beside the run it came from
"""


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the options in `arguments`."""
    parser = command_parser("latency", _HELP)
    parser.add_argument(
        "--bundle", type=Path, metavar="DIR", help="bundle with onnx and tflite; without --run it must be of the default sizes"
    )
    parser.add_argument(
        "--run",
        type=Path,
        metavar="DIR",
        action="append",
        default=[],
        help="run to measure, exported when there is no --bundle; may be repeated",
    )
    parser.add_argument("--rounds", type=count, default=Repetitions.rounds, help="turns of everything [%(default)s]")
    parser.add_argument("--runs", type=count, default=Repetitions.runs, help="runs of each kind in a turn [%(default)s]")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    presets: dict[str, dict[str, Any]] = {}
    repetitions = from_options(Repetitions, options)
    with TemporaryDirectory(prefix="pocketrank-") as scratch:
        with progress(target.console, "preparing the bundles") as update:
            found = subjects(options.bundle, options.run, Path(scratch), update)
        for subject in found:
            with progress(target.console, f"measuring {subject.name}") as update:
                presets[subject.name] = measure(subject, repetitions, update, Path(mkdtemp(dir=scratch)))
    target.write({**next(iter(presets.values())), "presets": presets})
    for name, report in presets.items():
        print_report(target.console, name, report)


def print_report(console: Console, name: str, report: Mapping[str, Any]) -> None:
    """The report of a preset for people; of stages, searches and the beam that of the headline form."""
    for form, figures in report["forms"].items():
        title = f"{name}, {form}: {report['candidates']} candidates, {report['events']} events, one thread, microseconds"
        table = figure_table(title, "run p50", "run p99", "x limit", "swipe p50", "swipe p99", "of it SDK")
        for runtime, run in figures["rerank"].items():
            cells = ["-"] if run is None else [_us(run["p50_ms"]), _us(run["p99_ms"]), f"{run['ratio_to_limit']:.1f}"]
            if (swipe := figures["swipe"].get(runtime)) is not None:
                own = f"{_us(swipe['outside_p50_ms'])} = {swipe['sdk_overhead_share']:.0%}"
                cells += [_us(swipe["p50_ms"]), _us(swipe["p99_ms"]), own]
            table.add_row(runtime, *cells)
        table.add_row("limit", _us(figures["limit_ms"]), "", "1.0")
        console.print(table)
    _print_stages(console, report)
    if report["beam"] is not None:
        _print_beam(console, report["beam"])
    best, memory, imports = report["matmul_gflop_s"]["best"], report["memory"], report["imports"]
    console.print(
        f"The limit is {report['flop'] / 1e6:.2f} million operations at {best:.0f} thousand million a second. "
        f"Fastest: {report['fastest']}, {report['ratio_to_limit']:.1f} times the limit, "
        f"{report['sdk_overhead_share']:.0%} of its swipe in the SDK, outside the model's runs.\n"
        f"Peak memory of a device process: {memory['device_process_mib']:.0f} MiB, "
        f"{memory['above_bare_mib']:.0f} MiB above bare Python, numpy and onnxruntime, "
        f"whose import takes {imports['bare_ms']:.0f} ms and that of a session {imports['session_above_ms']:.0f} ms more.\n",
        highlight=False,
    )


def _print_stages(console: Console, report: Mapping[str, Any]) -> None:
    table = figure_table(f"{report['form']}: what a swipe computes, microseconds", *FORMATS)
    rows = report["incremental"].values()
    table.add_row("stage page, when a page comes", *(_us(row["page_ms"]) for row in rows))
    table.add_row("stage event, of one event", *(_us(row["event_ms"]) for row in rows))
    table.add_row("stage watch", *(_us(row["watch_ms"]) for row in rows))
    table.add_row("event and watch", *(_us(row["swipe_ms"]) for row in rows))
    table.add_row("  x their limit", *(f"{row['ratio_to_limit']:.1f}" for row in rows))
    table.add_row("  x faster than the whole model", *(f"{row['speedup']:.2f}" for row in rows), end_section=True)
    for kind, label in {
        "swipe": "in stages",
        "swipe_whole": "with the whole model",
        "swipe_search": "with a list search",
    }.items():
        if report[kind] is not None:
            table.add_row(f"swipe through the SDK, {label}", *(_us(row["p50_ms"]) for row in report[kind].values()))
    for kind, label in {
        "swipe_equipped": "  strategies, watchdog and telemetry add",
        "swipe_durable": "  and with a durable outbox",
    }.items():
        rows = report[kind]["stages"].values()
        table.add_row(label, *(f"{_us(row['added_ms'])} = {row['added_share']:.0%} of the runs" for row in rows))
    if report["search"] is not None:
        rows = report["search"].values()
        table.add_section()
        table.add_row("list search on the host", *(_us(row["host_ms"]) for row in rows))
        table.add_row("list search in the graph", *(_us(row["in_graph_ms"]) for row in rows))
        table.add_row("  x faster", *(f"{row['ratio']:.2f}" for row in rows))
        table.add_row("  mean number of steps", *(f"{row['steps']:.1f}" for row in rows))
    table.add_section()
    table.add_row("kB of the stages' files", *(f"{row['stages'] / 1e3:.0f}" for row in report["bytes"].values()))
    table.add_row("kB of the whole model's", *(f"{row['whole'] / 1e3:.0f}" for row in report["bytes"].values()))
    console.print(table)


def _print_beam(console: Console, beam: Mapping[str, Any]) -> None:
    title = f"A beam of {beam['beam']} by steps, {beam['runtime']}, {beam['lists']} lists, weights: {beam['weights']}"
    table = figure_table(title, *(str(i + 1) for i in range(len(beam["stability"]))))
    for what, label in {"stability": "stability", "relative_cost": "cost by the first step's"}.items():
        table.add_row(label, *(f"{value:.4g}" for value in beam[what]))
        table.add_row("  published", *(f"{value:.4g}" for value in PUBLISHED[what][: len(beam[what])]))
    console.print(table)


def _us(ms: float) -> str:
    return f"{ms * 1e3:.0f}"


if __name__ == "__main__":
    sys.exit(main())
