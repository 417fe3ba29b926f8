"""From `--data` to an impression log: simulate it or load it, with a progress bar."""

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
    """The log of `source`. `seed` decides the luck of a simulated log, `world` (TOML) its parameters.

    Raises `OptionError` when `world` is given for a log that is not simulated, `DataError` for a log that cannot be trained on,
    `WorldError` for a world that makes no sense.
    """
    if source.folder is None:
        from pocketrank.sdk_demo.world import World, WorldConfig

        config = WorldConfig.load(world)
        with progress(console, "simulating the log") as report:
            return World(config).simulate_log(seed=seed, progress=report)
    if world is not None:
        raise OptionError("--world", "`--data world` beside it", f"--data {source.kind}:{source.folder}")

    from pocketrank.cloud.data.kuairand import load_kuairand

    with progress(console, "loading the log") as report:
        return load_kuairand(source.folder, progress=lambda _file, share: report(share))
