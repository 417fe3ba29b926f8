"""What asking at the right time, for the right number, wins: effective views against requests. All users are simulated.

`python -m benchmarks.paging --json FILE`. In the default world phones ask at random; a model of what asking wins is learned
from that log (`pocketrank.cloud.training.paging`). Then, in each world with its own server and bundle, phones play the same
sessions under policies that ask by fixed counts, by a threshold, and by that model at several prices of compute, which the
server sends. ::

    simulated                 true
    model                     the `PagingModel`; learned_from: its impressions, and what it costs to consult, us
    worlds.WORLD.curve        one row for each policy: policy, kind (fixed, threshold, uplift), price, and the figures of
                              `pocketrank.sdk_demo.emulator.figures` as {mean, ci95}; requests_ratio, engagement_gain: its
                              requests by those of fixed pages of 6 of 9, and its effective views by theirs, less 1, same users
    worlds.WORLD.requests_at_equal_engagement     fewest requests with which uplift reaches the effective views of fixed pages
                              of 6 of 9, by their requests
    worlds.WORLD.engagement_gain_at_equal_requests     most effective views that uplift reaches with their requests at most, by
                              theirs, less 1
    worlds.WORLD.page_size_alone.*     the same two of fixed pages of other sizes
    worlds.WORLD.learned_timing.PRICE     effective views of uplift at that price by those of the best mixture of policies that
                              learn nothing, with the same requests and candidates at most, less 1; and that mixture
    worlds.WORLD.crunch       per price: requests a session, candidates a request
    sessions, seed            what was asked for

Between two policies of a kind lies a mixture of them, which some phones follow one of and some the other. The best mixture is
chosen by the same sessions that it is judged by, which flatters whoever has more policies to choose from: those that learn
nothing. Intervals are of 95 % over users.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle
from pathlib import Path
from string import ascii_lowercase
from tempfile import TemporaryDirectory
from timeit import repeat
from typing import Any

import msgspec
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray
from rich.console import Console
from scipy.optimize import linprog

from benchmarks.command import command_parser, figure_table, from_options, make_work_folder, one_line_errors, span
from benchmarks.trained import PLAYED_BY, PlayedWorld, Progress, code, digest
from pocketrank.cloud.files import write_atomically
from pocketrank.cloud.training.paging import UpliftConfig, UpliftLog, train_uplift
from pocketrank.cloud.training.train import WORLD_CONFIG, TrainConfig
from pocketrank.device import FixedPaging, Paging, PagingState
from pocketrank.device.contract import PagingModel
from pocketrank.device.paging import ThresholdPaging, UpliftPaging
from pocketrank.sdk_demo.cli.options import parse_list
from pocketrank.sdk_demo.cli.output import JsonTarget, print_line
from pocketrank.sdk_demo.cli.stages import stages
from pocketrank.sdk_demo.emulator.asking import OnDeviceWithPaging, RandomAsking, RandomConfig, uplift_log
from pocketrank.sdk_demo.emulator.figures import FIGURES, resampled
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.world import VARIANTS, WorldConfig

__all__ = ["BASELINE", "POLICIES", "PagingCase", "PagingExtent", "judge", "main", "measure", "plot", "print_table"]

Floats = NDArray[np.float64]

_HELP = """\
Effective views against requests, for policies that ask for pages by fixed counts, by a threshold and by predicted uplift.

  python -m benchmarks.paging --json runs/bench/paging.json --plot runs/bench/paging.png       some 50 minutes on two cores
  python -m benchmarks.paging --worlds default --work runs/paging

With --work, whatever is finished there is kept: an interrupted benchmark goes on. After a change of our code, of a
world or of an option, what depends on it is made again.
"""
_VIEWS, _REQUESTS, _CANDIDATES = (
    FIGURES.index(name) for name in ("effective_views_per_session", "requests_per_session", "candidates_per_session")
)
_LOG_SEED = 100  # added to the seed: other evenings than those that are judged
_TIMED = 2000


@dataclass(frozen=True)
class PagingCase:
    """A policy on the curve."""

    name: str
    kind: str
    """`fixed`, `threshold` or `uplift`."""
    make: Callable[[PagingModel], Paging]
    price: float = 1.0
    """Price of a page that the server reports."""


def _fixed(consume: int, size: int) -> PagingCase:
    return PagingCase(f"fixed {consume} of {size}", "fixed", lambda _: FixedPaging(consume, size))


def _threshold(value: float, size: int) -> PagingCase:
    return PagingCase(f"threshold {value:g}, {size}", "threshold", lambda _: ThresholdPaging(value, size=size))


BASELINE = _fixed(6, 9)
"""The published system's rule."""
POLICIES = (
    BASELINE,
    *(_fixed(*pair) for pair in ((6, 30), (10, 30), (20, 30), (20, 60), (60, 100))),
    *(_threshold(*pair) for pair in ((0.3, 30), (0.3, 60), (0.2, 80))),
    *(PagingCase(f"uplift, price {price:g}", "uplift", UpliftPaging, price) for price in (0.3, 1.0, 3.0)),
)
"""Policies that play."""


