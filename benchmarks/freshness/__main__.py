"""How long it takes until an event or an item changes pages: `python -m benchmarks.freshness --json FILE`.

A server, a process that learns beside it, and a process of users that send 500 events a second. Meanwhile a user whom nobody
knows is shown items, likes some of them in an experiment, and asks for pages outside of it: there the history stays as it was,
so that the scores differ from those of another unknown user only once the user's row has been learned, published and applied.
And an editor puts items, and asks for pages until one has the item. ::

    event_to_score_s.{p50,p99}      from the upload of an event until a page's scores show what was learned from it
    event_to_history_s.{p50,p99}    until the scores of a page know the user's history
    item_to_page_s.{p50,p99}        from the PUT of an item until a page has it
    events_per_s.{sent,log,join,train}     what users sent; and what log, join and trainer do alone on what was collected, a CPU
                                    second of one core each
    page_cpu_ms.{without,with}, page_cpu_ratio     CPU of the server for a page and its feedback, while nothing is learned, and
                                    while increments come; with by without
    memory_mib.{server,learner}.{start,end}, memory_growth     resident memory after the first tenth of the time and at its end;
                                    the larger of the two ratios
    increments, rows, rollbacks     of the learner
    seconds, simulated              how long; users are invented
"""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, process_time, sleep, time
from typing import Any

import msgspec
import numpy as np
from rich.console import Console

from benchmarks.command import command_parser, figure_table, one_line_errors
from benchmarks.errors import BenchmarkError
from benchmarks.freshness.caller import Caller
from benchmarks.freshness.world import USERS, small_run
from benchmarks.processes import own_environment, wait_until
from pocketrank.cloud.serving.access.limits import RateLimit, TokenScope
from pocketrank.cloud.serving.access.tokens import issue_token
from pocketrank.cloud.streams.event_log import NewRecord
from pocketrank.cloud.streams.join import Join
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.run import Run
from pocketrank.sdk_demo.cli.output import JsonTarget, print_line

__all__ = ["main"]

_DAY_MS = 86_400_000
_EVENTS_PER_S = 500
_GIVE_UP_S = 60.0
_APPENDS, _JOINED = 2000, 100_000
_UNKNOWN_USER = 10_000_000
_NEW_ITEM = 20_000_000
_PIPELINE = """
[page]
size_max = 600
[limits]
page_ms = 10_000
[filters]
seen = false
[[stage]]
use = "retrieve"
candidates = 300
channel = [{ use = "fresh", quota = 40 }, { use = "popular", quota = 130 }, { use = "two_tower", quota = 130 }]
[[stage]]
use = "rank"
[[stage]]
use = "fuse"
formula = "effective_view"
"""


