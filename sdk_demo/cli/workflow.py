"""`pocketrank workflow`: the steps from a log to what devices install, run again only where something changed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.table import Table
from typer.exceptions import TyperException

from pocketrank.sdk_demo.cli.output import JsonTarget, print_line

if TYPE_CHECKING:
    from pocketrank.sdk_demo.workflow.engine import StepReport
    from pocketrank.sdk_demo.workflow.flow import Flow

__all__ = ["workflow"]

workflow = typer.Typer(name="workflow", no_args_is_help=True, rich_markup_mode=None)

_WORDS = {"up_to_date": "up to date", "runs": "would run", "may_run": "may run", "not_run": "not run"}


@workflow.callback()
def _workflow() -> None:
    """Run the steps of a workflow file, each a command of pocketrank with its options.

    \b
    [[step]]
    name = "train"
    command = "train"
    options = { data = "world", out = "runs/first", seeds = 1 }
    [[step]]
    name = "evaluate"
    command = "evaluate"
    arguments = ["runs/first"]
    options = { json = "report.json" }

    A step that is up to date is not run again: its command line and the contents of what it reads are as they were when it last
    finished, and what it writes is there. A run that was killed continues with the step that it was killed in.

    \b
    pocketrank workflow status flow.toml
    pocketrank workflow run flow.toml

    Writes what the steps write and, beside FILE, what is known of each step.
    """


@workflow.command("run")
def _run(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Workflow file.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show which steps would run, and why; run none.")] = False,
    json: Annotated[str | None, typer.Option(help="File for the report; `-` prints it to stdout.")] = None,
) -> None:
    """Run every step that is not up to date.

    Steps run in the order of the file, and none after one that failed. Paths are relative to the folder of FILE. A step writes
    its `--out`, `--json` and `--page` and what `writes` lists; it reads every other argument and option that names a file or a
    folder, and what `reads` lists. `after` names steps that must be over first, and `always = true` runs a step each time.

    \b
    pocketrank workflow run flow.toml --dry-run
    pocketrank workflow run flow.toml --json flow.json

    Writes what the steps write and, with --json, `steps` with the `name`, `line`, `status`, `reason`, `seconds` and `finished`
    of each.
    """
    target = JsonTarget(json)
    flow = _opened(context, file)

    from pocketrank.sdk_demo.workflow.engine import run_flow

    if dry_run:
        _show_plan(flow, target)
        return
    console = target.console
    output = sys.stderr.fileno() if target.to_stdout else None
    steps, error = run_flow(flow, notify=lambda report: _print_event(console, report), output=output)
    target.write(_json(steps))
    if error is not None:
        raise error


@workflow.command("status")
def _status(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Workflow file.")],
    json: Annotated[str | None, typer.Option(help="File for the report; `-` prints it to stdout.")] = None,
) -> None:
    """Show for each step whether it is up to date, why not, and its last finish.

    \b
    pocketrank workflow status flow.toml

    Writes a table to the terminal and, with --json, `steps` as `workflow run` does.
    """
    target = JsonTarget(json)
    _show_plan(_opened(context, file), target)


def _opened(context: typer.Context, file: Path) -> Flow:
    """Read the file, and check every command line before the first step runs."""
    from pocketrank.sdk_demo.workflow.errors import FlowFileError
    from pocketrank.sdk_demo.workflow.flow import Flow

    flow = Flow.open(file.expanduser())
    for i, step in enumerate(flow.steps):
        group: Any = context.find_root().command
        words = step.line()
        where = f"$.step[{i}]"
        while hasattr(group, "commands"):
            word = words.pop(0) if words else ""
            if word not in group.commands:
                known = ", ".join(group.commands)
                raise FlowFileError(flow.file, f"{where}.command", f"Expected one of {known}, got `{word}`")
            group = group.commands[word]
        try:
            group.make_context(group.name, words)  # parses, and runs nothing
        except TyperException as error:
            what = f"Expected arguments and options of `{step.command}`, got: {error.format_message()}"
            raise FlowFileError(flow.file, where, what) from None
        except typer.Exit:
            raise FlowFileError(flow.file, where, f"Expected a command that does something, got `{step.command}`") from None
    return flow


def _show_plan(flow: Flow, target: JsonTarget) -> None:
    from pocketrank.sdk_demo.workflow.engine import plan

    reports = plan(flow)
    target.write(_json(reports))
    table = Table("step", "status", "reason", "last finish (UTC)", "seconds")
    for report in reports:
        seconds = "" if report.seconds is None else f"{report.seconds:.1f}"
        table.add_row(report.name, _WORDS[report.status], report.reason or "", report.finished or "", seconds)
    target.console.print(table)


def _print_event(console: Console, report: StepReport) -> None:
    text = {
        "running": f"pocketrank {' '.join(report.line)} ({report.reason})",
        "done": f"done in {report.seconds or 0:.1f} s",
    }
    print_line(console, f"[{report.name}] {text.get(report.status, _WORDS.get(report.status, report.status))}")


def _json(reports: list[StepReport]) -> dict[str, Any]:
    return {"steps": [msgspec.to_builtins(report) for report in reports]}
