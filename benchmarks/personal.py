"""Whether a user's own last layer (`pocketrank.device.model.personal`) helps, whom, and what it costs.

`python -m benchmarks.personal --data world --json FILE`. Every user's test rows are replayed in the order of time: the layer
predicts a row, then learns from it. Numbers of the layer are fitted on the earlier test rows and judged on the later ones, with
the state that users have by then. The report::

    data                     name, simulated, digest, test_from, form, fit_rows, rows
    <base>                   `shipped`: on the model's probabilities; `recalibrated`: on those after one offset a task, fitted
                             on the earlier rows, so that what all users have in common is no gain of the layer
      .offset                that offset by task, in log-odds
      .config                what the earlier rows speak for, a `PersonalConfig`; a task that is not in it stays as shipped
      .<group>.rows, users   `all`, and `new`, `casual`, `heavy` by a user's earlier events
      .<group>.<task>        before, after, gain
        .auc, logloss        each row predicted at its time
        .gauc, ndcg          within lists, all rows of a list with the state at its beginning: predictions after each row would
                             count against whatever learns (`pocketrank.cloud.training.metrics`)
      .<group>.order.*.ndcg  lists in the order that the device shows: by the weighted sum of the tasks
        gain                 of each metric: mean, low, high; 95 % by a paired bootstrap over users; above 0 is better
    cost                     learn_us, adjust_us (a page), state_bytes; sgd_us: scikit-learn's SGDClassifier, one row for each
                             task; learn_by_sgd: their ratio
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from pathlib import Path
from tempfile import TemporaryDirectory
from timeit import timeit
from typing import Any, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from sklearn.linear_model import SGDClassifier

from benchmarks.command import command_parser, figure_table, one_line_errors
from benchmarks.errors import BenchmarkError
from pocketrank.cloud.data.days import day_of, days
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig
from pocketrank.cloud.data.schema import ImpressionLog
from pocketrank.cloud.training.metrics import auc, gauc, log_loss, ndcg
from pocketrank.cloud.training.run import Run
from pocketrank.cloud.training.train import train
from pocketrank.device.contract import Form, Group, GroupRule, PersonalConfig, TaskPrior
from pocketrank.device.model.personal import PersonalLayer, group
from pocketrank.sdk_demo.cli.options import parse_date, parse_source
from pocketrank.sdk_demo.cli.output import JsonTarget, progress
from pocketrank.sdk_demo.cli.source import load_log
from pocketrank.sdk_demo.cli.stages import stages

__all__ = ["ReplayRows", "fit", "main", "measure", "replay"]

TEST_SHARE = 0.5
"""Of the rows, where nobody says what to test on: a layer needs time to learn a user."""
FIT_SHARE = 0.4
"""Of the test rows, the earlier ones, to fit the layer's numbers on."""
USER = (0.0, 0.1, 0.2, 0.4, 0.8)
"""Deviations of users that are tried."""
CATEGORY = (0.0, 0.2, 0.4, 0.7)
"""Deviations of their tastes for categories."""
FORGET = (0.01, 0.03, 0.1)
"""Shares forgotten at each impression."""
RULE = GroupRule()
"""Earlier events that part the groups."""
RESAMPLES = 50
"""Of the bootstrap; its deviations are known to a tenth."""
PAGE = 30
"""Candidates of the page whose adjustment is timed."""
ROUNDS = 50
"""Turns of the calls that are timed."""

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class ReplayRows:
    """Test rows, sorted by user and time. R rows, K tasks."""

    tasks: tuple[str, ...]
    weights: Floats  # [K] of the order on the device
    labels: Floats  # [R, K], NaN unknown
    shipped: Floats  # [R, K]
    user: Ints  # [R]
    list: Ints  # [R]
    category: Ints  # [R], 0 unknown
    ms: Ints  # [R]
    before: Ints  # [R] events of the user before this one

    def take(self, at: NDArray[Any]) -> ReplayRows:
        """Some of the rows."""
        columns = ("labels", "shipped", "user", "list", "category", "ms", "before")
        return replace(self, **{name: getattr(self, name)[at] for name in columns})

    @classmethod
    def of(cls, run: Run, log: ImpressionLog, form: Form) -> ReplayRows:
        """Those of a run's first seed. Raises `BenchmarkError` when the run is of another log."""
        record = run.record
        if record.data_digest != log.digest():
            raise BenchmarkError(str(run.folder), f"a run of {log.name} {log.digest()[:12]}", record.data_digest[:12])
        spec = record.spec
        config = SampleConfig(tasks=spec.tasks, time_zone=log.time_zone, test_from=parse_date(record.test_from, "test_from"))
        samples = build_samples(log, config)
        at = np.flatnonzero(samples.event_day[samples.row_event] >= samples.learn_until)
        event = samples.row_event[at]
        try:
            shipped, labels = (np.load(run.seed_folder() / f"{name}.npy") for name in (form, "labels"))
        except (OSError, ValueError) as error:
            raise BenchmarkError(str(run.seed_folder()), f"predictions of the {form} form", str(error)) from error
        if not np.array_equal(labels, samples.event_labels[event], equal_nan=True) or shipped.shape != labels.shape:
            raise BenchmarkError(str(run.folder), "the test rows of this log", f"{len(labels)} others")
        return cls(
            tasks=spec.tasks,
            weights=np.array([spec.task_weights.get(task, 0) for task in spec.tasks], np.float32),
            labels=labels,
            shipped=shipped,
            user=samples.event_user[event],
            list=samples.row_list[at],
            category=samples.item_category[samples.event_item[event]],
            ms=samples.event_ms[event],
            before=event - samples.user_start[samples.event_user[event]],
        )


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark with the options in `arguments`."""
    parser = command_parser("personal", "Replay users' own last layers over the test rows of a run.")
    parser.add_argument("--data", required=True, help="`world` (simulated), a data file, or the folder of a log")
    parser.add_argument("--tables", type=Path, metavar="DIR", help="where the paths in the data file begin [its folder]")
    parser.add_argument("--run", type=Path, metavar="DIR", help="a run of that data; without it one is trained")
    parser.add_argument("--test-from", metavar="DAY", help="first test day of that training [half of the rows]")
    parser.add_argument("--form", choices=get_args(Form), default="split", help="of the model [%(default)s]")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    source = parse_source(options.data)
    test_from = None if options.test_from is None else parse_date(options.test_from, "--test-from")
    run = None if options.run is None else Run.open(options.run)
    found = load_log(target.console, source, world=None, seed=0, tables=options.tables)
    log = found if isinstance(found, ImpressionLog) else found.load()
    with TemporaryDirectory(prefix="pocketrank-") as scratch:
        if run is None:
            half = day_of(int(np.quantile(days(log), 1 - TEST_SHARE, method="lower")))
            with stages(target.console) as stage:
                run = train(log, out=Path(scratch) / "run", test_from=test_from or half, seeds=1, progress=stage)
        rows = ReplayRows.of(run, log, options.form)
    about = {"name": log.name, "simulated": log.simulated, "digest": run.record.data_digest}
    about |= {"test_from": run.record.test_from, "form": options.form}
    with progress(target.console, "replaying") as update:
        report = measure(rows, update)
    report["data"] = about | report["data"]
    target.write(report)
    _print(target.console, report)


def measure(
    rows: ReplayRows, update: Callable[[float], None] = lambda _: None, *, resamples: int = RESAMPLES
) -> dict[str, Any]:
    """The report of the module, without the log's name. `update` takes the share done. Raises `BenchmarkError`."""
    fits = rows.ms < np.quantile(rows.ms, FIT_SHARE)
    if fits.all() or not fits.any():
        raise BenchmarkError("test rows", "some earlier and some later ones", f"{len(rows.ms)} of one time")
    report: dict[str, Any] = {"data": {"fit_rows": int(fits.sum()), "rows": int((~fits).sum())}}
    offset = np.array([_offset(y, p) for y, p in zip(rows.labels[fits].T, rows.shipped[fits].T, strict=True)])
    for number, (base, shift) in enumerate((("shipped", np.zeros_like(offset)), ("recalibrated", offset))):
        based = replace(rows, shipped=_moved(rows.shipped, shift))
        config = fit(based.take(fits))
        update((number + 0.5) / 2)
        fresh, frozen = replay(based, config)
        figures: dict[str, Any] = {"offset": dict(zip(rows.tasks, shift.tolist(), strict=True))}
        figures["config"] = msgspec.to_builtins(config)
        groups = np.array([group(before, RULE) for before in rows.before.tolist()])
        for name in ("all", *get_args(Group)):
            at = np.flatnonzero(~fits & ((groups == name) | (name == "all")))
            figures[name] = _compare(based.take(at), fresh[at], frozen[at], resamples)
        report[base] = figures
        update((number + 1) / 2)
    return report | {"cost": _cost(rows.tasks)}


