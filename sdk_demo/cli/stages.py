"""Progress of work in several stages: a bar for each on a terminal, a line for each in a log file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

__all__ = ["stages"]


@contextmanager
def stages(console: Console) -> Iterator[Callable[[str, float], None]]:
    """Show stages while the block runs; the value is a function that takes a stage's name and the share of it that is done.

    A stage begins when its name is first told, and ends when the next one begins or its share is 1.
    """
    if not console.is_terminal:
        yield _Lines(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
    known: dict[str, TaskID] = {}
    with Progress(*columns, console=console) as bars:

        def tell(stage: str, share: float) -> None:
            if stage not in known:
                for task in known.values():
                    bars.update(task, completed=1.0)
                known[stage] = bars.add_task(stage, total=1.0)
            bars.update(known[stage], completed=share)

        yield tell


class _Lines:
    """A line when a stage begins: a log that somebody follows says what goes on, and is not filled with bars."""

    def __init__(self, console: Console) -> None:
        self._console, self._known = console, set[str]()

    def __call__(self, stage: str, share: float) -> None:
        if stage not in self._known:
            self._known.add(stage)
            self._console.print(f"{stage} …", markup=False, highlight=False, soft_wrap=True)
