"""Progress of work in several stages: a bar for each stage on a terminal, a line for each in a log file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from pocketrank.sdk_demo.cli.output import print_line

__all__ = ["stages"]


@contextmanager
def stages(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Show progress while the block runs. The value is a function that takes the name of a stage and the share of it done.

    A stage begins with the first call that names it, and ends when another one begins or its share is 1.
    """
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    known: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:

        def report(stage: str, share: float) -> None:
            if stage not in known:
                for task in known.values():
                    bars.update(task, completed=1.0)
                known[stage] = bars.add_task(stage, total=1.0)
            bars.update(known[stage], completed=share)

        yield report


class _Lines:
    """Prints a line when a stage begins, so that a log file shows the progress without bars."""

    def __init__(self, console: Console) -> None:
        self._console, self._known = console, set[str]()

    def __call__(self, stage: str, share: float) -> None:
        if stage not in self._known:
            self._known.add(stage)
            print_line(self._console, f"{stage} …")
