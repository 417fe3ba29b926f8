"""What is measured: a bundle with both forms in ONNX and LiteRT, and the torch models it came from.

Without a run there is one made on the spot: the default sizes, the feature spec of the simulated world, untrained weights.
Time does not depend on the weights' values.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import msgspec
import torch
from msgspec.structs import replace

from benchmarks.arithmetic import onnx_flop, torch_flop
from benchmarks.errors import BenchmarkError
from cloud.data.samples import SampleConfig, build_samples
from cloud.models.reranker import UpperConfig, UpperHalf
from cloud.training.joint import JointConfig, device_spec
from cloud.training.run import Run, RunRecord, save_weights
from cloud.training.train import WORLD_TASKS, WORLD_WEIGHTS
from device.bundle import Bundle
from device.contract import FeatureSpec, Form, Format
from export.bundle import export_bundle
from export.graphs import Inputs
from export.parity import draw_inputs
from sdk_demo.world.config import WorldConfig
from sdk_demo.world.world import World

__all__ = ["FORMATS", "Subject", "random_run", "world_spec"]

FORMATS: tuple[Format, ...] = ("onnx", "tflite")
"""Formats that have a runtime here."""
SESSIONS_PER_USER = 0.05
"""Of the world whose log tells the feature spec: enough for every column to have values."""


def world_spec() -> FeatureSpec:
    """The feature spec of a device model that is trained on the default simulated world."""
    config = WorldConfig.load(None)
    config = replace(config, log=replace(config.log, sessions_per_user=SESSIONS_PER_USER))
    samples = build_samples(World(config).simulate_log(seed=0), SampleConfig(tasks=WORLD_TASKS))
    return device_spec(samples, JointConfig(), WORLD_WEIGHTS)


def random_run(folder: Path, spec: FeatureSpec, config: UpperConfig | None = None, seed: int = 0) -> Run:
    """Write what an export needs of a run into `folder`: both forms of the upper half, as they are before training."""
    config = config or UpperConfig()
    weights = folder / f"seed-{seed}"
    weights.mkdir(parents=True)
    for form in get_args(Form):
        torch.manual_seed(seed)
        holder = torch.nn.Module()
        holder.add_module("upper", UpperHalf(config, spec, split=form == "split"))
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


@dataclass(frozen=True)
class Subject:
    """A bundle and its torch peers."""

    folder: Path
    """The bundle's."""
    bundle: Bundle
    peers: dict[Form, UpperHalf]
    """In evaluation mode, derived weights computed once as in the exported graph."""

    @classmethod
    def of(cls, bundle: Path | None, run: Path | None, scratch: Path, progress: Callable[[str, float], None]) -> Subject:
        """What the options say: a bundle (of a run), a run to be exported into `scratch`, or neither.

        Raises `BenchmarkError` for a bundle that is not from the run, or not of the default sizes when no run is given;
        `BundleError`, `RunError`, `ExportError`.
        """
        opened = None if run is None else Run.open(run)
        if bundle is None:
            opened = opened or random_run(scratch / "run", world_spec())
            bundle = scratch / "bundle"
            export_bundle(opened, bundle, formats=FORMATS, progress=progress)
        found = Bundle.open(bundle, now_ms=0)
        if opened is not None and found.spec != opened.spec:
            raise BenchmarkError(str(bundle), f"a bundle of the run {run}", "one with another feature spec")
        peers: dict[Form, UpperHalf] = {}
        for form in get_args(Form):
            torch.manual_seed(0)
            model = UpperHalf(UpperConfig(), found.spec, split=form == "split") if opened is None else opened.upper(form)
            peers[form] = model.eval().freeze()
        subject = cls(bundle, found, peers)
        for form in peers:
            inputs = subject.inputs(form)
            ours = onnx_flop(found.model(form, "onnx"), inputs)
            theirs = torch_flop(peers[form], subject.tensors(form))
            if ours != theirs:
                expected = f"{theirs} operations, as its torch model has"
                raise BenchmarkError(f"{bundle} {form}", expected, f"{ours}: name the run it came from by --run")
        return subject

    def inputs(self, form: Form) -> Inputs:
        """Inputs with the spec's longest lists, nothing masked."""
        spec = self.bundle.spec
        return draw_inputs(spec, form, spec.candidates_max, spec.events_max, seed=0)

    def tensors(self, form: Form) -> dict[str, Any]:
        """The same for torch."""
        return {name: torch.from_numpy(value) for name, value in self.inputs(form).items()}

    def flop(self, form: Form) -> int:
        """Operations of a run's matrix products, counted in the ONNX graph."""
        return onnx_flop(self.bundle.model(form, "onnx"), self.inputs(form))