def replay(rows: ReplayRows, config: PersonalConfig) -> tuple[Floats, Floats]:
    """The layer's probabilities [R, K]: of each row at its time, and of each row with the state at its list's beginning."""
    fresh, frozen = np.empty_like(rows.shipped), np.empty_like(rows.shipped)
    for user in _runs(rows.user):
        layer = PersonalLayer(rows.tasks, bundle="", user_id=0, config=config)
        for part in _runs(rows.list[user]):
            at = slice(user.start + part.start, user.start + part.stop)
            frozen[at] = layer.adjust(rows.shipped[at], rows.category[at])
            for i in range(at.start, at.stop):
                fresh[i] = layer.adjust(rows.shipped[i : i + 1], rows.category[i : i + 1])[0]
                layer.learn(rows.shipped[i], rows.labels[i], int(rows.category[i]))
    return fresh, frozen


def fit(rows: ReplayRows) -> PersonalConfig:
    """The config of the lowest log loss on `rows`, with those tasks in which the gain is 1.96 of its standard errors or more.

    Tasks do not touch one another, so one replay tries all priors of all tasks, each as a task of its own.
    """
    priors = [TaskPrior(user=u, category=c) for u, c in product(USER, CATEGORY) if u or c]
    names = tuple(f"{task} {i}" for task in rows.tasks for i in range(len(priors)))
    labels, shipped = (np.repeat(values, len(priors), axis=1) for values in (rows.labels, rows.shipped))
    wide = replace(rows, tasks=names, labels=labels, shipped=shipped)
    lost = _losses(rows.labels, rows.shipped)
    best, best_gain = PersonalConfig(), 0.0
    for forget in FORGET:
        config = PersonalConfig(tasks=dict(zip(names, priors * len(rows.tasks), strict=True)), forget=forget)
        fresh, _ = replay(wide, config)
        gained = (np.repeat(lost, len(priors), axis=1) - _losses(labels, fresh)).reshape(len(lost), len(rows.tasks), -1)
        total = gained.sum(0)
        chosen, sum_of_gains = {}, 0.0
        for k, task in enumerate(rows.tasks):
            i = int(total[k].argmax())
            by_user = np.add.reduceat(gained[:, k, i], [part.start for part in _runs(rows.user)])
            if total[k, i] > 1.96 * np.sqrt(np.square(by_user).sum()):
                chosen[task] = priors[i]
                sum_of_gains += total[k, i] / lost[:, k].sum()
        if sum_of_gains > best_gain:
            best, best_gain = PersonalConfig(tasks=chosen, forget=forget), sum_of_gains
    return best


