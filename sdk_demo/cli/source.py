"""Loads the impression log that `--data` names, with a progress bar."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from rich.console import Console

from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.options import DataSource
from pocketrank.sdk_demo.cli.output import progress

if TYPE_CHECKING:
    from pocketrank.cloud.data.log import Log

__all__ = ["load_log"]


def load_log(
    console: Console,
    source: DataSource,
    *,
    world: Path | None,
    seed: int,
    tables: Path | None = None,
    keep: Path | None = None,
) -> Log:
    """Return the log of `source`.

    `seed` is the seed of a simulated log, `world` the TOML file of its parameters. `tables` is the folder where the paths in a
    data file begin. `keep` is the folder that the tables of a data file are imported into, or have been before; None loads
    them into memory. It is in the folder of a run, and continues the codes of categories of the active run beside that.

    Raises `OptionError` for `world` or `tables` with a source that has none, `DataError` for a log that cannot be trained on,
    `WorldError` for an invalid world.
    """
    if world is not None and source.kind != "world":
        raise OptionError("--world", "`--data world` as well", f"--data {source.path}")
    if tables is not None and source.kind != "file":
        raise OptionError("--tables", "a data file as `--data`", f"--data {source.path or 'world'}")
    if source.path is None:
        from pocketrank.sdk_demo.world import World, WorldConfig

        config = WorldConfig.load(world)
        with progress(console, "simulating the log") as report_progress:
            return World(config).simulate_log(seed=seed, progress=report_progress)
    if source.kind == "log":
        from pocketrank.cloud.data.log import open_log

        with progress(console, "loading the log"):
            return open_log(source.path)

    from pocketrank.cloud.data.data_file import open_data_file
    from pocketrank.cloud.data.import_log import import_log

    name = open_data_file(source.path).name  # whose errors need no progress
    with progress(console, "importing the tables") as report_progress, TemporaryDirectory(prefix="pocketrank-") as scratch:
        folder = keep or Path(scratch) / "log"
        started = keep is not None and (keep.parent / "started.json").is_file()  # a run that learns from that log
        log = import_log(
            source.path,
            folder,
            tables=tables,
            replace=not started,
            progress=report_progress,
            codes_from=_active_run(keep.parent, name) if keep else None,
        )
        return log if keep else log.load()


def _active_run(run: Path, data: str) -> Path | None:
    """Return the active run beside `run`, if it is of the data of this name and has codes of categories."""
    from pocketrank.cloud.data.category_codes import codes_of
    from pocketrank.cloud.data.schema import DataError
    from pocketrank.cloud.training.errors import RunError
    from pocketrank.cloud.training.registry import active_beside
    from pocketrank.cloud.training.run import Run

    name = active_beside(run)
    if name is None:
        return None
    active = run.resolve().parent / name
    try:
        if Run.open(active).record.data != data:
            return None
        codes_of(active)
    except (RunError, DataError):  # of a run of before, whose log is gone
        return None
    return active
