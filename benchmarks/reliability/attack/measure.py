"""One case of attack, measured: a server, honest devices and probes of its life, before, during and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import sleep
from typing import Any

import msgspec
import numpy as np

from benchmarks.errors import BenchmarkError
from benchmarks.processes import OrderedProcess
from benchmarks.reliability.attack.prober import ProbeOrder, Probes
from benchmarks.reliability.attack.scene import NO_TOKEN, Case, Scene
from benchmarks.reliability.attack.served import Served
from benchmarks.reliability.attack.world import World
from benchmarks.reliability.cloud_overload import recovery
from benchmarks.reliability.open_loop import OpenLoad, OpenPhase, OpenResult
from benchmarks.serving.host import Cores, core_busy_s, on_core

__all__ = ["Aims", "AttackConfig", "ZERO", "measure_case", "missed"]

_MB = 1e6
_SLACK_S = 60.0
"""How much longer than planned an attack may last before the load ends."""
ZERO = (
    "spoofed_accepted",
    "vectors_leaked",
    "unsigned_accepted",
    "last_serials_accepted",
    "operator_locked_out",
    "events_lost",
)
"""Figures of single attacks that must be 0."""


@dataclass(frozen=True)
class Aims:
    """Bounds that a server under attack must keep."""

    memory_mb: float = 64.0
    """Largest growth of the memory of all the server's processes: at the end, and at any moment."""
    p99_ratio: float = 5.0
    """Largest p99 of honest pages, by that before the attack. A request without a page counts as one that takes for ever."""
    livez_ms: float = 100.0
    """Longest time of a probe."""
    back_s: float = 2.0
    """Longest time from the end of the attack to whole pages in time."""
    open_s: float = 21.5
    """Longest time that a connection is open whose request does not end: 10 s for the body, 10 s to read the answer that it did
    not arrive, and some time to see it."""
    log_lines: int = 100
    """Largest number of lines that the server logs about somebody without a token."""
    noticed_s: float = 10.0
    """Longest time until a log that was moved is noticed."""


@dataclass(frozen=True)
class AttackConfig:
    """The load of honest devices, and when it is measured."""

    rps: float = 40.0
    """Page requests of honest devices a second."""
    warm_s: float = 1.0
    """Seconds before anything counts."""
    quiet_s: float = 4.0
    """Seconds without an attack, before it."""
    calm_s: float = 3.5
    """Seconds without an attack, after it."""
    back_window_s: float = 1.0
    """Seconds in which all pages must be whole and in time for the service to be back."""
    memory_every_s: float = 0.2
    """Time between two samples of memory."""
    items: int = 20_000
    """Items in the catalogue."""
    users: int = 2_000
    aims: Aims = Aims()


class _Memory:
    """Samples of a server's memory, taken in a thread."""

    def __init__(self, server: Served, scene: Scene, every_s: float) -> None:
        self._server, self._scene, self._every_s = server, scene, every_s
        self.samples: list[tuple[float, float]] = []
        self._stopping = Event()
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.wait(self._every_s):
            if (size := self._server.memory_bytes()) > 0:
                self.samples.append((self._scene.now(), size / _MB))

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()

    def between(self, since: float, until: float) -> list[float]:
        """Return the samples in megabytes."""
        return [size for at, size in self.samples if since <= at < until]


def measure_case(
    case: Case, world: World, work: Path, seed: int, config: AttackConfig, progress: Callable[[float], None]
) -> dict[str, Any]:
    """Carry out one case and return its figures. Raises `BenchmarkError`."""
    where, stop = Cores(), work / "stop"
    with on_core(where.load), case.around(world, work) as setting:
        log, named = work / "server.log", f"{__package__}.{{}}".format
        options = ("--run", str(setting.run or world.run.folder), "--feedback-db", str(work / "feedback.db"), *world.options)
        options += (*setting.options, *(("--app-tokens",) if setting.app_tokens else ()))
        core = str(where.load)
        with (
            OrderedProcess(named("attacker"), core, log=work / "attacker.log") as attacker,
            OrderedProcess(named("prober"), core) as prober,
            OpenLoad(work, where.load) as load,
            Served(options, log, where.server, setting.before) as server,
        ):
            start_s = server.start()
            attacker.read_line()  # it is ready
            prober.send(ProbeOrder(port=server.port, stop=str(stop)))
            prober.read_line()  # it has begun
            total = config.warm_s + config.quiet_s + case.seconds + config.calm_s
            phases = (OpenPhase(config.rps, total + _SLACK_S),)
            load.begin(server.port, world.requests, phases, tokens=world.tokens, stop=str(stop), patience_s=5.0, seed=seed)
            scene = Scene(world, work, server, attacker, case.seconds, case.size)
            memory = _Memory(server, scene, config.memory_every_s)
            try:
                sleep(config.warm_s + config.quiet_s)
                progress((config.warm_s + config.quiet_s) / total)
                busy, own = core_busy_s(where.server), server.cpu_s()
                lines, attacked_at = server.log_text().count("\n"), scene.now()
                done = setting.attack(scene)
                ended_at = scene.now()
                others = core_busy_s(where.server) - busy - max(0.0, server.cpu_s() - own)
                progress(1 - config.calm_s / total)
                sleep(config.calm_s)
            finally:
                calm_at = scene.now()
                memory.stop()
                stop.touch()
            result = load.wait()
            probes = msgspec.json.decode(prober.read_line(), type=Probes)
            logged = server.log_text().count("\n") - lines
            done |= {
                "others_busy": others / (ended_at - attacked_at),
                "log_lines": logged,
                "start_s": start_s,
                "exit_code": server.end(),
                **setting.after(scene),
            }
    since = done.pop("since", None)
    spans = _Spans(
        began=scene.began,
        quiet=config.warm_s,
        attack=attacked_at,
        counts=attacked_at if since is None else since,
        until=ended_at if since is None else calm_at,
        back=ended_at if since is None else since,
        calm=calm_at,
    )
    figures = _figures(result, probes, memory, spans, config) | done
    misses = missed(figures, config.aims, has_token=case.holds != NO_TOKEN)
    return figures | {"held": not misses, "missed": misses}


