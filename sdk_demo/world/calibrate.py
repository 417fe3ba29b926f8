"""Calibrates a world so that a log under the logging policy has the rates of `[targets]`.

    python -m pocketrank.sdk_demo.world.calibrate [--world FILE] [--write]

Each calibrated value changes one rate monotonically: a location or a logit intercept, the scale of the watch noise (a larger
one brings the rate of long views closer to that of effective views), the intercept of the hazard. Each round simulates a log
and changes all values by the missing logits, damped because they depend on each other; a few rounds reach the log's own noise.
`--write` writes the values into the file and keeps all other text.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from pocketrank.cloud.data.schema import ImpressionLog
from pocketrank.sdk_demo.world.config import DEFAULT_WORLD, WorldConfig
from pocketrank.sdk_demo.world.errors import WorldConfigError
from pocketrank.sdk_demo.world.world import World

__all__ = ["calibrate", "main", "measure", "write_calibrated"]

_CALIBRATED = {
    "watch": ("intercept", "scale"),
    "actions": ("like_intercept", "follow_intercept", "dislike_intercept"),
    "exit": ("intercept",),
}
_DAMPING = 0.8


def measure(log: ImpressionLog) -> dict[str, float]:
    """Return the value in a log of each key of `[targets]`."""
    rows = log.impressions
    labels = ("effective_view", "long_view", "like", "follow", "dislike")
    rates = {label: float(pc.mean(rows[label].cast(pa.float64())).as_py()) for label in labels}
    rates["session_impressions"] = rows.num_rows / int(pc.count_distinct(rows["session_id"]).as_py())
    return rates


def calibrate(
    config: WorldConfig, *, seed: int = 1, rounds: int = 8, report: Callable[[str], None] | None = None
) -> WorldConfig:
    """Return the same world with calibrated values. `report` is called with a line for each round."""
    target = msgspec.structs.asdict(config.targets)
    for number in range(rounds):
        got = measure(World(config).simulate_log(seed=seed))
        if report is not None:
            report(f"round {number}: " + "  ".join(f"{name} {value:.4f}" for name, value in got.items()))
        config = _step(config, got, target)
    return config


def write_calibrated(config: WorldConfig, file: Path) -> None:
    """Replace the calibrated values in a world file and keep all other text. The file is written whole or not at all."""
    text = file.read_text(encoding="utf-8")
    for section, keys in _CALIBRATED.items():
        for key in keys:
            value = getattr(getattr(config, section), key)
            pattern = rf"(^\[{section}\]$(?:\n(?!\[).*)*?\n{key} = )[-+.\deE]+"
            text, found = re.subn(pattern, rf"\g<1>{value:.4f}", text, flags=re.MULTILINE)
            if found != 1:
                raise WorldConfigError(f"{file}: $.{section}.{key}", "one line `key = number` under its section", f"{found}")
    draft = file.with_suffix(".tmp")
    draft.write_text(text, encoding="utf-8")
    draft.replace(file)


def _step(config: WorldConfig, got: dict[str, float], target: dict[str, float]) -> WorldConfig:
    """Return the world after one step towards the targets."""

    def missing(name: str) -> float:
        return _DAMPING * (_logit(target[name]) - _logit(got[name]))

    gap = (_logit(target["effective_view"]) - _logit(target["long_view"])) / (
        _logit(got["effective_view"]) - _logit(got["long_view"])
    )
    watch = msgspec.structs.replace(
        config.watch,
        intercept=config.watch.intercept + 1.5 * config.watch.scale * missing("effective_view"),
        # The gap in logits shrinks as 1 / scale, and a little less where items are shorter than a long view.
        scale=config.watch.scale * gap**-_DAMPING,
    )
    a = config.actions
    actions = msgspec.structs.replace(
        a,
        like_intercept=a.like_intercept + missing("like"),
        follow_intercept=a.follow_intercept + missing("follow"),
        dislike_intercept=a.dislike_intercept + missing("dislike"),
    )
    longer = math.log(target["session_impressions"] / got["session_impressions"])
    leave = msgspec.structs.replace(config.exit, intercept=config.exit.intercept - _DAMPING * longer)
    return msgspec.structs.replace(config, watch=watch, actions=actions, exit=leave)


def _logit(rate: float) -> float:
    # A small log may have a rate of 0 or 1, whose logit is infinite; half a row in 10,000 replaces it.
    rate = min(max(rate, 5e-5), 1 - 5e-5)
    return math.log(rate / (1 - rate))


def main(argv: list[str] | None = None) -> None:
    """Run the command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m pocketrank.sdk_demo.world.calibrate", description=__doc__.splitlines()[0])
    parser.add_argument("--world", type=Path, default=DEFAULT_WORLD, help="world file (default: the built-in one)")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="write the values into the file")
    args = parser.parse_args(argv)
    config = calibrate(WorldConfig.load(args.world), seed=args.seed, rounds=args.rounds, report=print)
    for section, keys in _CALIBRATED.items():
        for key in keys:
            print(f"{section}.{key} = {getattr(getattr(config, section), key):.4f}")
    if args.write:
        write_calibrated(config, args.world)


if __name__ == "__main__":
    main(sys.argv[1:])
