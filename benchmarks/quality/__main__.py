"""The command line of `benchmarks.quality`."""

from __future__ import annotations

import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import nullcontext
from datetime import date
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from rich.console import Console

from benchmarks.command import command_parser, count, figure_table, make_work_folder, one_line_errors
from benchmarks.errors import BenchmarkError
from benchmarks.quality.models import MODELS, TUNABLE, Data, Quality, TrainingJob, jobs
from benchmarks.quality.report import AIMS, REFERENCE, report
from pocketrank.cloud.data.import_log import import_log
from pocketrank.cloud.data.log import open_log
from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.options import parse_date, parse_list, parse_source
from pocketrank.sdk_demo.cli.output import JsonTarget, print_line
from pocketrank.sdk_demo.cli.stages import stages

__all__ = ["main", "print_table"]

_HELP = """\
Train and compare the device model, the server's score, published peers and ablations on a log such as KuaiRand.

  python -m benchmarks.quality --data examples/kuairand.toml --tables DIR --train-to 2022-05-03 --test-from 2022-05-04 --json -
  python -m benchmarks.quality --data LOG --train-to 2022-05-03 --test-from 2022-05-04 --models split,edgerec --seeds 2

Rows between the two days are used by nobody. With --work, predictions that are finished are kept there: an interrupted
benchmark goes on. A change of data, dates or numbers trains again what depends on it; after a change of our code choose
another --work.
"""
JOBS = min(2, os.cpu_count() or 1)
"""Trainings side by side, one thread each: more would take each other's memory bandwidth."""

Progress = Callable[[str, float], None]


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the options in `arguments`."""
    parser = command_parser("quality", _HELP)
    parser.add_argument("--data", required=True, metavar="FILE.toml", help="data file, or the folder of an imported log")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="where the paths in the data file begin [its folder]")
    parser.add_argument("--train-to", required=True, metavar="DATE", help="last training day")
    parser.add_argument("--test-from", required=True, metavar="DATE", help="first test day")
    parser.add_argument("--seeds", type=count, default=5, help="how many times to train [%(default)s]")
    parser.add_argument("--models", default=",".join(MODELS), help="comma list [all]")
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for what is finished [a temporary one]")
    parser.add_argument("--jobs", type=count, default=JOBS, help="trainings side by side [%(default)s]")
    parser.add_argument("--tune", action="store_true", help="try settings on the last training days instead")
    options = parser.parse_args(arguments)
    began = time.monotonic()
    target = JsonTarget(options.json)
    source = parse_source(options.data)
    if source.path is None:
        raise OptionError("--data", "a data file, or the folder of a log", options.data)
    train_to, test_from = parse_date(options.train_to, "--train-to"), parse_date(options.test_from, "--test-from")
    if test_from <= train_to:
        raise OptionError("--test-from", f"a day after --train-to {train_to}", options.test_from)
    models = parse_list(options.models, MODELS, "--models")
    with TemporaryDirectory(prefix="pocketrank-") as scratch, stages(target.console) as progress:
        bench = partial(_open, source.path, options.tables, train_to, test_from, options.work or Path(scratch))
        progress("loading the log", 0.0)
        quality = bench()
        result: dict[str, Any]
        if options.tune:
            result = {"tuned": _tune(quality, [name for name in models if name in TUNABLE], progress)}
        else:
            seeds = list(range(options.seeds))
            _train(quality, bench, models, seeds, options.jobs, progress)
            result = report(quality, models, seeds)
    result["seconds"] = round(time.monotonic() - began, 1)
    target.write(result)
    if options.tune:
        _print_settings(target.console, result["tuned"])
    else:
        print_table(target.console, result)


def _open(path: Path, tables: Path | None, train_to: date, test_from: date, work: Path) -> Quality:
    torch.set_num_threads(1)
    make_work_folder(work)
    log = open_log(path) if path.is_dir() else import_log(path, work / "log", tables=tables)
    return Quality(Data.of(log.load(), train_to, test_from), work)


_of_process: Quality | None = None
"""In a process of the pool: its own copy of the data."""


def _begin(bench: Callable[[], Quality]) -> None:
    global _of_process
    _of_process = bench()


def _do(task: int | TrainingJob) -> None:
    """Train a seed's ranker, or a job."""
    assert _of_process is not None
    if isinstance(task, TrainingJob):
        _of_process.train(task)
    else:
        _of_process.rank(task)


