"""`pocketrank tune`: a search over the numbers of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pocketrank.sdk_demo.cli.options import parse_date, parse_source
from pocketrank.sdk_demo.cli.output import JsonTarget, print_line
from pocketrank.sdk_demo.cli.source import load_log
from pocketrank.sdk_demo.cli.stages import stages

__all__ = ["tune"]


def tune(
    data: Annotated[str, typer.Option(help="Log, as for `pocketrank train`.")],
    out: Annotated[Path, typer.Option(help="Folder of the search; its trials are runs. An interrupted search continues.")],
    test_from: Annotated[str, typer.Option(help="First test day (YYYY-MM-DD), which has no part in the search.")],
    validate_from: Annotated[str, typer.Option(help="First validation day: trials train on the days before it.")],
    search: Annotated[
        list[str],
        typer.Option(
            metavar="PART.NAME=SPACE",
            help="A number to search over: `LOW..HIGH`, `LOW..HIGH log`, `[A, B]`; may be repeated.",
        ),
    ],
    tables: Annotated[Path | None, typer.Option(help="Folder where the paths in the data file begin.")] = None,
    trials: Annotated[int, typer.Option(min=1, help="Number of trials in all.")] = 20,
    recipe: Annotated[Path | None, typer.Option(help="Recipe, as for `pocketrank train`.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="PART.NAME=VALUE", help="A number of a part that all trials have.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the search and of the trainings.")] = 0,
    json: Annotated[str | None, typer.Option(help="File for the trials; `-` prints them to stdout.")] = None,
) -> None:
    """Search for better numbers of a recipe, with Optuna.

    A trial is trained on the days before --validate-from and measured on those before --test-from, by the mean AUC of the split
    device model on the tasks that order a page. Train the winner with `pocketrank train --set`.

    \b
    pocketrank tune --data my.toml --out runs/tune --validate-from 2022-05-02 --test-from 2022-05-04 \\
        --search "ranker.learning_rate=5e-4..1e-2 log" --search "device_model.device.epochs=[2, 3, 5]" --trials 20
    pocketrank evaluate runs/tune/trial-3 runs/tune/trial-0

    Writes a run for each trial into --out, and the trials, best first, to the terminal.
    """
    target = JsonTarget(json)
    source = parse_source(data)
    days = parse_date(validate_from, "--validate-from"), parse_date(test_from, "--test-from")

    from pocketrank.cloud.training.recipe import DEFAULT_RECIPE, read_recipe, with_settings
    from pocketrank.cloud.training.train import WORLD_CONFIG, TrainConfig
    from pocketrank.cloud.training.tune import parse_space
    from pocketrank.cloud.training.tune import tune as search_for

    space = parse_space(search)
    parts = with_settings(read_recipe(recipe) if recipe else DEFAULT_RECIPE, settings or [])
    log = load_log(target.console, source, world=None, seed=seed, tables=tables, keep=out / "log")
    with stages(target.console) as report_progress:
        found = search_for(
            log,
            out=out,
            space=space,
            parts=parts,
            config=WORLD_CONFIG if log.simulated else TrainConfig(),
            trials=trials,
            validate_from=days[0],
            test_from=days[1],
            seed=seed,
            progress=report_progress,
        )
    target.write({"trials": [{"run": str(out / f"trial-{t.number}"), "auc": t.value, "settings": t.settings} for t in found]})
    table = Table("run", "AUC", *space, box=SIMPLE_HEAD)
    for trial in found[:20]:
        shown = (f"{v:.4g}" if isinstance(v, float) else str(v) for v in (trial.settings[name] for name in space))
        table.add_row(str(out / f"trial-{trial.number}"), f"{trial.value:.4f}", *shown)
    target.console.print(table)
    best = " ".join(f"--set {name}={value}" for name, value in found[0].settings.items())
    print_line(target.console, f"train the best with: {best}")
