"""What is measured: bundles with both forms in ONNX and LiteRT, and the torch models they came from.

Without a run there are the presets `tiny` and `paper`, made on the spot: the feature spec of the simulated world and random
weights. A run's time does not depend on the weights' values; but no parameter is 0 or 1 as before training, because a converter
leaves out what adds nothing. How far a list search goes does depend on them: its figures say what weights they are of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import get_args

import msgspec
import numpy as np
import torch
from msgspec.structs import replace

from benchmarks.errors import BenchmarkError
from benchmarks.latency.arithmetic import onnx_flop, torch_flop
from pocketrank.cloud.data.sample_stream import build_samples
from pocketrank.cloud.data.samples import SampleConfig
from pocketrank.cloud.models.presets import PRESETS, UpperConfig
from pocketrank.cloud.models.reranker import Normalise, UpperHalf
from pocketrank.cloud.training.device_model import DeviceModelConfig, device_spec
from pocketrank.cloud.training.run import Run, RunRecord
from pocketrank.cloud.training.weights import save_weights
from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.contract import FeatureSpec, Form, Format, SearchSpec, Stage
from pocketrank.device.runtimes import STAGES
from pocketrank.export.bundle import export_bundle
from pocketrank.export.gate import GATE_FILE, GateRows
from pocketrank.export.graphs import Inputs
from pocketrank.export.parity import draw_inputs
from pocketrank.export.parity_stages import open_answers
from pocketrank.sdk_demo.world import TASK_WEIGHTS, World
from pocketrank.sdk_demo.world.config import WorldConfig

__all__ = ["FORMATS", "MEASURED", "LatencySubject", "measured_spec", "random_run", "subjects", "world_spec"]

FORMATS: tuple[Format, ...] = ("onnx", "tflite")
"""Formats that have a runtime here."""
MEASURED = ("tiny", "paper")
"""Presets that are measured where no run is named."""
PAPER_CANDIDATES = 9
"""The page of the published system (Gong et al., CIKM 2022): 6 to show and 3 to choose from."""
SESSIONS_PER_USER = 0.05
"""Sessions of each user in the world whose log the feature spec is made from: every column has values."""
SPREAD = 0.05
"""Standard deviation of what is added to weights as they are before training."""
FOLDED_MAX = 0.01
"""Share of products that may be of weights alone: torch computes them each time, an exported graph holds what they make."""

Progress = Callable[[float], None]
"""Takes the share done."""


def world_spec() -> FeatureSpec:
    """The feature spec of a device model that is trained on the default simulated world."""
    config = WorldConfig.load(None)
    config = replace(config, log=replace(config.log, sessions_per_user=SESSIONS_PER_USER))
    samples = build_samples(World(config).simulate_log(seed=0), SampleConfig(tasks=tuple(TASK_WEIGHTS)))
    return device_spec(samples, DeviceModelConfig(), TASK_WEIGHTS)


def measured_spec(spec: FeatureSpec, preset: str) -> FeatureSpec:
    """`spec` as a preset is measured: with a list search, the published one if there is none; `paper` with its own page."""
    spec = replace(spec, search=spec.search or SearchSpec())
    return replace(spec, candidates_max=PAPER_CANDIDATES, list_sizes=(PAPER_CANDIDATES,)) if preset == "paper" else spec


def random_run(folder: Path, spec: FeatureSpec, config: UpperConfig) -> Run:
    """Write what an export needs of a run into `folder`: both forms of the upper half with random weights."""
    seed = 0
    weights = folder / f"seed-{seed}"
    weights.mkdir(parents=True)
    for form in get_args(Form):
        torch.manual_seed(seed)
        model = UpperHalf(config, spec, split=form == "split")
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * SPREAD)
            for part in model.modules():
                if isinstance(part, Normalise):
                    part.shift.normal_()
                    part.scale.uniform_(0.5, 1)
        holder = torch.nn.Module()
        holder.add_module("upper", model)
        save_weights(holder, weights / f"{form}.safetensors")
    record = RunRecord(
        data="none: random weights",
        data_digest="",
        simulated=True,
        test_from="",
        seeds=(seed,),
        split_version="random",
        spec=spec,
        upper=config,
        config={},
        versions={},
    )
    (folder / "run.json").write_bytes(msgspec.json.encode(record))
    return Run.open(folder)


def subjects(bundle: Path | None, runs: Sequence[Path], scratch: Path, progress: Progress) -> list[LatencySubject]:
    """What the options say: the runs, exported into `scratch` (or the one run whose bundle is given), else the presets.

    Raises `BenchmarkError` for a bundle that is not from the run, or not of the default sizes when no run is given;
    `BundleError`, `RunError`, `ExportError`.
    """
    if bundle is not None:
        if len(runs) > 1:
            raise BenchmarkError("--bundle", "at most one --run beside it", str(len(runs)))
        return [LatencySubject.of(Run.open(runs[0]) if runs else None, bundle)]
    if runs:
        opened = [_restated(Run.open(run), scratch / f"run-{i}") for i, run in enumerate(runs)]
    else:
        spec = world_spec()
        opened = [random_run(scratch / name, measured_spec(spec, name), PRESETS[name]) for name in MEASURED]
    found = []
    for i, run in enumerate(opened):
        made = scratch / f"bundle-{i}"

        def update(what: str, share: float, i: int = i) -> None:
            progress((i + share) / len(opened))

        export_bundle(run, made, formats=FORMATS, progress=update)
        found.append(LatencySubject.of(run, made))
    return found


def _restated(run: Run, folder: Path) -> Run:
    """The same weights with the spec that is measured."""
    folder.mkdir(parents=True)
    for part in (run.seed_folder(), run.published):
        if part.exists():
            (folder / part.name).symlink_to(part.resolve())
    spec = measured_spec(run.spec, _preset(run.record.upper))
    (folder / "run.json").write_bytes(msgspec.json.encode(replace(run.record, spec=spec)))
    return Run.open(folder)


def _preset(config: UpperConfig) -> str:
    return next((name for name, preset in PRESETS.items() if preset == config), "custom")


@dataclass(frozen=True)
class LatencySubject:
    """A bundle and its peers."""

    name: str
    """The preset whose sizes it has, or `custom`."""
    weights: str
    """Origin of the weights."""
    bundle: Bundle
    run: Run | None
    """Where the weights came from, if that is known."""
    peers: dict[Form, UpperHalf]
    """In torch, in evaluation mode."""

    @classmethod
    def of(cls, run: Run | None, bundle: Path) -> LatencySubject:
        """The bundle of a run. Raises `BenchmarkError` for one that is of another; see `subjects`."""
        found = Bundle.open(bundle, now_ms=0)
        if run is not None and found.spec != run.spec:
            raise BenchmarkError(str(bundle), f"a bundle of the run {run.folder}", "one with another feature spec")
        config = UpperConfig() if run is None else run.record.upper
        weights = "of the bundle" if run is None else run.record.data
        subject = cls(_preset(config), weights, found, run, {})
        for form in get_args(Form):
            torch.manual_seed(0)
            model = UpperHalf(config, found.spec, split=form == "split") if run is None else run.upper(form)
            subject.peers[form] = model.eval().requires_grad_(False)
            for format in FORMATS:
                if not {"whole", *STAGES} <= set(stages := found.stages(form, format)):
                    expected = f"the whole model and its stages {', '.join(STAGES)}"
                    raise BenchmarkError(f"{bundle} {form} {format}", expected, ", ".join(stages) or "none")
            ours, theirs = subject.flop(form), torch_flop(model, subject.tensors(form))
            if not ours <= theirs <= ours * (1 + FOLDED_MAX):
                expected = f"{theirs} operations, as its torch model has"
                raise BenchmarkError(f"{bundle} {form}", expected, f"{ours}: name the run it came from by --run")
        return subject

    @property
    def searches(self) -> bool:
        """Whether the bundle has a list search."""
        return all({"choose", "search"} <= set(self.bundle.stages(form, format)) for form in self.peers for format in FORMATS)

    def inputs(self, form: Form) -> Inputs:
        """Inputs of the whole model with the spec's longest lists, nothing masked."""
        spec = self.bundle.spec
        return draw_inputs(spec, form, spec.candidates_max, spec.events_max, seed=0)

    def tensors(self, form: Form) -> dict[str, torch.Tensor]:
        """The same for torch."""
        return {name: torch.from_numpy(value) for name, value in self.inputs(form).items()}

    def stage_inputs(self, form: Form) -> dict[Stage, Inputs]:
        """Inputs of the whole model and of its stages in a swipe: a page, the one event that is new, all that is watched."""
        inputs = self.inputs(form)
        one = {name: np.ascontiguousarray(value[:, :1]) for name, value in inputs.items() if name.startswith("event")}
        graphs = self.bundle.stages(form, "onnx")
        answers = open_answers({stage: graphs[stage] for stage in STAGES}, "onnx")
        watched = {**inputs, **answers["page"](inputs), **answers["event"](inputs)}
        return {"whole": inputs, "page": inputs, "event": one, "watch": watched}

    def lists(self, form: Form, count: int) -> tuple[str, list[Inputs]]:
        """Which lists there are, those of the run's test rows or random ones, and inputs of up to `count` of full length."""
        spec = self.bundle.spec
        if self.run is not None and (self.run.published / GATE_FILE).is_file():
            found: list[Inputs] = list(islice(GateRows.read(self.run).lists(spec.candidates_max), count))
            if found:
                return "test rows", found
        n, t = spec.candidates_max, spec.events_max
        return "random", [draw_inputs(spec, form, n, t, seed) for seed in range(count)]

    def flop(self, form: Form, *stages: Stage) -> int:
        """Operations of the matrix products of a run, of the whole model or of some `stages`, counted in the ONNX graphs."""
        inputs, graphs = self.stage_inputs(form), self.bundle.stages(form, "onnx")
        return sum(onnx_flop(graphs[stage], inputs[stage]) for stage in stages or ("whole",))

    def bytes(self, form: Form, format: Format) -> dict[str, int]:
        """Of the whole model's file, of those of its stages, and of all files, which may be the same."""
        paths = self.bundle.stages(form, format)

        def weigh(*stages: Stage) -> int:
            return sum(path.stat().st_size for path in {paths[stage] for stage in stages})

        return {"whole": weigh("whole"), "stages": weigh(*(s for s in paths if s != "whole")), "all": weigh(*paths)}
