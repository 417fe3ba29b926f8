"""The command line of `benchmarks.data`."""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
from rich.console import Console

from benchmarks.command import command_parser, figure_table, one_line_errors
from benchmarks.data.subject import SUBJECTS
from benchmarks.data.synthetic import CSV
from benchmarks.errors import BenchmarkError
from benchmarks.processes import own_environment
from pocketrank.sdk_demo.cli.options import parse_list
from pocketrank.sdk_demo.cli.output import JsonTarget

__all__ = ["main", "measure"]

PEERS = ("polars", "duckdb")
"""Subjects that merely read."""


def measure(
    rows: Sequence[str], *, subjects: Sequence[str] = tuple(SUBJECTS), seed: int = 0, work: Path | None = None
) -> dict[str, Any]:
    """Return the figures of the peers and of `subjects` for logs of each number of `rows`, such as `1e6`, under that text.

    `rows.N.SUBJECT` has `seconds`, `cpu_seconds` and `peak_mib`, `rows.N.csv_mib` the size of the file, and
    `rows.N.import.ratio_to_faster_peer` and `ratio_to_duckdb_sorted` are of the seconds. Files are in `work`. Raises
    `BenchmarkError` when a subject finds other rows than there are.
    """
    report: dict[str, Any] = {}
    with TemporaryDirectory(prefix="pocketrank-", dir=work) as scratch:
        for text in rows:
            folder, number = Path(scratch) / text, int(float(text))
            _run("-m", "benchmarks.data.synthetic", str(folder), str(number), str(seed))
            figures: dict[str, Any] = {"csv_mib": (folder / CSV).stat().st_size / 2**20}
            for name in (*PEERS, *(name for name in subjects if name not in PEERS)):
                figures[name] = msgspec.json.decode(_run("-m", "benchmarks.data.subject", name, str(folder)))
                if (found := figures[name].pop("found")) != number:
                    raise BenchmarkError(f"{name} of {text} rows", f"{number} rows", str(found))
            faster = min(figures[name]["seconds"] for name in PEERS)
            if "import" in figures:
                figures["import"]["ratio_to_faster_peer"] = figures["import"]["seconds"] / faster
                if "duckdb_sorted" in figures:
                    ratio = figures["import"]["seconds"] / figures["duckdb_sorted"]["seconds"]
                    figures["import"]["ratio_to_duckdb_sorted"] = ratio
            report[text] = figures
            (folder / CSV).unlink()
    return {"rows": report, "seed": seed}


def _run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, *arguments], env=own_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchmarkError(" ".join(arguments), "exit code 0", f"{done.returncode}: {done.stderr.strip()[-500:]}")
    return done.stdout


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and report."""
    parser = command_parser(
        "data", "Time import and a training pass of synthetic logs, beside Polars and DuckDB that merely read them."
    )
    parser.add_argument("--rows", type=_row_numbers, default=["1e5", "1e6", "1e7"], help="comma list (default: 1e5,1e6,1e7)")
    parser.add_argument(
        "--subjects", default=",".join(SUBJECTS), help="comma list; train needs import, and minutes for 1e6 rows [%(default)s]"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the logs (default: %(default)s)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for the files (default: a temporary one)")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    subjects = parse_list(options.subjects, tuple(SUBJECTS), "--subjects")
    report = measure(options.rows, subjects=subjects, seed=options.seed, work=options.work)
    target.write(report)
    _print(target.console, report)


def _row_numbers(text: str) -> list[str]:
    numbers = text.split(",")
    for number in numbers:
        try:
            valid = float(number) >= 1 and float(number) == int(float(number))
        except (ValueError, OverflowError):
            valid = False
        if not valid:
            raise argparse.ArgumentTypeError(f"expected numbers of rows such as 1e5,1e6, got {text}")
    return numbers


def _print(console: Console, report: Mapping[str, Any]) -> None:
    ratios = {"ratio_to_faster_peer": "by the faster peer", "ratio_to_duckdb_sorted": "by duckdb_sorted"}
    table = figure_table(
        "seconds and peak MiB", "rows", "seconds", "CPU seconds", "peak MiB", *ratios.values(), label="subject"
    )
    for rows, figures in report["rows"].items():
        for name, row in figures.items():
            if name not in SUBJECTS:
                continue
            shown = [f"{row[ratio]:.1f}" if ratio in row else "" for ratio in ratios]
            table.add_row(name, rows, f"{row['seconds']:.2f}", f"{row['cpu_seconds']:.2f}", f"{row['peak_mib']:.0f}", *shown)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