@one_line_errors
def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the figures."""
    parser = command_parser("freshness", __doc__ or "")
    parser.add_argument("--seconds", type=float, default=1200.0, help="how long increments come (default: 1200)")
    parser.add_argument("--quiet-seconds", type=float, default=120.0, help="how long pages come without them (default: 120)")
    options = parser.parse_args(arguments)
    target = JsonTarget(options.json)
    with TemporaryDirectory(prefix="pocketrank-freshness-") as folder:
        report = _measure(Path(folder), options.seconds, options.quiet_seconds, target.console)
    target.write(report)
    _show(report, target.console)


def _measure(folder: Path, seconds: float, quiet_s: float, console: Console) -> dict[str, Any]:
    print_line(console, "a small world is trained")
    run = small_run(folder / "run")
    (folder / "pipeline.toml").write_text(_PIPELINE)
    scopes: tuple[TokenScope, ...] = ("device", "publish")
    rate = RateLimit(per_s=100_000, burst=100_000)
    token = issue_token(folder / "tokens", scopes, now_ms=int(1000 * time()), lasts_ms=_DAY_MS, rate=rate).token
    report: dict[str, Any] = {"simulated": True, "seconds": seconds}
    with _process(folder / "server.log", *_serve(folder)) as server:
        port = _port(folder / "server.log")
        print_line(console, f"pages without increments for {quiet_s:g} s")
        report["page_cpu_ms"] = {"without": _page_cpu_ms(port, token, quiet_s, server.pid)}
        with _process(folder / "learn.log", "learn", "--run", str(run.folder), "--json", str(folder / "learn.json")) as learner:
            caller = Caller(port, token)
            print_line(console, f"pages with increments for {quiet_s:g} s")
            report["page_cpu_ms"]["with"] = _page_cpu_ms(port, token, quiet_s, server.pid)
            print_line(console, f"and with probes for {seconds:g} s")
            with _load(port, token, seconds) as load:
                report |= _probe(caller, seconds, {"server": server.pid, "learner": learner.pid})
                sent = _sent(load)
            learner.terminate()
            learner.wait(30)
        report["page_cpu_ratio"] = report["page_cpu_ms"]["with"] / report["page_cpu_ms"]["without"]
        learned = msgspec.json.decode((folder / "learn.json").read_bytes())
        report |= {name: learned[of] for name, of in _OF_LEARNER.items()}
        report["late_share"] = sent["late_share"]
    report["events_per_s"] = {"sent": sent["events_per_s"]} | _limits(folder, run)
    return report


_OF_LEARNER = {
    "increments": "train_increments",
    "rows": "train_rows",
    "rollbacks": "train_rollbacks",
    "samples": "train_samples",
}


def _page_cpu_ms(port: int, token: str, seconds: float, pid: int) -> float:
    """Return the CPU of the server for a page and its feedback."""
    before = _cpu_s(pid)
    with _load(port, token, seconds) as load:
        pages = _sent(load)["pages"]
    return 1000 * (_cpu_s(pid) - before) / pages


def _probe(caller: Caller, seconds: float, pids: dict[str, int]) -> dict[str, Any]:
    """Measure until the time is over, one probe of each kind after the other."""
    scores, histories, items = list[float](), list[float](), list[float]()
    memory: dict[str, dict[str, float]] = {name: {} for name in pids}
    began, number = monotonic(), 0
    while (now := monotonic() - began) < seconds:
        if now > seconds / 10 and not memory["server"]:
            for name, pid in pids.items():
                memory[name]["start"] = _memory_mib(pid)
        number += 1
        to_history, to_score = _event_probe(caller, _UNKNOWN_USER + 2 * number)
        histories.append(to_history)
        scores.append(to_score)
        items.append(_item_probe(caller, _NEW_ITEM + number))
        sleep(0.5)
    for name, pid in pids.items():
        memory[name]["end"] = _memory_mib(pid)
    growth = [of["end"] / of["start"] for of in memory.values()]
    return {
        "event_to_score_s": _quantiles(scores),
        "event_to_history_s": _quantiles(histories),
        "item_to_page_s": _quantiles(items),
        "probes": number,
        "memory_mib": memory,
        "memory_growth": max(growth),
    }


def _event_probe(caller: Caller, user: int) -> tuple[float, float]:
    """Return the seconds until the scores of a page know what `user`, whom nobody knew, did in an experiment, and until those
    outside of it are not those of the next user any more."""
    other, experiment = user + 1, f"probe-{user}"
    page = caller.page(user, 30, experiment=experiment, session_id=str(user))
    liked = Caller.items(page)[:3].tolist()
    events = tuple(
        Caller.event(page, item, user, place, session_id=str(user), watch_ms=60_000, like=True, experiment=experiment)
        for place, item in enumerate(liked)
    )
    began = monotonic()
    caller.feedback(events)
    before = Caller.scores(page)
    while all(np.array_equal(now, before[item]) for item, now in _scores_of(caller, user, experiment, liked).items()):
        _unless_late(began, "a page knows what was done")
    to_history = monotonic() - began
    while True:
        first, mine, last = (Caller.scores(caller.page(one, 300)) for one in (other, user, other))
        still = [item for item, values in first.items() if item in last and np.array_equal(values, last[item])]
        if any(item in mine and not np.array_equal(mine[item], first[item]) for item in still):
            return to_history, monotonic() - began
        _unless_late(began, "a page shows what was learned")
        sleep(0.02)


def _scores_of(caller: Caller, user: int, experiment: str, items: Sequence[int]) -> dict[int, Any]:
    scores = Caller.scores(caller.page(user, 300, experiment=experiment))
    return {item: scores[item] for item in items if item in scores}


def _item_probe(caller: Caller, item: int) -> float:
    """Return the seconds until a page has a new item, which is removed then."""
    began = monotonic()
    receipt = caller.json(
        "PUT", "/v1/items", {"items": [{"item_id": item, "duration_ms": 20_000, "upload_ms": int(1000 * time())}]}
    )
    if receipt["accepted"] != 1:
        raise BenchmarkError("/v1/items", "an item that is accepted", str(receipt))
    while item not in Caller.items(caller.page(1, 300)):
        _unless_late(began, "a new item is on a page")
        sleep(0.005)
    took = monotonic() - began
    caller.json("DELETE", "/v1/items", {"item_ids": [item]})
    return took


def _unless_late(began: float, what: str) -> None:
    if monotonic() - began > _GIVE_UP_S:
        raise BenchmarkError("a probe", f"{what} within {_GIVE_UP_S:g} s", "none")


def _limits(folder: Path, run: Run) -> dict[str, float]:
    """Return what a CPU second of log, join and trainer does, on what the server has collected."""
    from pocketrank.cloud.training.learner import Learner
    from pocketrank.cloud.training.learning_base import open_base

    with ExitStack() as stack:
        feedback = stack.enter_context(closing(SqliteFeedbackLog(run.folder / "feedback.db")))
        log = stack.enter_context(closing(SqliteEventLog(feedback.events, feedback)))
        other = stack.enter_context(closing(SqliteEventLog(folder / "other-events")))
        copy = stack.enter_context(closing(_unjoined(feedback, folder / "copy-events")))
        page = log.read("pages", {}, 1).records[0].value
        began = process_time()
        for number in range(_APPENDS):
            other.append("pages", [NewRecord(number, page)])
        appended = _APPENDS / (process_time() - began)
        join = stack.enter_context(closing(Join(copy, folder / "join", lambda item: None)))
        began = process_time()
        while join.counts.events < _JOINED and join.step():
            pass
        joined = join.counts.events / (process_time() - began)
        learner = stack.enter_context(closing(Learner(copy, open_base(run.published), folder / "learned")))
        began = process_time()
        while learner.step():
            pass
        trained = (learner.counts.samples + learner.counts.skipped) / (process_time() - began)
    return {"log": appended, "join": joined, "train": trained}


def _unjoined(feedback: SqliteFeedbackLog, path: Path) -> SqliteEventLog:
    """Return a log with the same records, appended at the same times, of which nothing has been joined."""
    with closing(sqlite3.connect(feedback.events)) as source, closing(sqlite3.connect(path)) as copy:
        source.backup(copy)
        copy.execute("DELETE FROM consumer")
        copy.execute("DELETE FROM samples")
        copy.commit()
    return SqliteEventLog(path, feedback)


@contextmanager
def _process(said: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A command of ours that runs in the block, with what it says in the file `said`."""
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "pocketrank", *arguments], stdout=file, stderr=file, env=own_environment()
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(30)


