"""`pocketrank inspect`: the contents of a bundle, or the reasons for the order of a session."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.inspection import print_bundle, print_decisions, print_why
from pocketrank.sdk_demo.cli.output import JsonTarget

__all__ = ["inspect"]

_DAMAGED = 2


def inspect(
    path: Annotated[Path, typer.Argument(help="Folder of a bundle, or trace file of a session.")],
    bundle: Annotated[
        Path | None, typer.Option(help="Bundle that the session used, for attention and influence. [default: show neither]")
    ] = None,
    position: Annotated[int | None, typer.Option(min=0, help="Position in the session of the decision to explain.")] = None,
    top: Annotated[int, typer.Option(min=1, help="Number of candidates and events shown of a decision.")] = 10,
    json: Annotated[str | None, typer.Option(help="File for the report; `-` prints it to stdout.")] = None,
) -> None:
    """Inspect a bundle or the trace of a session.

    For a bundle: name and serial, whether every file matches the manifest, its models with sizes and parity, whether they run
    here and how long the run at a swipe takes, and its feature spec. Of a damaged bundle, everything that can be read is shown;
    the exit code is then 2.

    For the trace of a session: a row for each decision; with --position, the reasons for that one. Attention is read from the
    model's graph and shows where the model looked. Influence is what the score loses without an event: the model is run again
    for each. The two need not agree.

    \b
    pocketrank inspect runs/bundle
    pocketrank inspect session.trace
    pocketrank inspect session.trace --bundle runs/bundle --position 12 --json why.json

    Writes tables to the terminal and, with --json, everything in them and more.
    """
    target = JsonTarget(json)
    if (path / "manifest.json").is_file():
        _bundle(path, target, {"--bundle": bundle, "--position": position})
    elif path.is_file():
        _session(path, bundle, position, top, target)
    else:
        raise OptionError("PATH", "a bundle's folder, with its manifest.json, or a session's trace", str(path))


def _bundle(path: Path, target: JsonTarget, not_for_bundles: dict[str, object]) -> None:
    for option, value in not_for_bundles.items():
        if value is not None:
            raise OptionError(option, "a session's trace as PATH", str(path))

    from pocketrank.sdk_demo.inspection import inspect_bundle

    report = inspect_bundle(path)
    target.write(report)
    print_bundle(target.console, report)
    if report["problems"]:
        raise typer.Exit(_DAMAGED)


def _session(path: Path, bundle: Path | None, position: int | None, top: int, target: JsonTarget) -> None:
    from pocketrank.device.bundle.bundle import Bundle
    from pocketrank.device.reports.trace import NotATraceError
    from pocketrank.sdk_demo.inspection import inspect_session, why

    try:
        report, decisions = inspect_session(path)
    except NotATraceError as error:
        raise OptionError("PATH", "a bundle's folder, with its manifest.json, or a session's trace", str(path)) from error
    if position is None:
        target.write(report)
        print_decisions(target.console, report)
    else:
        chosen = next((decision for decision in reversed(decisions) if decision.position == position), None)
        if chosen is None:
            known = f"{decisions[0].position}..{decisions[-1].position}" if decisions else "none: the trace is empty"
            raise OptionError("--position", f"one of the trace's, {known}", str(position))
        opened = None if bundle is None else Bundle.open(bundle, now_ms=0)  # an expired one explains as well
        report["why"] = why(chosen, opened)
        target.write(report)
        print_why(target.console, report["why"], top)
    if report["damage"] and not report["cut"]:
        raise typer.Exit(_DAMAGED)
