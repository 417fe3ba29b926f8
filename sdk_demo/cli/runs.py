"""`pocketrank runs`: the runs that a team keeps, and the one that servers serve."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from pocketrank.sdk_demo.cli.output import JsonTarget, flatten, print_line

if TYPE_CHECKING:
    from pocketrank.cloud.training.registry import Activation, Listed, RunRegistry

__all__ = ["activate", "add", "compare", "list_all", "rollback", "runs", "show"]

Name = Annotated[str, typer.Argument(metavar="RUN", help="Name of the run, or its folder.")]
Folder = Annotated[
    str, typer.Option("--runs", metavar="FOLDER", help="Folder with one run per folder, or `mlflow:URI` of an MLflow server.")
]
Json = Annotated[str | None, typer.Option("--json", metavar="FILE", help="Report as JSON; `-` is stdout. [default: none]")]

_MODEL = "split"
"""Model whose AUC stands for a run in the list."""

_ALWAYS_DIFFER = ("created", "parent", "split_version", "auc")
"""What two runs differ in whatever their numbers."""

runs = typer.Typer(name="runs", no_args_is_help=True, rich_markup_mode=None)
"""The commands that list, compare and activate runs."""


@runs.callback()
def _runs() -> None:
    """List, compare and activate the runs of a folder.

    `pocketrank train --out runs/NAME` writes a run into the folder. The active run is the one that `pocketrank serve --runs`
    serves; a running server follows within a second or two, without a restart. A rollback takes the last activation back.

    \b
    pocketrank runs list
    pocketrank runs compare monday tuesday
    pocketrank runs activate tuesday
    pocketrank runs rollback

    Writes `active.json` in the folder, which has all activations. Nothing is ever removed from it. With `--runs
    mlflow:URI#FOLDER` the runs and activations are in MLflow, and a run that is opened is downloaded into FOLDER (runs).
    """


@runs.command("list")
def list_all(folder: Folder = "runs", json: Json = None) -> None:
    """List all runs, and mark the active one.

    \b
    pocketrank runs list --runs runs --json -
    """
    target, registry = JsonTarget(json), _registry(folder)
    active, found = registry.active(), [registry.listed(name) for name in registry.names()]
    name = None if active is None else active.run
    report = {"active": name, "runs": {one.name: _summary(one) | {"active": one.name == name} for one in found}}
    target.write(report)
    table = Table(title=f"runs in {registry}", title_justify="left")
    for column in ("run", "", "created (UTC)", "data", f"{_MODEL} AUC", "parent"):
        table.add_column(column, no_wrap=column == "run")
    for one in found:
        if (record := one.record) is None:
            table.add_row(one.name, "not whole")
            continue
        created = (record.created or "")[:16].replace("T", " ")
        auc = next((f"{task} {value:.4f}" for task, value in _aucs(one).items()), "")  # of the first task, for want of room
        mark = "active" if one.name == name else ""
        table.add_row(one.name, mark, created, f"{record.data} {record.data_digest[:8]}", auc, record.parent)
    target.console.print(table)


@runs.command()
def show(run: Name, folder: Folder = "runs", json: Json = None) -> None:
    """Show where a run is from (data, numbers, versions, parent), its metrics, and when it was active.

    \b
    pocketrank runs show tuesday
    """
    target, registry = JsonTarget(json), _registry(folder)
    one = registry.listed(_name(run, folder))
    activations = [_activation(made) for made in registry.history() if made.run == one.name]
    report = {"run": one.name, **_summary(one), "metrics": one.metrics, "activations": activations}
    target.write(report)
    for name, value in flatten(report).items():
        print_line(target.console, f"{name}: {'' if value is None else value}")


@runs.command()
def compare(
    run: Name,
    other: Annotated[str, typer.Argument(metavar="OTHER", help="The run to compare it with.")],
    folder: Folder = "runs",
    json: Json = None,
) -> None:
    """Show the metrics of two runs side by side, and in which numbers their trainings differ.

    Differences are OTHER - RUN. Runs that were tested on other data or days cannot be compared by their metrics; a line says so
    then.

    \b
    pocketrank runs compare monday tuesday --json -
    """
    target, registry = JsonTarget(json), _registry(folder)
    both = [registry.listed(_name(name, folder)) for name in (run, other)]
    first, second = (flatten(one.metrics.get("models", {})) for one in both)
    metrics = {
        name: {"run": first.get(name), "other": second.get(name), "difference": _difference(first.get(name), second.get(name))}
        for name in dict.fromkeys((*first, *second))
    }
    before, after = (flatten(_summary(one)) for one in both)
    changed = {
        name: {"run": before.get(name), "other": after.get(name)}
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name) and name.partition(".")[0] not in _ALWAYS_DIFFER
    }
    same_rows = not {"data_digest", "test_from"} & set(changed)
    target.write({"run": both[0].name, "other": both[1].name, "same_rows": same_rows, "metrics": metrics, "changed": changed})
    console = target.console
    table = Table(title="metrics", title_justify="left")
    for column in ("", both[0].name, both[1].name, "difference"):
        table.add_column(column, justify="right" if column else "left", no_wrap=True)
    for name, row in metrics.items():
        difference = row["difference"]
        table.add_row(name, _cell(row["run"]), _cell(row["other"]), "" if difference is None else f"{difference:+.4f}")
    console.print(table)
    for name, row in changed.items():
        print_line(console, f"{name}: {row['run']} | {row['other']}")
    if not same_rows:
        print_line(console, "the runs were tested on other data or days: their metrics cannot be compared")


@runs.command()
def add(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Folder that `pocketrank train` wrote.")],
    folder: Folder = "runs",
    json: Json = None,
) -> None:
    """Copy a run into the folder, or to MLflow with its metrics and numbers, under the name of its own folder.

    \b
    pocketrank runs add runs/tuesday --runs mlflow:http://mlflow.internal:5000
    """
    from pocketrank.cloud.training.run import Run

    target, registry = JsonTarget(json), _registry(folder)
    name = registry.add(Run.open(run))
    target.write({"run": name})
    print_line(target.console, f"{name} is in {registry}; next: pocketrank runs activate {name} --runs {folder}")


@runs.command()
def activate(run: Name, folder: Folder = "runs", json: Json = None) -> None:
    """Make a run the active one. Servers that follow the folder go over to it.

    A run that is unfinished or damaged is refused.

    \b
    pocketrank runs activate tuesday
    """
    target, registry = JsonTarget(json), _registry(folder)
    _print_active(target, registry, registry.activate(_name(run, folder)))


@runs.command()
def rollback(folder: Folder = "runs", json: Json = None) -> None:
    """Take the last activation back: the run before it is active again.

    \b
    pocketrank runs rollback
    """
    target, registry = JsonTarget(json), _registry(folder)
    _print_active(target, registry, registry.rollback())


def _registry(folder: str) -> RunRegistry:
    from pocketrank.cloud.training.registry_opening import open_registry

    return open_registry(folder)


def _name(run: str, folder: str) -> str:
    """Return the name of a run that is given by its name or as a folder of the registry."""
    path = Path(run)
    return path.name if path.parent != Path() and path.resolve().parent == Path(folder).resolve() else run


def _summary(one: Listed) -> dict[str, Any]:
    """Return the lineage of a run, without its feature spec."""
    import msgspec

    if one.record is None:
        return {"finished": False, "why_not": one.why_not}
    record: dict[str, Any] = msgspec.to_builtins(one.record)
    del record["spec"]
    return {"finished": True, **record, "auc": _aucs(one)}


def _aucs(one: Listed) -> dict[str, float]:
    tasks: Mapping[str, Any] = one.metrics.get("models", {}).get(_MODEL, {})
    return {task: metrics["auc"] for task, metrics in tasks.items() if metrics.get("auc") is not None}


def _activation(made: Activation) -> dict[str, Any]:
    at = datetime.fromtimestamp(made.at_ms / 1e3, UTC).isoformat(timespec="seconds")
    return {"run": made.run, "at": at, "rollback": made.rollback}


def _print_active(target: JsonTarget, registry: RunRegistry, made: Activation) -> None:
    target.write({"active": made.run, **_activation(made)})
    print_line(target.console, f"{made.run} is active in {registry}; servers that follow it go over to it")


def _difference(before: object, after: object) -> float | None:
    return float(after) - float(before) if isinstance(before, int | float) and isinstance(after, int | float) else None


def _cell(value: object) -> str:
    return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)
