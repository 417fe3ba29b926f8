"""How fast a swipe is on the device, beside torch and beside the limit that this core's matrix products set.

`python -m benchmarks.latency --json FILE`. The report, times in milliseconds, for the split form with the longest lists::

    rerank.{onnx,tflite}     p50_ms, p99_ms, ratio_to_limit      a run of the model through the SDK's runtime
    torch_eager              p50_ms, p99_ms, ratio_to_limit      the same model in torch
    swipe.{onnx,tflite}      p50_ms, p99_ms, run_p50_ms, outside_p50_ms, sdk_overhead_share      feedback(event) and next()
    flop                     operations of the matrix products in the exported graph (`arithmetic`)
    matmul_gflop_s           this core's rate, `best` and by library and size (`matmul`)
    limit_ms                 flop at the best rate
    fastest                  the runtime with the fastest swipe, of which the next two are
    ratio_to_limit           p50 of its run by limit_ms
    sdk_overhead_share       share of a swipe outside the model's run
    forms.{split,self_contained}      all of the above for each form
    memory                   device_process_mib, above_bare_mib: peak of a process with one session, and above a bare one
    memory.{onnx,tflite}     the same by runtime
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
from benchmarks.measure import Repetitions, measure
from benchmarks.subject import FORMATS, Subject
from sdk_demo.cli.errors import is_domain_error
from sdk_demo.cli.output import JsonTarget, progress

__all__ = ["main", "print_table"]

_HELP = """\
Time the on-device model and whole swipes, on one thread, beside torch and beside the limit set by this core's matrix products.

  python -m benchmarks.latency                                 a model of the default sizes with untrained weights
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
    parser.add_argument("--run", type=Path, metavar="DIR", help="run of the torch model, exported when there is no --bundle")
    parser.add_argument("--rounds", type=_count, default=defaults.rounds, help="turns of everything [%(default)s]")
    parser.add_argument("--runs", type=_count, default=defaults.runs, help="runs of each kind in a turn [%(default)s]")
    options = parser.parse_args(arguments)
    try:
        target = JsonTarget(options.json)
        with TemporaryDirectory(prefix="pocketrank-") as scratch:
            with progress(target.console, "preparing the bundle") as tell:
                subject = Subject.of(options.bundle, options.run, Path(scratch), lambda what, share: tell(share))
            with progress(target.console, "measuring") as tell:
                report = measure(subject, Repetitions(rounds=options.rounds, runs=options.runs), tell)
        target.write(report)
    except Exception as error:
        if not (isinstance(error, BenchmarkError) or is_domain_error(error)):
            raise
        print(f"error: {error}", file=sys.stderr)
        return _WRONG_INPUT
    print_table(target.console, report)
    return 0


def print_table(console: Console, report: Mapping[str, Any]) -> None:
    """The report for people."""
    for form, figures in report["forms"].items():
        title = f"{form}: {report['candidates']} candidates, {report['events']} events, one thread, microseconds"
        table = Table(title=title, title_justify="left")
        table.add_column("")
        for column in ("run p50", "run p99", "x limit", "swipe p50", "swipe p99", "of it SDK"):
            table.add_column(column, justify="right")
        for format in FORMATS:
            run, swipe = figures["rerank"][format], figures["swipe"][format]
            own = f"{swipe['outside_p50_ms'] * 1e3:.0f} = {swipe['sdk_overhead_share']:.0%}"
            table.add_row(format, *_cells(run), *_cells(swipe), own)
        table.add_row("torch", *_cells(figures["torch_eager"]))
        table.add_row("limit", f"{figures['limit_ms'] * 1e3:.0f}", "", "1.0")
        console.print(table)
    best, memory = report["matmul_gflop_s"]["best"], report["memory"]
    console.print(
        f"The limit is {report['flop'] / 1e6:.2f} million operations at {best:.0f} thousand million a second. "
        f"Fastest: {report['fastest']}, {report['ratio_to_limit']:.1f} times the limit, "
        f"{report['sdk_overhead_share']:.0%} of its swipe in the SDK, outside the model's run.\n"
        f"Peak memory of a device process: {memory['device_process_mib']:.0f} MiB, "
        f"{memory['above_bare_mib']:.0f} MiB above bare Python, numpy and onnxruntime.",
        highlight=False,
    )


def _cells(row: Mapping[str, float]) -> list[str]:
    ratio = [f"{row['ratio_to_limit']:.1f}"] if "ratio_to_limit" in row else []
    return [f"{row['p50_ms'] * 1e3:.0f}", f"{row['p99_ms'] * 1e3:.0f}", *ratio]


def _count(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected a count from 1, got {number}")
    return number


if __name__ == "__main__":
    sys.exit(main())