def _train(
    quality: Quality,
    bench: Callable[[], Quality],
    models: Sequence[str],
    seeds: Sequence[int],
    processes: int,
    progress: Progress,
) -> None:
    """Train all that is missing, rankers first, in this process or in several."""
    todo = [job for job in jobs(models, seeds) if not quality.done(job)]
    rankers = [seed for seed in seeds if quality.scores(seed, REFERENCE) is None]
    stages_of: tuple[tuple[str, Sequence[int | TrainingJob]], ...] = (("rankers", rankers), ("models", todo))
    context = multiprocessing.get_context("spawn")  # a fork of a process with torch's threads may hang
    alone = processes == 1 or len(todo) + len(rankers) < 2
    with nullcontext() if alone else ProcessPoolExecutor(processes, context, _begin, (bench,)) as pool:
        if pool is None:
            _begin(lambda: quality)
        try:
            for stage, tasks in stages_of:
                progress(stage, 0.0)
                for done, _ in enumerate((map if pool is None else pool.map)(_do, tasks), 1):
                    progress(stage, done / len(tasks))
        except BrokenProcessPool:
            expected = "every training to end by itself"
            raise BenchmarkError(f"--jobs {processes}", expected, "a process that was killed; is the memory enough?") from None


def _tune(quality: Quality, models: Sequence[str], progress: Progress) -> dict[str, list[dict[str, Any]]]:
    """Each model's settings with the first seed, and their AUC by task on the last training days."""
    progress("ranker", 0.0)
    quality.rank(0)
    tasks = quality.data.samples.config.tasks
    tuned: dict[str, list[dict[str, Any]]] = {}
    for name in models:
        progress(name, 0.0)
        tuned[name] = [
            {"learning_rate": setting.learning_rate, "rounds": setting.rounds, "auc": dict(zip(tasks, figures, strict=True))}
            for setting, figures in quality.tune(name, 0)
        ]
    return tuned


def print_table(console: Console, report: Mapping[str, Any]) -> None:
    """Print the tasks that have an aim as tables."""
    for task in AIMS:
        data = report["data"]
        title = f"{task}: {data['test_rows']} rows from {data['test_from']} on, {len(report['seeds'])} seeds"
        table = figure_table(title, "AUC", "above refreshed", "GAUC", "nDCG", "log loss", label="model")
        for name, row in report["models"].items():
            figures, gain = row[task], report.get("paired", {}).get(name, {}).get(task, {})
            table.add_row(
                name, _pm(figures["auc"], figures["auc_std"]), _pm(gain.get("mean"), gain.get("std"), "+"),
                _pm(figures["gauc"]), _pm(figures["ndcg"]), _pm(figures["logloss"]),
            )  # fmt: skip
        console.print(table)
        if aim := report.get("aims", {}).get(task):
            above = aim[f"above_{REFERENCE}"]
            missed = [name for name, gain in aim["above_peers"].items() if not gain["met"]]
            print_line(
                console,
                f"split: AUC {_pm(aim['auc']['split'])}, aim {aim['auc']['aim']}; "
                f"{_pm(above['split'], sign='+')} above refreshed, aim {above['aim']:+}; "
                + (f"not clear of {', '.join(missed)}" if missed else "clear of every peer")
                + "\n",
            )


def _pm(mean: float | None, std: float | None = None, sign: str = "") -> str:
    if mean is None:
        return ""
    return f"{mean:{sign}.4f}" + ("" if std is None else f" ± {std:.4f}")


def _print_settings(console: Console, tuned: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    table = figure_table("settings on the last training days, AUC", "learning rate", "rounds", *AIMS, label="model")
    for name, tried in tuned.items():
        for row in tried:
            figures = [f"{row['auc'][task]:.4f}" for task in AIMS]
            table.add_row(name, f"{row['learning_rate']:g}", str(row["rounds"]), *figures)
    console.print(table)


if __name__ == "__main__":
    sys.exit(main())
