"""How fast a swipe is on the device, beside its peers and beside the limit that this core's matrix products set.

`python -m benchmarks.latency --json FILE`. The report is `presets.<name>` for each preset that is measured, the first of them also
at the top. Times are medians in milliseconds unless they say p99; the lists are the longest of the spec. Of the split form::

    rerank.{onnx,tflite,executorch,torch}     p50_ms, p99_ms, ratio_to_limit      a run of the whole model; null: not installed
    incremental.{onnx,tflite}     page_ms; event_ms (one event), watch_ms, their sum swipe_ms; full_ms, the whole model;
                                  speedup = full_ms / swipe_ms; limit_ms and ratio_to_limit of the swipe
    swipe.{onnx,tflite}           p50_ms, p99_ms, run_p50_ms, outside_p50_ms, sdk_overhead_share      feedback(event) and next()
    swipe_whole, swipe_search     the same with the whole model, and with the list search in the graph
    search.{onnx,tflite}          host_ms, in_graph_ms, their ratio, and the mean number of steps      a ranker's order with a beam
    beam                          stability and relative_cost by number of steps when no search stops early, found on the host
                                  in `runtime` with `weights` on `lists` of test rows or random ones
    bytes.{onnx,tflite}           of the whole model's file, of its stages', and of all
    flop, flop_swipe              operations of the matrix products of the whole model, of one event and `watch` (`arithmetic`)
    limit_ms                      flop at the best rate
    fastest                       the runtime with the fastest swipe, of which the next two are
    ratio_to_limit                p50 of a run of the whole model by limit_ms
    sdk_overhead_share            share of a swipe outside the model's runs
    torch_eager                   rerank.torch

And for the preset::

    forms.{split,self_contained}  all of the above for each form
    matmul_gflop_s                this core's rate, `best` and by library and size (`matmul`)
    memory                        device_process_mib, above_bare_mib: peak of a process with one session, and above a bare one
    memory.{onnx,tflite}          the same by runtime
    weights, candidates, events   what was measured
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.errors import BenchmarkError
from benchmarks.measure import HEADLINE, Repetitions, measure
from benchmarks.searches import PUBLISHED
from benchmarks.subject import FORMATS, subjects
from sdk_demo.cli.errors import is_domain_error
from sdk_demo.cli.output import JsonTarget, progress

__all__ = ["main", "print_report"]

_HELP = """\
Time the on-device model, its stages, list searches and whole swipes, on one thread, beside peers and beside the limit set by this
core's matrix products.

  python -m benchmarks.latency                                 the presets tiny and paper with random weights
  python -m benchmarks.latency --run runs/world                the model of a run, exported first
  python -m benchmarks.latency --bundle bundle --run runs/world       a bundle beside the run it came from
"""
_WRONG_INPUT = 2


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark as the command line says; the exit code."""
    defaults = Repetitions()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.latency", description=_HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", metavar="FILE", help="file for the report; - prints it to stdout")
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
    parser.add_argument("--rounds", type=_count, default=defaults.rounds, help="turns of everything [%(default)s]")
    parser.add_argument("--runs", type=_count, default=defaults.runs, help="runs of each kind in a turn [%(default)s]")
    options = parser.parse_args(arguments)
    try:
        target = JsonTarget(options.json)
        presets: dict[str, dict[str, Any]] = {}
        with TemporaryDirectory(prefix="pocketrank-") as scratch:
            with progress(target.console, "preparing the bundles") as tell:
                found = subjects(options.bundle, options.run, Path(scratch), tell)
            for subject in found:
                with progress(target.console, f"measuring {subject.name}") as tell:
                    repetitions = Repetitions(rounds=options.rounds, runs=options.runs)
                    presets[subject.name] = measure(subject, repetitions, tell)
        target.write({**next(iter(presets.values())), "presets": presets})
    except Exception as error:
        if not (isinstance(error, BenchmarkError) or is_domain_error(error)):
            raise
        print(f"error: {error}", file=sys.stderr)
        return _WRONG_INPUT
    for name, report in presets.items():
        print_report(target.console, name, report)
    return 0


