"""How much of the oracle's uplift the device wins, in worlds that differ in one thing each. All users are simulated.

`python -m benchmarks.emulation --json FILE`. For each world, and for each training in it: a log, a run trained on it, a bundle,
a server, and phones that play the same sessions with the same luck under every policy. The report::

    simulated                true
    worlds.WORLD.POLICY      uplift_share; effective_views_per_session and the other figures of
    `pocketrank.sdk_demo.emulator.figures` worlds.WORLD.POLICY.*    mean, ci95
    worlds.WORLD.beam_over_greedy.*      the same of the difference, sessions being paired
    worlds.WORLD.trainings.SEED.POLICY.uplift_share      of the sessions with that training's models alone
    worlds.WORLD             says, changes, feedback_delay_s: what the world is
    trainings, policies, sessions      what was asked for; sessions are those of each policy with each training

A share is the gain in effective views per session over cloud order, by the oracle's gain. Intervals are over users and
trainings.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from benchmarks.command import command_parser, count, figure_table, from_options, make_work_folder, one_line_errors, span
from benchmarks.trained import PlayedWorld, Progress
from pocketrank.cloud.training.train import WORLD_CONFIG, TrainConfig
from pocketrank.sdk_demo.cli.options import parse_list
from pocketrank.sdk_demo.cli.output import JsonTarget, print_line
from pocketrank.sdk_demo.cli.stages import stages
from pocketrank.sdk_demo.emulator.figures import FIGURES, FigureConfig, figures
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.world import VARIANTS, WorldConfig

__all__ = ["PLAYERS", "EmulationExtent", "main", "measure", "print_table"]

_HELP = """\
Share of the oracle's uplift that cloud order, a refreshed cloud order and the device win, in simulated worlds.

  python -m benchmarks.emulation --json runs/bench/emulation.json
  python -m benchmarks.emulation --worlds default,weaker_signals --work runs/emulation