def _serve(folder: Path) -> list[str]:
    return [
        "serve", "--run", str(folder / "run"), "--port", "0", "--tokens", str(folder / "tokens"),
        "--pipeline", str(folder / "pipeline.toml"),
    ]  # fmt: skip


def _port(said: Path) -> int:
    wait_until(lambda: b"Serving on" in said.read_bytes(), _GIVE_UP_S, "the server", "a line that it serves")
    line = next(line for line in said.read_text().splitlines() if line.startswith("Serving on"))
    return int(line.rpartition(":")[2])


@contextmanager
def _load(port: int, token: str, seconds: float) -> Iterator[subprocess.Popen[str]]:
    arguments = [str(port), token, str(_EVENTS_PER_S), str(seconds), str(USERS)]
    command = [sys.executable, "-m", "benchmarks.freshness.load", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own_environment())
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def _sent(load: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = load.communicate()
    if load.returncode:
        raise BenchmarkError("the users", "exit code 0", str(load.returncode))
    found: dict[str, float] = msgspec.json.decode(out)
    return found


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _memory_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


def _quantiles(seconds: Sequence[float]) -> dict[str, float]:
    return {"p50": float(np.quantile(seconds, 0.5)), "p99": float(np.quantile(seconds, 0.99)), "max": max(seconds)}


def _show(report: dict[str, Any], console: Console) -> None:
    table = figure_table("Freshness (simulated users)", "p50", "p99", "max")
    for name in ("event_to_score_s", "event_to_history_s", "item_to_page_s"):
        table.add_row(name, *(f"{report[name][key]:.3f}" for key in ("p50", "p99", "max")))
    console.print(table)
    rates = ", ".join(f"{name} {value:,.0f}" for name, value in report["events_per_s"].items())
    print_line(console, f"events per second: {rates}")
    cpu = report["page_cpu_ms"]
    print_line(
        console,
        f"CPU of a page: {cpu['without']:.2f} ms without increments, {cpu['with']:.2f} with: {report['page_cpu_ratio']:.3f}",
    )
    print_line(console, f"memory: {report['memory_growth']:.3f} times that of the first tenth")


if __name__ == "__main__":
    sys.exit(main())