def _losses(labels: Floats, p: Floats) -> NDArray[np.float64]:
    """Log loss of each row and task, 0 where the label is unknown."""
    wrong = np.where(labels == 1, 1 - p.astype(np.float64), p)
    return -np.log1p(-np.minimum(np.where(np.isnan(labels), 0, wrong), 1 - 1e-7))


def _moved(p: Floats, shift: NDArray[np.float64]) -> Floats:
    odds = p * np.exp(shift)
    return (odds / (odds + (1 - p))).astype(np.float32)


def _offset(labels: Floats, p: Floats) -> float:
    """The shift of the log-odds under which as many are expected as there were, by Newton's method."""
    shift, known = 0.0, ~np.isnan(labels)
    for _ in range(20):
        moved = _moved(p[known], np.array(shift))
        slope = float((moved * (1 - moved)).sum())
        step = float((labels[known] - moved).sum()) / slope if slope else 0.0
        shift += min(1.0, max(-1.0, step))  # where only one label is known, there is no end to it
    return shift


def _compare(rows: ReplayRows, fresh: Floats, frozen: Floats, resamples: int) -> dict[str, Any]:
    """Before, after and gain of each task and of the order."""
    users = list(_runs(rows.user))
    report: dict[str, Any] = {"rows": len(rows.user), "users": len(users)}
    if not users:
        return report
    rng = np.random.default_rng(0)
    before, after = _metrics(rows, rows.shipped, rows.shipped), _metrics(rows, fresh, frozen)
    drawn = []
    for _ in range(resamples):
        picks = [users[i] for i in rng.integers(0, len(users), len(users))]
        at = np.concatenate([np.arange(user.start, user.stop) for user in picks])
        copy = np.repeat(np.arange(len(picks)), [user.stop - user.start for user in picks])
        # a user who is drawn twice has twice as many lists
        again = replace(rows.take(at), list=copy * (int(rows.list.max()) + 1) + rows.list[at])
        drawn.append(_gains(_metrics(again, again.shipped, again.shipped), _metrics(again, fresh[at], frozen[at])))
    for task, gains in _gains(before, after).items():
        spread = {name: [d[task][name] for d in drawn if name in d[task]] for name in gains}
        half = {name: 1.96 * float(np.std(values, ddof=1)) for name, values in spread.items() if len(values) > 1}
        gain = {n: {"mean": gains[n], "low": gains[n] - h, "high": gains[n] + h} for n, h in half.items()}
        report[task] = {"before": before[task], "after": after[task], "gain": gain}
    return report


