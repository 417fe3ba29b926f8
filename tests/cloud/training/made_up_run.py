"""What evaluation reads of a run, made up: users of ten rows, lists of five."""

from pathlib import Path

import msgspec
import numpy as np

from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.training.evaluate import MODELS
from pocketrank.cloud.training.run import Run, RunRecord
from pocketrank.device.contract import FeatureSpec

TASKS = ("effective_view", "like")
SPEC = FeatureSpec(
    tasks=TASKS,
    task_weights={"effective_view": 1.0},
    candidates_max=1,
    events_max=1,
    vector_width=1,
    list_sizes=(1,),
    candidate_floats=(),
    candidate_categories=(),
    feedback_floats=(),
    context_floats=(),
)


def made_up_run(folder: Path, *, seeds: tuple[int, ...], noise: float, rows: int = 600, **record: object) -> Run:
    """A run whose predictions of each seed and model are the true rates with `noise`; the same test rows for each call."""
    rng = np.random.default_rng(5)
    users, lists = np.arange(rows) // 10, np.arange(rows) // 5
    logit = rng.normal(size=(rows, len(TASKS))) + rng.normal(size=rows)[users][:, None] - [0, 1]
    labels = (rng.random(logit.shape) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    labels[::7, 0] = np.nan
    fields = {
        "data": "made up",
        "data_digest": "0" * 64,
        "simulated": True,
        "test_from": "2022-05-04",
        "split_version": f"{seeds[0]:016}",
        "spec": SPEC,
        "upper": UpperConfig(),
        "config": {},
        "versions": {},
    }
    run = Run(folder, RunRecord(seeds=seeds, **(fields | record)))  # type: ignore[arg-type]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_bytes(msgspec.json.encode(run.record))
    for seed in seeds:
        run.seed_folder(seed).mkdir()
        rng = np.random.default_rng(seed)
        arrays = {"labels": labels, "users": users, "lists": lists}
        arrays |= {"days": 19_000 + np.arange(rows) // (rows // 3), "history": np.arange(rows) % 10 * 8}
        for model in MODELS:
            arrays[model] = (1 / (1 + np.exp(-logit - noise * rng.normal(size=logit.shape)))).astype(np.float32)
        for name, array in arrays.items():
            np.save(run.seed_folder(seed) / f"{name}.npy", array)
    return run
