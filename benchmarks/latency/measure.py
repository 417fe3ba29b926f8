"""The measurement of `benchmarks.latency`: everything in turn, round after round, so that all meet the machine's same moods."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.latency.executorch_peer import convert_executorch, open_executorch
from benchmarks.latency.fresh import measure_import, measure_memory
from benchmarks.latency.matmul import SIZES, MatmulRate
from benchmarks.latency.searches import BeamBench, SearchBench
from benchmarks.latency.subject import FORMATS, LatencySubject
from benchmarks.latency.swipe import Kind, SwipeBench
from benchmarks.latency.timed import Timed, milliseconds
from pocketrank.device.contract import Form, Format
from pocketrank.device.runtimes import STAGES, open_stages
from pocketrank.export.parity import fit_inputs

__all__ = ["HEADLINE", "Repetitions", "measure"]

HEADLINE: Form = "split"
"""The form whose figures stand at the top of the report."""
RUNTIMES = {"onnx": "onnxruntime", "tflite": "ai-edge-litert", "executorch": "executorch", "torch": "torch"}
"""Runtimes of the whole model, and their packages."""


@dataclass(frozen=True)
class Repetitions:
    """Number of repetitions."""

    rounds: int = 60
    """Rounds, in each of which everything is timed."""
    runs: int = 25
    """Runs, swipes and searches of each kind in a round; a hundredth of all is what p99 rests on."""
    warm_up: int = 3
    """Rounds before them that do not count."""
    sizes: tuple[int, ...] = SIZES
    """Sizes of the matrices."""
    lists: int = 24
    """Number of different lists that are searched."""
    memory_swipes: int = 200
    """Swipes in the process whose memory is measured."""
    imports: int = 15
    """Fresh processes of each kind whose imports are timed."""


def measure(
    subject: LatencySubject, repetitions: Repetitions, progress: Callable[[float], None], scratch: Path
) -> dict[str, Any]:
    """Measure one preset with files in the folder `scratch`, and return its report. `progress` takes the share done.

    Raises `BenchmarkError`, and what opening a bundle's models raises.
    """
    torch.set_num_threads(1)
    rate = MatmulRate(repetitions.sizes)
    benches = {form: _Form(subject, form, repetitions.lists, scratch) for form in subject.peers}
    turns = [turn for bench in benches.values() for turn in bench.turns()]
    total = repetitions.warm_up + repetitions.rounds
    for number in range(total):
        if number == repetitions.warm_up:
            for turn in turns:
                turn.forget()
            rate = MatmulRate(repetitions.sizes)
        for turn in turns:
            for _ in range(repetitions.runs):
                turn.step()
        rate.step()
        progress((number + 1) / total)
    forms = {form: bench.figures(rate.best()) for form, bench in benches.items()}
    spec = subject.bundle.spec
    return {
        **forms[HEADLINE],
        "form": HEADLINE,
        "forms": forms,
        "weights": subject.weights,
        "candidates": spec.candidates_max,
        "events": spec.events_max,
        "matmul_gflop_s": {"best": rate.best(), **rate.gflop_s()},
        "memory": measure_memory(subject.bundle.folder, FORMATS, repetitions.memory_swipes),
        "imports": measure_import(repetitions.imports),
        "repetitions": repetitions.rounds * repetitions.runs,
        "machine": {
            "processor": platform.machine(),
            "threads": 1,
            **{package: _version(package) for package in ("numpy", *RUNTIMES.values())},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


class _Form:
    """Everything that is timed for one form."""

    def __init__(self, subject: LatencySubject, form: Form, lists: int, scratch: Path) -> None:
        self._subject, self._form = subject, form
        inputs = subject.stage_inputs(form)
        self._stages: dict[str, dict[str, Timed]] = {}
        for format in FORMATS:
            graphs = subject.bundle.stages(form, format)
            opened = open_stages({s: graphs[s] for s in ("whole", *STAGES)}, format)
            self._stages[format] = {s: Timed(partial(r.run_all, fit_inputs(r, inputs[s]))) for s, r in opened.items()}
        model, tensors = subject.peers[form], subject.tensors(form)
        self._peers = {"torch": Timed(partial(_eager, model, tensors))}
        if (program := convert_executorch(model, tensors)) is not None:
            self._peers["executorch"] = Timed(open_executorch(program, model, tensors))
        kinds: tuple[Kind, ...] = ("stages", "whole", "search") if subject.searches else ("stages", "whole")
        self._swipes = {kind: {f: SwipeBench(subject.bundle, form, f, kind) for f in FORMATS} for kind in kinds}
        equipped = partial(SwipeBench, subject.bundle, form, equipped=True)
        self._equipped = {kind: {f: equipped(f, kind) for f in FORMATS} for kind in kinds}
        self._durable = {
            kind: {f: equipped(f, kind, store=scratch / f"{form}-{kind}-{f}.db") for f in FORMATS} for kind in kinds
        }
        self._searches: dict[str, dict[bool, SearchBench]] = {}
        self._beams: dict[str, BeamBench] = {}
        self._lists = ""
        if subject.searches:
            self._lists, found = subject.lists(form, lists)
            self._searches = {f: {h: SearchBench(subject, form, f, found, host=h) for h in (False, True)} for f in FORMATS}
            self._beams = {f: BeamBench(subject, form, f, found) for f in FORMATS}

    def turns(self) -> list[Timed | SwipeBench | BeamBench]:
        turns: list[Timed | SwipeBench | BeamBench] = [*self._peers.values(), *self._beams.values()]
        for nested in (self._stages, self._swipes, self._equipped, self._durable, self._searches):
            turns += [turn for by_name in nested.values() for turn in by_name.values()]
        return turns

    def figures(self, rate: float) -> dict[str, Any]:
        """Return the form's figures, with limits from products at `rate` operations a nanosecond."""
        subject, form = self._subject, self._form
        flop = {"flop": subject.flop(form), "flop_swipe": subject.flop(form, "event", "watch")}
        limit_ms, swipe_limit_ms = (count / rate / 1e6 for count in flop.values())
        timed = {format: stages["whole"] for format, stages in self._stages.items()} | self._peers
        rerank: dict[str, Any] = dict.fromkeys(RUNTIMES)
        for name, runs in timed.items():
            rerank[name] = milliseconds(runs.ns) | {"ratio_to_limit": runs.ms / limit_ms}
        swipes = {kind: {f: bench.figures() for f, bench in by.items()} for kind, by in self._swipes.items()}
        fastest = min(FORMATS, key=lambda format: swipes["stages"][format]["p50_ms"])
        return {
            "rerank": rerank,
            "torch_eager": rerank["torch"],
            "incremental": {format: self._incremental(format, swipe_limit_ms) for format in FORMATS},
            "swipe": swipes["stages"],
            "swipe_whole": swipes["whole"],
            "swipe_search": swipes.get("search"),
            "swipe_equipped": self._with(self._equipped),
            "swipe_durable": self._with(self._durable),
            "search": {format: self._search(format) for format in self._searches} or None,
            "beam": self._beam(fastest),
            "bytes": {format: subject.bytes(form, format) for format in FORMATS},
            **flop,
            "limit_ms": limit_ms,
            "fastest": fastest,
            "ratio_to_limit": rerank[fastest]["ratio_to_limit"],
            "sdk_overhead_share": swipes["stages"][fastest]["sdk_overhead_share"],
        }

    def _with(self, more: dict[Kind, dict[Format, SwipeBench]]) -> dict[str, Any]:
        """What a swipe takes more than a plain one, and more than the model's runs alone, as shares of those runs."""
        found: dict[str, Any] = {kind: {format: bench.figures() for format, bench in by.items()} for kind, by in more.items()}
        for kind, by in self._swipes.items():
            for format, plain in by.items():
                own = found[kind][format]
                run, outside = own["run_p50_ms"], own["outside_p50_ms"]
                added = outside - plain.figures()["outside_p50_ms"]
                own |= {"added_ms": added, "added_share": added / run, "over_run_share": outside / run}
        return found

    def _incremental(self, format: str, limit_ms: float) -> dict[str, float]:
        ms = {stage: runs.ms for stage, runs in self._stages[format].items()}
        swipe = ms["event"] + ms["watch"]
        return {
            **{f"{stage}_ms": ms[stage] for stage in STAGES},
            "swipe_ms": swipe,
            "full_ms": ms["whole"],
            "speedup": ms["whole"] / swipe,
            "limit_ms": limit_ms,
            "ratio_to_limit": swipe / limit_ms,
        }

    def _search(self, format: str) -> dict[str, float]:
        graph, host = (self._searches[format][h] for h in (False, True))
        return {"host_ms": host.ms, "in_graph_ms": graph.ms, "ratio": host.ms / graph.ms, "steps": graph.steps()}

    def _beam(self, format: str) -> dict[str, Any] | None:
        if (bench := self._beams.get(format)) is None:
            return None
        return {
            **bench.figures(),
            "beam": bench.search.beam,
            "weights": self._subject.weights,
            "lists": self._lists,
            "runtime": format,
        }


@torch.inference_mode()
def _eager(model: torch.nn.Module, tensors: dict[str, torch.Tensor]) -> object:
    return model(**tensors)
