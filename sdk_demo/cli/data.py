"""`pocketrank data`: a team's tables, described by a data file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pocketrank.sdk_demo.cli.drift import drift
from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.output import JsonTarget, print_line, progress

__all__ = ["check", "data", "import_tables", "init"]

DataFile = Annotated[Path, typer.Argument(metavar="FILE.toml", help="Data file.")]
Tables = Annotated[
    Path | None, typer.Option("--tables", help="Folder where the paths in the data file begin. [default: that of the file]")
]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Report as JSON; `-` is stdout. [default: none]")]

data = typer.Typer(name="data", no_args_is_help=True, rich_markup_mode=None)
"""The commands that bring tables in."""


@data.callback()
def _data() -> None:
    """Describe your tables in a data file, look at what they hold, and import them.

    A data file is TOML. It says where the tables are (CSV, Parquet or Arrow), and in SQL how they become impressions, items and
    users; which conditions are labels; and which labels the models predict. No code is needed.

    \b
    pocketrank data init tables
    pocketrank data check tables/data.toml
    pocketrank data import tables/data.toml --out logs/first
    pocketrank train --data logs/first --out runs/first

    `train` also takes the data file itself, and then imports first. `drift` compares later data, or what a server serves, with
    what a run was trained on. Writes a data file, a report, or a log.
    """


data.command()(drift)


@data.command()
def init(
    folder: Annotated[Path, typer.Argument(help="Folder with the tables.")],
    out: Annotated[Path | None, typer.Option(help="New data file. [default: FOLDER/data.toml]")] = None,
) -> None:
    """Draft a data file for the tables in a folder.

    Columns are recognised by their names and values: users, items, times, labels, attributes. Comments in the draft say what
    was guessed and what is left to decide. Read it before you use it.

    \b
    pocketrank data init tables
    pocketrank data init tables --out mine.toml

    Writes the data file; never over one that is there.
    """
    target = out or folder / "data.toml"
    if target.exists():
        raise OptionError("--out", "a file that is not there yet", str(target))

    from pocketrank.cloud.data.draft import draft_data_file
    from pocketrank.cloud.files import write_atomically

    text = draft_data_file(folder, target.parent)
    try:
        write_atomically(target, text.encode())
    except OSError as error:
        raise OptionError("--out", f"a file that can be written ({error.strerror})", str(target)) from None
    print_line(Console(), f"draft written to {target}; next: read it, then pocketrank data check {target}")


@data.command()
def check(
    file: DataFile,
    tables: Tables = None,
    json: Json = None,
    page: Annotated[Path | None, typer.Option(help="File for the report as one HTML page with plots. [default: none]")] = None,
) -> None:
    """Tell what tables hold, and what looks wrong.

    Rows, duplicates and days; the rate of each label; the coverage of each column; the hours of the day, which tell whether the
    time zone is right; ids that differ by case or blanks alone; and inputs that know a label too well, as those do that were
    made after the impression. A value that cannot be imported ends the check with its file, row and column.

    \b
    pocketrank data check tables/data.toml
    pocketrank data check tables/data.toml --page report.html --json report.json

    Writes tables to the terminal and, where asked, the report. Suspicions do not change the exit code.
    """
    target = JsonTarget(json)

    from pocketrank.cloud.data.check import check_data
    from pocketrank.cloud.data.data_file import open_data_file
    from pocketrank.cloud.files import write_atomically

    open_data_file(file)  # whose errors need no progress

    if page is not None:
        from pocketrank.sdk_demo.report.data_page import data_page
    with progress(target.console, "reading the tables"):
        report = check_data(file, tables=tables)
    target.write(report)
    if page is not None:
        try:
            write_atomically(page, data_page(report).encode())
        except OSError as error:
            raise OptionError("--page", f"a file that can be written ({error.strerror})", str(page)) from None
    _print(target.console, report)


@data.command("import")
def import_tables(
    file: DataFile,
    out: Annotated[Path, typer.Option(help="Folder for the log. A log that is there is replaced.")],
    tables: Tables = None,
    codes_from: Annotated[
        Path | None,
        typer.Option(
            metavar="LOG_OR_RUN",
            help="Log or run whose codes of categories stay the same. [default: the log of the same name that is replaced]",
        ),
    ] = None,
) -> None:
    """Write the tables of a data file as a log, from which trainings start at once.

    Rows are sorted by time into files of whole days. Memory does not grow with their number. A log that was made from the same
    files before is kept. If anything is wrong, file, row and column are named, and nothing is written.

    Phones read the categories of a page by the codes that their models were trained with. So the categories that an earlier log
    has keep their codes, and new ones get the next.

    \b
    pocketrank data import tables/data.toml --out logs/first
    pocketrank data import tables/data.toml --out logs/second --codes-from logs/first

    Writes the log into --out.
    """
    from pocketrank.cloud.data.data_file import open_data_file
    from pocketrank.cloud.data.import_log import import_log

    open_data_file(file)  # whose errors need no progress
    console = Console()
    with progress(console, "importing the tables") as report_progress:
        log = import_log(file, out, tables=tables, progress=report_progress, codes_from=codes_from)
    print_line(console, f"{log.rows:,} impressions written to {out}; next: pocketrank train --data {out} --out RUN")


def _print(console: Console, report: Mapping[str, Any]) -> None:
    rows, duplicates = f"{report['rows']:,} rows", f"{report['duplicates']:,} duplicates"
    print_line(console, f"{report['name']}: {rows}, {duplicates}, {report['users']:,} users, {report['items']:,} items")
    gaps = f"{len(report['days']):,} days with rows, {len(report['gaps']):,} without"
    print_line(console, f"{report['first']} to {report['last']} by the clocks of {report['time_zone']}: {gaps}")
    labels = _table("label", "rate", "known")
    for name, label in report["labels"].items():
        labels.add_row(name, "" if label["rate"] is None else f"{label['rate']:.4f}", f"{label['known']:.1%}")
    console.print(labels)
    coverage = _table("column", "known")
    for query, columns in report["coverage"].items():
        for column, share in columns.items():
            coverage.add_row(f"{query}.{column}", f"{share:.1%}")
    console.print(coverage)
    for suspicion in report["suspicions"]:
        print_line(console, f"suspicion: {suspicion}")
    if not report["suspicions"]:
        print_line(console, "no suspicions")


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    return table