@dataclass(frozen=True)
class PagingExtent:
    """Extent of the benchmark."""

    worlds: tuple[str, ...] = ("default", "faster_drift", "weaker_signals")
    """Names of `pocketrank.sdk_demo.world.VARIANTS`. The model learns in the default world, whichever are judged."""
    sessions: int = 800
    """Of each policy in each world."""
    logged: int = 4000
    """Sessions that ask at random."""
    seed: int = 2
    """Of the trainings, the logs and the sessions."""
    base: WorldConfig | None = None
    """The world that the others are changes of; None is the default one."""
    train: TrainConfig = replace(WORLD_CONFIG, no_feedback=False)
    """Of the models that rank."""
    uplift: UpliftConfig = UpliftConfig()
    """Of the model that asks."""


def measure(extent: PagingExtent, work: Path, progress: Progress) -> dict[str, Any]:
    """Run the benchmark and return the report. Finished parts are kept in `work` and read from there.

    `progress` takes a stage and the share of it that is done. Raises `BenchmarkError` for a `work` that
    cannot be a folder and for sessions in which a fallback was taken, and whatever a step raises.
    """
    make_work_folder(work)

    def world(name: str) -> PlayedWorld:
        return PlayedWorld(name, extent.base, extent.train, work, progress)

    log = _logged(world("default"), extent, work)
    model, impressions = train_uplift(log, extent.uplift, seed=extent.seed), len(log.effective)
    return {
        "simulated": True,
        "model": {**msgspec.to_builtins(model), "learned_from": impressions, "consulted_us": _consulted_us(model)},
        "worlds": {
            name: judge(_played(world(name), extent, model), extent.seed, VARIANTS[name].description) for name in extent.worlds
        },
        "sessions": extent.sessions,
        "seed": extent.seed,
    }


def _logged(world: PlayedWorld, extent: PagingExtent, work: Path) -> UpliftLog:
    """Return the log of phones that ask at random, which the model is learned from."""
    random = RandomConfig()
    file = work / f"logged-{digest((world.config, extent.train, extent.seed, extent.logged, random, code(PLAYED_BY)))}.npz"
    if not file.is_file():
        policies = {RandomAsking.name: partial(RandomAsking, config=random)}
        seed = extent.seed + _LOG_SEED
        records = world.play("ask at random", policies, training=extent.seed, sessions=extent.logged, seed=seed)
        uplift_log(records).save(file)
    return UpliftLog.load(file)


def _played(world: PlayedWorld, extent: PagingExtent, model: PagingModel) -> list[SessionRecord]:
    """Return every session of every policy in `world`."""
    records: list[SessionRecord] = []
    for price in sorted({case.price for case in POLICIES}):
        policies = {
            case.name: partial(OnDeviceWithPaging, name=case.name, paging=case.make(model))
            for case in POLICIES
            if case.price == price
        }
        play = partial(world.play, f"price {price:g}", policies, price=price)
        play = partial(play, training=extent.seed, sessions=extent.sessions, seed=extent.seed)
        records += world.kept((extent.seed, extent.sessions, list(policies), model), play)
    return records


def judge(records: list[SessionRecord], seed: int, description: str) -> dict[str, Any]:
    """Return a world's part of the report."""
    drawn = resampled(records, [policy.name for policy in POLICIES], seed=seed)
    base = drawn[BASELINE.name]
    kinds = {kind: [drawn[p.name] for p in POLICIES if p.kind == kind] for kind in ("fixed", "threshold", "uplift")}
    plain = [*kinds["fixed"], *kinds["threshold"]]
    uplift = {f"{policy.price:g}": drawn[policy.name] for policy in POLICIES if policy.kind == "uplift"}
    names = [policy.name for policy in POLICIES if policy.kind != "uplift"]
    return {
        "says": description,
        "curve": [
            {
                "policy": policy.name,
                "kind": policy.kind,
                "price": policy.price,
                **{name: _with_interval(drawn[policy.name][:, i]) for i, name in enumerate(FIGURES)},
                "requests_ratio": _with_interval(_ratio(drawn[policy.name][:, _REQUESTS], base[:, _REQUESTS])),
                "engagement_gain": _with_interval(_ratio(drawn[policy.name][:, _VIEWS], base[:, _VIEWS]) - 1),
            }
            for policy in POLICIES
        ],
        **_against(kinds["uplift"], base),
        "page_size_alone": _against([d for d in kinds["fixed"] if d is not base], base),
        "learned_timing": {price: _over_mixture(of, plain, names) for price, of in uplift.items()},
        "crunch": {
            price: {
                "requests_per_session": _with_interval(of[:, _REQUESTS]),
                "candidates_per_request": _with_interval(of[:, _CANDIDATES] / of[:, _REQUESTS]),
            }
            for price, of in uplift.items()
        },
    }