def print_report(console: Console, name: str, report: Mapping[str, Any]) -> None:
    """The report of a preset for people; of the stages, searches and the beam that of its headline form."""
    title = f"{name}: {report['candidates']} candidates, {report['events']} events, one thread, microseconds"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for column in ("run p50", "run p99", "x limit", "swipe p50", "swipe p99", "of it SDK"):
        table.add_column(column, justify="right")
    for form, figures in report["forms"].items():
        for runtime, run in figures["rerank"].items():
            cells = ["-"] if run is None else [_us(run["p50_ms"]), _us(run["p99_ms"]), f"{run['ratio_to_limit']:.1f}"]
            if (swipe := figures["swipe"].get(runtime)) is not None:
                own = f"{_us(swipe['outside_p50_ms'])} = {swipe['sdk_overhead_share']:.0%}"
                cells += [_us(swipe["p50_ms"]), _us(swipe["p99_ms"]), own]
            table.add_row(f"{form} {runtime}", *cells)
        table.add_row(f"{form} limit", _us(figures["limit_ms"]), "", "1.0", end_section=True)
    console.print(table)
    _print_stages(console, report)
    if report["search"] is not None:
        _print_beam(console, report)
    best, memory, weighs = report["matmul_gflop_s"]["best"], report["memory"], report["bytes"]
    console.print(
        f"The limit is {report['flop'] / 1e6:.2f} million operations at {best:.0f} thousand million a second. "
        f"Fastest: {report['fastest']}, {report['ratio_to_limit']:.1f} times the limit, "
        f"{report['sdk_overhead_share']:.0%} of its swipe in the SDK, outside the model's runs.\n"
        f"Peak memory of a device process: {memory['device_process_mib']:.0f} MiB, "
        f"{memory['above_bare_mib']:.0f} MiB above bare Python, numpy and onnxruntime. Files of the {report['form']} form: "
        + "; ".join(f"{format} {weighs[format]['stages'] / 1e3:.0f} kB in stages" for format in FORMATS)
        + ".\n",
        highlight=False,
    )


def _print_stages(console: Console, report: Mapping[str, Any]) -> None:
    table = Table(title=f"{HEADLINE} form in stages, microseconds", title_justify="left")
    table.add_column("")
    for column in (
        "page",
        "event",
        "watch",
        "event + watch",
        "x limit",
        "whole",
        "speedup",
        "SDK swipe",
        "with whole",
        "with search",
    ):
        table.add_column(column, justify="right")
    for format, row in report["incremental"].items():
        kinds = (report["swipe"], report["swipe_whole"], report["swipe_search"])
        table.add_row(
            format,
            *(_us(row[f"{part}_ms"]) for part in ("page", "event", "watch", "swipe")),
            f"{row['ratio_to_limit']:.1f}",
            _us(row["full_ms"]),
            f"{row['speedup']:.2f}",
            *("-" if by is None else _us(by[format]["p50_ms"]) for by in kinds),
        )
    console.print(table)


def _print_beam(console: Console, report: Mapping[str, Any]) -> None:
    for format, row in report["search"].items():
        console.print(
            f"List search in {format}: {_us(row['host_ms'])} on the host, {_us(row['in_graph_ms'])} in the graph "
            f"({row['ratio']:.2f} times faster), {row['steps']:.1f} steps.",
            highlight=False,
        )
    beam = report["beam"]
    title = f"A beam of {beam['beam']} by steps; weights: {beam['weights']}; lists: {beam['lists']}; {beam['runtime']}"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for i in range(len(beam["stability"])):
        table.add_column(str(i + 1), justify="right")
    for what in ("stability", "relative_cost"):
        table.add_row(what.replace("_", " "), *(f"{value:.4g}" for value in beam[what]))
        table.add_row("  published", *(f"{value:.4g}" for value in PUBLISHED[what][: len(beam[what])]))
    console.print(table)


def _us(ms: float) -> str:
    return f"{ms * 1e3:.0f}"


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a count from 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