With --work, whatever is finished there is kept: an interrupted benchmark goes on. After a change of our code, of a
world or of an option, what depends on it is made again.
"""
PLAYERS = ("cloud_order", "refreshed", "greedy", "beam", "informed", "oracle")
"""Policies that play."""


@dataclass(frozen=True)
class EmulationExtent:
    """Extent of the benchmark."""

    worlds: tuple[str, ...] = tuple(VARIANTS)
    """Names of `pocketrank.sdk_demo.world.VARIANTS`."""
    sessions: int = 1500
    """For each policy with each training."""
    trainings: int = 2
    """In each world, every one on a log of its own: what is won also varies with the model."""
    seed: int = 1
    """Of the first training, its log and its sessions; the others follow."""
    base: WorldConfig | None = None
    """The world that the others are changes of; None is the default one."""
    train: TrainConfig = replace(WORLD_CONFIG, no_feedback=False)
    """One training, as in the demo."""


def measure(extent: EmulationExtent, work: Path, progress: Progress) -> dict[str, Any]:
    """Run the benchmark and return the report. Finished parts are kept in `work` and read from there.

    `progress` takes a stage and the share of it that is done. Raises `BenchmarkError` for a `work` that
    cannot be a folder and for sessions in which a fallback was taken, and whatever a step raises.
    """
    make_work_folder(work)
    seeds = list(range(extent.seed, extent.seed + extent.trainings))
    worlds = {}
    for name in extent.worlds:
        variant, world = VARIANTS[name], PlayedWorld(name, extent.base, extent.train, work, progress)
        records = {seed: _played(world, extent, seed) for seed in seeds}
        everything = [record for seed in seeds for record in records[seed]]
        floor = FigureConfig(floor="greedy")
        beam = figures(everything, ("greedy", "beam"), seed=extent.seed, config=floor)["gain"]["beam"]
        worlds[name] = {
            "says": variant.description,
            "changes": variant.changes,
            "feedback_delay_s": variant.feedback_delay_s,
            **_by_policy(everything, extent.seed),
            "beam_over_greedy": {name: beam[name] for name in FIGURES},
            "trainings": {
                str(seed): {policy: {"uplift_share": row["uplift_share"]} for policy, row in _by_policy(of, seed).items()}
                for seed, of in records.items()
            },
        }
    return {
        "simulated": True,
        "worlds": worlds,
        "trainings": seeds,
        "policies": list(PLAYERS),
        "sessions": extent.sessions,
    }


def _played(world: PlayedWorld, extent: EmulationExtent, seed: int) -> list[SessionRecord]:
    """Return every session of every policy with the models of training `seed`."""

    def play() -> list[SessionRecord]:
        policies = {name: name for name in PLAYERS}
        return world.play(f"emulate, seed {seed}", policies, training=seed, sessions=extent.sessions, seed=seed)

    return world.kept((seed, extent.sessions, PLAYERS), play)


def _by_policy(records: list[SessionRecord], seed: int) -> dict[str, dict[str, Any]]:
    """Every policy's figures as `{mean, ci95}`, and its share. Cloud order's is 0, being what is counted from."""
    found = figures(records, PLAYERS, seed=seed)
    shares = {policy: gain["uplift_share"] for policy, gain in found["gain"].items()}
    shares["cloud_order"] = {"mean": 0.0, "ci95": [0.0, 0.0]}
    return {
        policy: {
            "uplift_share": shares[policy],
            **{name: {"mean": row[name], "ci95": row[f"{name}_ci95"]} for name in FIGURES},
        }
        for policy, row in found["policies"].items()
    }


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the options in `arguments`."""
    parser = command_parser("emulation", _HELP)
    parser.add_argument("--worlds", default=",".join(VARIANTS), help="comma list [%(default)s]")
    parser.add_argument(
        "--sessions", type=count, default=EmulationExtent.sessions, help="of each policy with each training [%(default)s]"
    )
    parser.add_argument(
        "--seeds", dest="trainings", type=count, default=EmulationExtent.trainings, help="trainings in each world [%(default)s]"
    )
    parser.add_argument(
        "--world", dest="base", type=Path, metavar="TOML", help="the world that the others are changes of [the built-in one]"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for what is trained and played [a temporary one]")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    options.worlds, options.base = parse_list(options.worlds, tuple(VARIANTS), "--worlds"), WorldConfig.load(options.base)
    extent = from_options(EmulationExtent, options)
    with TemporaryDirectory(prefix="pocketrank-") as scratch, stages(target.console) as progress:
        report = measure(extent, options.work or Path(scratch), progress)
    target.write(report)
    print_table(target.console, report)


_COLUMNS = {
    "effective_views_per_session": 2, "likes_per_session": 3, "items_per_session": 1, "requests_per_session": 2,
}  # fmt: skip
"""Figures shown beside the share, and their digits."""


def print_table(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report as tables."""
    for name, world in report["worlds"].items():
        columns = (column.removesuffix("_per_session").replace("_", " ") for column in _COLUMNS)
        table = figure_table(f"{name}: {world['says']}", "share of the oracle's uplift", *columns, label="policy")
        for policy in report["policies"]:
            row = world[policy]
            share = span(row["uplift_share"], ".2f", "the oracle wins nothing")
            table.add_row(policy, share, *(f"{row[f]['mean']:.{d}f}" for f, d in _COLUMNS.items()))
        console.print(table)
        gain = world["beam_over_greedy"]["effective_views_per_session"]
        low, high = gain["ci95"]
        print_line(
            console, f"beam over greedy, effective views: {gain['mean']:+.2f} (95 % interval {low:+.2f} to {high:+.2f})\n"
        )
    count, trainings = report["sessions"], len(report["trainings"])
    print_line(
        console,
        f"Simulated users; means per session. {count} sessions of each policy with each of {trainings} trainings a world; "
        "intervals of 95 % over users and trainings.",
    )


if __name__ == "__main__":
    sys.exit(main())