def _against(policies: Sequence[Floats], base: Floats) -> dict[str, Any]:
    """The best of mixtures of two `policies` against `base`, each [1 + resamples, figures]."""
    points = np.stack([p[:, [_REQUESTS, _VIEWS]] for p in policies], 1)  # [1 + resamples, policies, 2]
    requests, views = base[:, _REQUESTS], base[:, _VIEWS]
    return {
        "requests_at_equal_engagement": _with_interval(-_best(points[:, :, ::-1] * [-1, -1], -views) / requests),
        "engagement_gain_at_equal_requests": _with_interval(_ratio(_best(points, requests), views) - 1),
    }


def _ratio(of: Floats, base: Floats) -> Floats:
    """NaN where the users drawn have nothing of what is compared."""
    return np.divide(of, base, out=np.full_like(of, np.nan), where=base > 0)


def _best(points: Floats, limit: Floats) -> Floats:
    """The largest second coordinate of mixtures of two of `points` [n, policies, 2] whose first is up to `limit` [n];
    NaN where there is none."""
    (x, y), (u, v) = np.moveaxis(points[:, :, None], -1, 0), np.moveaxis(points[:, None], -1, 0)
    limit = limit[:, None, None]
    # As much of the second as the limit allows; the rest is the first, which is within the limit.
    allowed = np.where(
        u > limit, np.divide(limit - x, u - x, out=np.zeros(np.broadcast_shapes(x.shape, u.shape)), where=u > x), 1.0
    )
    mixed = np.where(x <= limit, y + np.clip(allowed, 0, 1) * (v - y), np.nan)
    return np.asarray(np.fmax.reduce(mixed, axis=(1, 2)))


def _over_mixture(of: Floats, plain: Sequence[Floats], names: Sequence[str]) -> dict[str, Any]:
    """Effective views of `of` by those of the best mixture of `plain` with its requests and candidates at most, less 1."""
    means = np.stack([p[0] for p in plain])
    found = linprog(
        -means[:, _VIEWS],
        A_ub=means[:, [_REQUESTS, _CANDIDATES]].T,
        b_ub=of[0, [_REQUESTS, _CANDIDATES]],
        A_eq=np.ones((1, len(plain))),
        b_eq=[1],
    )
    if not found.success:
        return {"gain": None, "mixture": None}  # no mixture of them asks as little
    views = np.tensordot(found.x, np.stack([p[:, _VIEWS] for p in plain]), 1)
    mixture = {name: float(share) for name, share in zip(names, found.x, strict=True) if share > 1e-6}
    return {"gain": _with_interval(of[:, _VIEWS] / views - 1), "mixture": mixture}


def _with_interval(values: Floats) -> dict[str, Any]:
    """Return a figure, the first of `values`, with the interval of the others; null where it cannot be reached."""
    known = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(known):
        return {"mean": None, "ci95": None}
    return {"mean": float(values[0]), "ci95": np.quantile(known, (0.025, 0.975)).tolist()}


def _consulted_us(model: PagingModel) -> float:
    """Return the time of one decision on this machine, in µs."""
    policy = UpliftPaging(model)
    state = PagingState(20, 10, 60_000, 600_000, 1.0, 0.5, 0.48, 0.6, 10, 0.4)
    return min(repeat(lambda: policy(state), number=_TIMED, repeat=5)) / _TIMED * 1e6


_LOOKS = {"fixed": ("o", "#6b7280"), "threshold": ("s", "#d97706"), "uplift": ("D", "#2563eb")}
_BESIDE = ((5, 4), (5, -9), (-10, 4), (-10, -9))
"""Where the letters of points that lie close together go, one after the other: points right and up."""


