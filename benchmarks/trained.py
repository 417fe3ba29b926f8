"""Trained runs and bundles of simulated worlds, made once and kept in a folder, for the benchmarks that play in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.errors import BenchmarkError
from pocketrank.cloud.training.run import Run
from pocketrank.cloud.training.train import TrainConfig, train
from pocketrank.export.bundle import export_bundle
from pocketrank.sdk_demo.emulator.figures import figures
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.world import World, WorldConfig

__all__ = ["PLAYED_BY", "Tell", "code", "digest", "refuse_fallbacks", "trained"]

PLAYED_BY = ("cloud", "device", "export", "sdk_demo")
"""Our code that what is played depends on."""
_TRAINED_BY = ("cloud/data", "cloud/models", "cloud/ranking", "cloud/training", "device/contract", "sdk_demo/world")
_EXPORTED_BY = ("cloud/models", "device", "export")
_FALLBACKS = (
    "pages_refused", "pages_degraded", "features_bad", "split_mismatch", "vectors_absent", "vectors_bad", "no_model",
    "model_failed", "scores_bad", "events_bad", "pages_missing", "uploads_missing",
)  # fmt: skip
"""What must not have happened: the policy would have been another one for a while."""

Tell = Callable[[str, float], None]
"""Gets a stage and the share of it that is done."""


def trained(world: WorldConfig, config: TrainConfig, seed: int, work: Path, tell: Tell) -> tuple[Run, Path]:
    """A run on a log of `world`, and its bundle. Worlds that differ outside of the log share them."""
    folder = work / f"trained-{digest((world, config, seed, code(_TRAINED_BY)))}"
    out, bundle = folder / "run", folder / f"bundle-{code(_EXPORTED_BY)}"
    if (out / "metrics.json").is_file():  # written last
        run = Run.open(out)
    else:
        log = World(world).simulate_log(seed=seed, progress=lambda share: tell(f"log, seed {seed}", share))
        run = train(log, out=out, seeds=1, seed=seed, config=config, progress=tell)
    if not bundle.is_dir():
        export_bundle(run, bundle, formats=("onnx",))
    return run, bundle


def refuse_fallbacks(where: str, records: Sequence[SessionRecord], policies: Sequence[str]) -> None:
    """Raises `BenchmarkError` where the SDK or a phone had to fall back in any of `records`."""
    counters = figures(records, policies, seed=0)["counters"]
    taken = [
        f"{policy} {name} {counters[policy][name]}" for policy in policies for name in _FALLBACKS if counters[policy][name]
    ]
    if taken:
        raise BenchmarkError(where, "sessions without a fallback", ", ".join(taken))


@cache
def code(places: tuple[str, ...]) -> str:
    """Digest of our code in these folders and files: what other code made is not taken for what this would make."""
    root, told = Path(__file__).parents[1], sha256()
    for place in places:
        for path in sorted((root / place).rglob("*.py")) or [root / place]:
            told.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return told.hexdigest()[:12]


def digest(what: tuple[Any, ...]) -> str:
    """Digest of plain values and structs."""
    return sha256(msgspec.json.encode(what, order="deterministic")).hexdigest()[:12]