@dataclass(frozen=True)
class _Spans:
    """Seconds since the load began."""

    began: float
    """When it began, by `monotonic`, which on Linux is the clock of `perf_counter`."""
    quiet: float
    attack: float
    counts: float
    """From here on pages and probes count."""
    until: float
    """Until here the pages count of which p50 and p99 are."""
    back: float
    """From here on the service should be back."""
    calm: float
    """End of all."""


def _figures(result: OpenResult, probes: Probes, memory: _Memory, at: _Spans, config: AttackConfig) -> dict[str, Any]:
    quiet = result.between(at.quiet, at.attack)
    under = result.between(at.counts, at.until)
    after = result.between(at.counts, at.calm)
    p50, p99 = _percentiles(result, under)
    calm = result.pages(quiet)
    if not calm["pages"]:
        raise BenchmarkError("the honest devices", "pages before the attack", f"{result.answers(quiet)}; {result.first_error}")
    quiet_p50, quiet_p99 = calm["p50_ms"], calm["p99_ms"]
    before = memory.between((at.quiet + at.attack) / 2, at.attack)
    during = memory.between(at.attack, at.calm)
    base = float(np.median(before))
    livez, livez_failed = probes.window(at.began + at.counts, at.began + at.calm)
    statuses, quiet_statuses = ({k: n for k, n in result.answers(span).items() if k != "200"} for span in (after, quiet))
    back = recovery(result, at.back, config.aims.p99_ratio * quiet_p99, config.back_window_s)
    return {
        "memory_growth_mb": during[-1] - base,
        "memory_peak_mb": max(during) - base,
        "memory_before_mb": base,
        "quiet_p50_ms": quiet_p50,
        "quiet_p99_ms": quiet_p99,
        "page_p50_ms": p50,
        "page_p99_ms": p99,
        "p99_ratio": None if p99 is None else p99 / quiet_p99,
        "pages": int((result.status[under] == 200).sum()),
        "server_errors": sum(n for name, n in statuses.items() if name.startswith("5") or name in ("dropped", "malformed")),
        "pages_without": statuses,
        "quiet_without": quiet_statuses,
        "degraded": result.pages(under).get("degraded_share", {}),
        "livez_max_ms": livez,
        "livez_failed": livez_failed,
        "livez_quiet_max_ms": probes.window(at.began + at.quiet, at.began + at.attack)[0],
        "back_s": back,
        "attack_s": at.back - at.attack,
        "load_busy": result.busy,
        "late_p99_ms": result.late_p99_ms,
    }


def _percentiles(result: OpenResult, among: Any) -> tuple[float | None, float | None]:
    """Return p50 and p99 of the requests `among`; None where that is a request without a page."""
    ms = np.sort(np.where(result.status[among] == 200, result.ms[among], np.inf).astype(np.float64))
    if not len(ms):
        return None, None
    found = [float(ms[min(len(ms) - 1, int(np.ceil(share * len(ms))) - 1)]) for share in (0.5, 0.99)]
    p50, p99 = (one if np.isfinite(one) else None for one in found)
    return p50, p99


def missed(figures: Mapping[str, Any], aims: Aims, *, has_token: bool = True) -> list[str]:
    """Return the names of the figures that miss their aims."""
    found = [name for name in ("memory_growth_mb", "memory_peak_mb") if figures[name] > aims.memory_mb]
    for name, limit in (("p99_ratio", aims.p99_ratio), ("back_s", aims.back_s)):
        if figures[name] is None or figures[name] > limit:
            found.append(name)
    found += [name for name in ("server_errors", "livez_failed", *ZERO) if figures.get(name, 0) > 0]
    if figures["livez_max_ms"] > aims.livez_ms:
        found.append("livez_max_ms")
    if not has_token and figures.get("log_lines", 0) > aims.log_lines:
        found.append("log_lines")
    for name, limit in (("open_unfinished_s", aims.open_s), ("noticed_s", aims.noticed_s)):
        if name in figures and (figures[name] is None or figures[name] > limit):
            found.append(name)
    return found
