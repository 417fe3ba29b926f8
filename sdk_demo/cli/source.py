"""Loads the impression log that `--data` names, with a progress bar."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.options import DataSource
from pocketrank.sdk_demo.cli.output import progress

if TYPE_CHECKING:
    from pocketrank.cloud.data.schema import ImpressionLog

__all__ = ["load_log"]


def load_log(console: Console, source: DataSource, *, world: Path | None, seed: int) -> ImpressionLog:
    """Return the log of `source`. `seed` is the seed of a simulated log, `world` the TOML file of its parameters.

    Raises `OptionError` for a `world` with a log that is not simulated, `DataError` for a log that cannot be trained on,
    `WorldError` for an invalid world.
    """
    if source.path is None:
        from pocketrank.sdk_demo.world import World, WorldConfig

        config = WorldConfig.load(world)
        with progress(console, "simulating the log") as report_progress:
            return World(config).simulate_log(seed=seed, progress=report_progress)
    if world is not None:
        raise OptionError("--world", "`--data world` as well", f"--data {source.path}")

    with progress(console, "loading the log") as report_progress:
        if source.kind == "file":
            from pocketrank.cloud.data.mapped_log import load_mapped

            return load_mapped(source.path, progress=lambda _table, share: report_progress(share)).log

        from pocketrank.cloud.data.kuairand import load_kuairand

        return load_kuairand(source.path, progress=lambda _file, share: report_progress(share))
