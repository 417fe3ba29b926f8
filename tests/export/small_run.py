"""A finished run with random weights: all that an export reads, in no time."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
from msgspec.structs import replace

from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.models.reranker import UpperHalf
from pocketrank.cloud.training.run import Run, RunRecord
from pocketrank.cloud.training.weights import save_weights
from pocketrank.device.contract import CategoryFeature, FeatureSpec, FloatFeature, SearchSpec
from pocketrank.export.gate import GATE_FILE
from pocketrank.export.parity import draw_inputs

TASKS = ("effective_view", "like")

SPEC = FeatureSpec(
    tasks=TASKS,
    task_weights={"effective_view": 1.0, "like": 2.0},
    candidates_max=12,
    events_max=10,
    vector_width=8,
    list_sizes=(5, 12),
    candidate_floats=(
        *[FloatFeature(name=f"pxtr_{task}", min=0, max=1, default=0.5) for task in TASKS],
        FloatFeature(name="duration_ms", scale=1e-3, min=0, max=1800, default=15),
    ),
    candidate_categories=(CategoryFeature(name="category", size=11),),
    feedback_floats=(
        FloatFeature(name="watch_ms", scale=1e-3, min=0, max=1800),
        FloatFeature(name="like", min=0, max=1),
        FloatFeature(name="volume_change", min=-1, max=1),
        FloatFeature(name="buffering_ms", scale=1e-3, min=0, max=60),
    ),
    context_floats=(FloatFeature(name="position", min=0, max=1000), FloatFeature(name="hour", min=0, max=24, default=12)),
)
CONFIG = UpperConfig(width=16, heads=2, head_width=8, expert_width=16, towers=(16,))

LIST_SPEC = replace(SPEC, survival_task="effective_view", search=SearchSpec(beam=3, list_size=2, steps_max=4, stability=0.97))
"""The same model with a list search."""
WHOLE_SPEC = replace(
    LIST_SPEC,
    candidate_categories=(
        *SPEC.candidate_categories,
        *(CategoryFeature(name=f"genres[{place}]", size=7) for place in range(3)),
    ),
)
"""With a list search and a category of several values."""
FULL = UpperConfig(
    width=16, category_width=4, bins=3, cross_width=4, heads=2, head_width=8, experts=3, expert_width=8, towers=(12, 8)
)
"""Every part that a model can have."""


def random_upper(*, split: bool, seed: int = 0, spec: FeatureSpec = SPEC, config: UpperConfig = CONFIG) -> UpperHalf:
    """An upper half with random values in every parameter, none of them zero, fitted to inputs as tests draw them."""
    torch.manual_seed(seed)
    model = UpperHalf(config, spec, split=split)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
        model.residual.copy_(torch.rand_like(model.residual) + 0.5)
        drawn = draw_inputs(spec, "split", 200, 200, seed)
        model.item_floats.fit(torch.from_numpy(drawn["candidate_float"][0]))
        model.feedback_floats.fit(torch.from_numpy(drawn["event_feedback"][0]))
        model.context_floats.fit(
            torch.from_numpy(np.concatenate([draw_inputs(spec, "split", 1, 1, i)["context"] for i in range(50)]))
        )
    return model.eval()


def small_run(folder: Path, spec: FeatureSpec = SPEC, config: UpperConfig = CONFIG) -> Run:
    """Write a run into `folder` and open it."""
    seed_folder = folder / "seed-3"
    seed_folder.mkdir(parents=True)
    (folder / "published").mkdir()
    for form in ("split", "self_contained"):
        holder = torch.nn.Module()
        holder.add_module("upper", random_upper(split=form == "split", spec=spec, config=config))
        save_weights(holder, seed_folder / f"{form}.safetensors")
    record = RunRecord(
        data="random",
        data_digest="0" * 64,
        simulated=True,
        test_from="2022-05-04",
        seeds=(3,),
        split_version="5" * 16,
        spec=spec,
        upper=config,
        config={},
        versions={"torch": str(torch.__version__)},
    )
    (folder / "run.json").write_bytes(msgspec.json.encode(record))
    return Run.open(folder)


def write_gate(run: Run, rows: int = 200, seed: int = 0) -> None:
    """Test rows whose labels follow the split model's scores; a tenth of the labels is unknown."""
    spec, rng = run.spec, np.random.default_rng(seed)
    drawn = [draw_inputs(spec, "split", 3, spec.events_max, seed + i) for i in range(rows)]
    inputs = {name: np.concatenate([d[name] for d in drawn]) for name in drawn[0]}
    with torch.no_grad():
        scores = run.upper("split")(**{k: torch.from_numpy(v) for k, v in inputs.items()})[:, 0].numpy()
    noisy = scores + rng.normal(size=scores.shape) * scores.std(0)
    labels = (noisy > np.median(noisy, 0)).astype(np.float32)
    labels[rng.random(scores.shape) < 0.1] = np.nan
    np.savez(run.published / GATE_FILE, labels=labels, **inputs)