def plot(report: Mapping[str, Any], file: Path) -> None:
    """The curves of all worlds as a PNG, against the published rule."""
    worlds = report["worlds"]
    figure = Figure(figsize=(5.2 * len(worlds), 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"Paging policies against {BASELINE.name}: simulated users, 95 %")
    axes = np.ravel(figure.subplots(1, len(worlds), squeeze=False))
    letters = dict(zip((policy.name for policy in POLICIES), ascii_lowercase, strict=False))
    for axis, (world, found) in zip(axes, worlds.items(), strict=True):
        rows = sorted(found["curve"], key=lambda row: row["requests_ratio"]["mean"])
        for row, offset in zip(rows, cycle(_BESIDE), strict=False):
            (marker, color), (x, y) = _LOOKS[row["kind"]], (row["requests_ratio"]["mean"], row["engagement_gain"])
            error = [[100 * abs(end - y["mean"])] for end in y["ci95"]]
            axis.errorbar(x, 100 * y["mean"], error, fmt=marker, color=color, elinewidth=0.4, markersize=4)
            at = (x, 100 * y["mean"])
            axis.annotate(letters[row["policy"]], at, offset, textcoords="offset points", fontsize=8, color=color)
        axis.axhline(0, color="#d1d5db", zorder=0)
        axis.axvline(1, color="#d1d5db", zorder=0)
        axis.set(title=world, xlabel="requests, by those of the published rule", ylabel="effective views more, %")
    handles = []
    for policy in POLICIES:
        marker, color = _LOOKS[policy.kind]
        handles.append(Line2D([], [], marker=marker, color=color, ls="", label=f"{letters[policy.name]}  {policy.name}"))
    figure.legend(handles=handles, loc="outside lower center", ncols=6 if len(worlds) > 1 else 3, fontsize=8)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)


_COLUMNS = {
    "effective_views_per_session": 2, "requests_per_session": 2, "candidates_per_session": 1, "items_per_session": 1,
}  # fmt: skip
"""Figures shown, and their digits."""


def print_table(console: Console, report: Mapping[str, Any]) -> None:
    """Print the report as tables."""
    for name, world in report["worlds"].items():
        columns = (column.removesuffix("_per_session").replace("_", " ") for column in _COLUMNS)
        table = figure_table(f"{name}: {world['says']}", *columns, label="policy")
        for row in world["curve"]:
            table.add_row(row["policy"], *(f"{row[f]['mean']:.{d}f}" for f, d in _COLUMNS.items()))
        console.print(table)
        for who, of in (("uplift", world), ("page size alone", world["page_size_alone"])):
            requests = span(of["requests_at_equal_engagement"], ".2f", "out of reach")
            gain = span(of["engagement_gain_at_equal_requests"], "+.1%", "out of reach")
            print_line(console, f"{who}, against {BASELINE.name}: {requests} of its requests, or {gain} effective views")
        for price, row in world["learned_timing"].items():
            gain = "no other policy asks as little" if row["gain"] is None else span(row["gain"], "+.1%", "out of reach")
            print_line(console, f"learned timing at price {price}, against the best that learns nothing: {gain}")
        console.print()
    print_line(console, f"Simulated users; means per session of {report['sessions']} sessions, intervals of 95 % over users.")


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the options in `arguments`."""
    defaults = PagingExtent()
    parser = command_parser("paging", _HELP)
    parser.add_argument("--plot", type=Path, metavar="PNG", help="file for the curves")
    parser.add_argument("--model", type=Path, metavar="FILE", help="file for the model, to ship in a bundle's manifest")
    parser.add_argument("--worlds", default=",".join(defaults.worlds), help="comma list [%(default)s]")
    parser.add_argument("--sessions", type=int, default=defaults.sessions, help="of each policy in each world [%(default)s]")
    parser.add_argument("--logged", type=int, default=defaults.logged, help="sessions that ask at random [%(default)s]")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of trainings, logs and sessions [%(default)s]")
    parser.add_argument(
        "--world", dest="base", type=Path, metavar="TOML", help="the world that the others are changes of [the built-in one]"
    )
    parser.add_argument("--work", type=Path, metavar="DIR", help="folder for what is trained and played [a temporary one]")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    options.worlds, options.base = parse_list(options.worlds, tuple(VARIANTS), "--worlds"), WorldConfig.load(options.base)
    extent = from_options(PagingExtent, options)
    with TemporaryDirectory(prefix="pocketrank-") as scratch, stages(target.console) as progress:
        report = measure(extent, options.work or Path(scratch), progress)
    target.write(report)
    if options.plot:
        plot(report, options.plot)
    if options.model:
        model = msgspec.convert(report["model"], PagingModel)
        write_atomically(options.model, msgspec.json.format(msgspec.json.encode(model), indent=2))
    print_table(target.console, report)


if __name__ == "__main__":
    sys.exit(main())
