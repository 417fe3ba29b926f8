"""Worlds that are played: trained runs and bundles of simulated worlds, and the sessions of phones in them.

Both are made once and kept in a folder, so that an interrupted benchmark goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from benchmarks.errors import BenchmarkError
from benchmarks.processes import ROOT
from pocketrank.cloud.files import write_atomically
from pocketrank.cloud.training.run import Run
from pocketrank.cloud.training.train import TrainConfig, train
from pocketrank.export.bundle import export_bundle
from pocketrank.sdk_demo.emulator import play
from pocketrank.sdk_demo.emulator.figures import figures
from pocketrank.sdk_demo.emulator.policies import Policy
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.server import running_server
from pocketrank.sdk_demo.world import VARIANTS, World, WorldConfig

__all__ = ["PLAYED_BY", "PlayedWorld", "Progress", "code", "digest", "trained"]

PLAYED_BY = ("cloud", "device", "export", "pages", "sdk_demo")
"""Our code that what is played depends on."""
CLIENTS = 8
"""Phones at the same time; two cores are busy from four on."""
_TRAINED_BY = ("cloud/data", "cloud/models", "cloud/ranking", "cloud/training", "device/contract", "sdk_demo/world")
_EXPORTED_BY = ("cloud/models", "device", "export")
_FALLBACKS = (
    "pages_refused", "pages_degraded", "features_bad", "split_mismatch", "vectors_absent", "vectors_bad", "no_model",
    "model_failed", "scores_bad", "events_bad", "pages_missing", "uploads_missing",
)  # fmt: skip
"""What must not have happened: the policy would have been another one for a while."""

Progress = Callable[[str, float], None]
"""Takes a stage and the share of it that is done."""


class PlayedWorld:
    """A variant of a world: phones play it with trained models, and their sessions are kept in the folder `work`."""

    def __init__(self, name: str, base: WorldConfig | None, train: TrainConfig, work: Path, progress: Progress) -> None:
        """`name` is one of `VARIANTS`; `base`, the world that it is a change of, is the default one where it is None."""
        self.name, self.config, self.delay_s = name, VARIANTS[name](base or WorldConfig.load()), VARIANTS[name].feedback_delay_s
        self._train, self._work = train, work
        self._progress: Progress = lambda stage, share: progress(f"{name}: {stage}", share)

    def play(
        self,
        stage: str,
        policies: Mapping[str, str | Callable[..., Policy]],
        *,
        training: int,
        sessions: int,
        seed: int,
        price: float = 1.0,
    ) -> list[SessionRecord]:
        """Play `sessions` of each of `policies`, by name, with the models of the seed `training`.

        The server says that a page costs `price`. Raises `BenchmarkError` where the SDK or a phone had to fall back.
        """
        run, bundle = trained(self.config, self._train, training, self._work, self._progress)
        with TemporaryDirectory(prefix="pocketrank-") as scratch:
            database, log = Path(scratch) / "feedback.db", Path(scratch) / "server.log"
            with running_server(run.folder, bundle, feedback_db=database, said=log, price=price) as url:
                records = play(
                    url,
                    clients=CLIENTS,
                    sessions=sessions,
                    seed=seed,
                    world=self.config,
                    policies=list(policies.values()),
                    bundle=bundle,
                    feedback_delay_s=self.delay_s,
                    progress=lambda share: self._progress(stage, share),
                ).records
        _refuse_fallbacks(f"{self.name}, {stage}", records, list(policies))
        return [replace(record, training=training) for record in records]

    def kept(self, depends: tuple[Any, ...], make: Callable[[], list[SessionRecord]]) -> list[SessionRecord]:
        """Return the kept sessions of this world, our code and `depends`; where there are none, `make` and keep them.

        Times are left out: there are many, and they are of no use here. Raises `BenchmarkError` for a file that is broken.
        """
        file = self._work / f"played-{digest((self.config, self.delay_s, self._train, depends, code(PLAYED_BY)))}.json"
        if not file.is_file():
            write_atomically(file, msgspec.json.encode([replace(record, rerank_ms=[], page_ms=[]) for record in make()]))
        try:
            return msgspec.json.decode(file.read_bytes(), type=list[SessionRecord])
        except msgspec.MsgspecError as error:
            raise BenchmarkError(str(file), "the sessions that were kept there", str(error)) from error


def trained(world: WorldConfig, config: TrainConfig, seed: int, work: Path, progress: Progress) -> tuple[Run, Path]:
    """Return a run on a log of `world` and its bundle, trained where `work` has none. Worlds with equal logs share them."""
    folder = work / f"trained-{digest((world, config, seed, code(_TRAINED_BY)))}"
    out, bundle = folder / "run", folder / f"bundle-{code(_EXPORTED_BY)}"
    if (out / "metrics.json").is_file():  # written last
        run = Run.open(out)
    else:
        log = World(world).simulate_log(seed=seed, progress=lambda share: progress(f"log, seed {seed}", share))
        run = train(log, out=out, seeds=1, seed=seed, config=config, progress=progress)
    if not bundle.is_dir():
        export_bundle(run, bundle, formats=("onnx",))
    return run, bundle


def _refuse_fallbacks(where: str, records: Sequence[SessionRecord], policies: Sequence[str]) -> None:
    """Raise `BenchmarkError` where the SDK or a phone had to fall back in any of `records`."""
    counters = figures(records, policies, seed=0)["counters"]
    taken = [
        f"{policy} {name} {counters[policy][name]}" for policy in policies for name in _FALLBACKS if counters[policy][name]
    ]
    if taken:
        raise BenchmarkError(where, "sessions without a fallback", ", ".join(taken))


@cache
def code(places: tuple[str, ...]) -> str:
    """Return a digest of our code in these folders and files, so that what other code made is not used for this one."""
    root, hashed = ROOT, sha256()
    for place in places:
        for path in sorted((root / place).rglob("*.py")) or [root / place]:
            hashed.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return hashed.hexdigest()[:12]


def digest(what: tuple[Any, ...]) -> str:
    """Return a digest of plain values and structs."""
    return sha256(msgspec.json.encode(what, order="deterministic")).hexdigest()[:12]