def _metrics(rows: ReplayRows, fresh: Floats, frozen: Floats) -> dict[str, dict[str, float | None]]:
    out: dict[str, dict[str, float | None]] = {}
    for k, task in enumerate(rows.tasks):
        y = rows.labels[:, k]
        out[task] = {
            "auc": auc(y, fresh[:, k]),
            "gauc": gauc(y, frozen[:, k], rows.list),
            "ndcg": ndcg(y, frozen[:, k], rows.list),
            "logloss": log_loss(y, fresh[:, k]),
        }
    counts = rows.weights != 0
    worth = np.maximum(rows.labels[:, counts] @ rows.weights[counts], 0)  # NaN where a label that counts is unknown
    out["order"] = {"ndcg": ndcg(worth, frozen @ rows.weights, rows.list)} if counts.any() else {}
    return out


def _gains(
    before: dict[str, dict[str, float | None]], after: dict[str, dict[str, float | None]]
) -> dict[str, dict[str, float]]:
    """By how much each metric is better, where both are known."""
    return {
        task: {
            name: (old - new) if name == "logloss" else (new - old)
            for name, old in figures.items()
            if old is not None and (new := after[task][name]) is not None
        }
        for task, figures in before.items()
    }


def _runs(values: Ints) -> Iterator[slice]:
    """The runs of equal values."""
    edges = np.flatnonzero(np.diff(values)) + 1
    yield from (slice(a, b) for a, b in pairwise([0, *edges.tolist(), len(values)]) if a < b)


def _cost(tasks: tuple[str, ...]) -> dict[str, float]:
    """Time a layer that adapts all tasks, beside a peer that learns online too."""
    layer = PersonalLayer(tasks, bundle="", user_id=0, config=PersonalConfig(tasks={task: TaskPrior() for task in tasks}))
    rng = np.random.default_rng(0)
    page, categories = rng.random((PAGE, len(tasks)), np.float32), rng.integers(0, 40, PAGE)
    labels = (page < 0.5).astype(np.float32)
    peer = SGDClassifier(loss="log_loss")
    peer.partial_fit(page, labels[:, 0], classes=[0, 1])

    def sgd() -> None:
        for k in range(len(tasks)):
            peer.partial_fit(page[:1], labels[:1, k])

    calls: dict[str, Callable[[], object]] = {
        "learn_us": lambda: layer.learn(page[0], labels[0], 3),
        "adjust_us": lambda: layer.adjust(page, categories),
        "sgd_us": sgd,
    }
    took: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(ROUNDS):  # in turn, so that a slow moment of the machine slows all
        for name, call in calls.items():
            took[name].append(timeit(call, number=10) / 10 * 1e6)
    cost = {name: float(np.median(times)) for name, times in took.items()}
    return cost | {"learn_by_sgd": cost["learn_us"] / cost["sgd_us"], "state_bytes": len(layer.state())}


def _print(console: Console, report: dict[str, Any]) -> None:
    about, cost = report["data"], report["cost"]
    for base in ("shipped", "recalibrated"):
        adapts = report[base]["config"]["tasks"]
        title = f"{about['name']}, {about['form']}, {base}: gains where {', '.join(adapts) or 'nothing'} adapts"
        metrics = ("auc", "gauc", "ndcg", "logloss")
        table = figure_table(title, "task", "rows", *metrics, label="users")
        for name in ("all", *get_args(Group)):
            figures = report[base][name]
            for task in (*adapts, "order"):
                if task in figures:
                    gains = [figures[task]["gain"].get(metric) for metric in metrics]
                    cells = [f"{g['mean']:+.4f} ± {g['high'] - g['mean']:.4f}" if g else "" for g in gains]
                    table.add_row(name, task, str(figures["rows"]), *cells)
        console.print(table)
    console.print(
        f"A step of learning takes {cost['learn_us']:.0f} µs, {cost['learn_by_sgd']:.2f} times scikit-learn's SGDClassifier; "
        f"a page {cost['adjust_us']:.0f} µs; the state has {cost['state_bytes']} bytes.",
        highlight=False,
    )


if __name__ == "__main__":
    sys.exit(main())
