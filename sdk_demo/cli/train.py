"""`pocketrank train`: a log to a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from pocketrank.sdk_demo.cli.errors import OptionError
from pocketrank.sdk_demo.cli.options import PRESET_NAMES, parse_date, parse_source
from pocketrank.sdk_demo.cli.output import print_line
from pocketrank.sdk_demo.cli.source import load_log
from pocketrank.sdk_demo.cli.stages import stages

__all__ = ["train"]


def train(
    data: Annotated[
        str,
        typer.Option(
            help="`world` (simulated), a data file `FILE.toml` that describes your tables, or the folder of a log that "
            "`pocketrank data import` wrote."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder of the run. An interrupted run resumes after its last finished stage.")],
    test_from: Annotated[
        str | None,
        typer.Option(
            help="First test day (YYYY-MM-DD): trained on the days before it, tested on it and the days after. "
            "[default: the latest day that leaves a tenth of the rows for the test]"
        ),
    ] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder where the paths in the data file begin. [default: that of the file]")
    ] = None,
    world: Annotated[
        Path | None, typer.Option(help="TOML with the parameters of the simulated world; only with `--data world`.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Number of trainings; the metrics are means over them.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first training; each further one adds 1.")] = 0,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="TOML that names the parts to train and their numbers, parts of your own among them. "
            "[default: the ranker and the device model]"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="PART.NAME=VALUE", help="A number of a part, as ranker.learning_rate=1e-3; may be repeated."
        ),
    ] = None,
    preset: Annotated[
        str,
        typer.Option(
            help="Size of the device model: `tiny`; `full`, with feature crossings and experts; `paper`, as wide as published."
        ),
    ] = "tiny",
) -> None:
    """Train the cloud's ranker and the device model on a log.

    The log is split by time. The ranker is trained first. It scores each row in a state that has not seen that row, and these
    scores are inputs of the device model, which is then trained in both forms, self-contained and split.

    \b
    pocketrank train --data world --out runs/world
    pocketrank train --data examples/kuairand.toml --tables data/KuaiRand-Pure --test-from 2022-05-04 --out runs/kuairand

    The tables of a data file are imported into OUT/log first, which is done once.

    A recipe is a file such as

    \b
    [[part]]
    use = "ranker"                 # without it, the device model learns from the log's own columns pxtr_<task>
    learning_rate = 2e-3
    [[part]]
    use = "device_model"
    device = { epochs = 3, patience = 1 }
    [[part]]
    use = "features"               # counts and rates over time windows, sequences by behaviour (docs/data.md)
    statistics = [{ of = "author", days = [1, 7], rates = ["long_view"], device = true }]
    [[part]]
    use = "popularity.ByHour"      # a class of your own, beside the recipe

    Several processes train one run, each a share of every batch, with

    \b
    torchrun --nproc-per-node 2 -m pocketrank train --data logs/first --out runs/first

    Writes into --out: the weights, the configuration, the seeds, the digest of the data, the metrics, and events for
    TensorBoard.
    """
    source = parse_source(data)
    if preset not in PRESET_NAMES:
        raise OptionError("--preset", f"one of {', '.join(PRESET_NAMES)}", preset)
    first_test_day = None if test_from is None else parse_date(test_from, "--test-from")

    from pocketrank.cloud.models.presets import PRESETS
    from pocketrank.cloud.training import ranks
    from pocketrank.cloud.training.recipe import DEFAULT_RECIPE, read_recipe, with_recipe, with_settings
    from pocketrank.cloud.training.train import WORLD_CONFIG, TrainConfig
    from pocketrank.cloud.training.train import train as train_run

    parts = read_recipe(recipe) if recipe else DEFAULT_RECIPE
    with_settings(parts, settings or [])  # before the log is loaded
    with ranks.joined():
        console = Console(quiet=not ranks.is_first())
        with ranks.first_alone():
            log = load_log(console, source, world=world, seed=seed, tables=tables, keep=out / "log")
        config = (WORLD_CONFIG if log.simulated else TrainConfig()).of_size(PRESETS[preset])
        config = with_recipe(config, with_settings(parts, settings or []))
        with stages(console) as report_progress:
            train_run(log, out=out, config=config, test_from=first_test_day, seeds=seeds, seed=seed, progress=report_progress)
        print_line(console, f"run written to {out}; next: pocketrank evaluate {out}")
