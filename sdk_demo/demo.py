"""The whole house, once: world → train → export → serve → emulate → report.

Errors::

    DemoError                  a demo that cannot be made here
    └── PlaceError             the folder holds something that no demo wrote
"""

from __future__ import annotations

import importlib.metadata
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.compute as pc

from pocketrank.cloud.data.schema import LABELS, ImpressionLog
from pocketrank.cloud.training.evaluate import evaluate
from pocketrank.cloud.training.train import WORLD_CONFIG, TrainConfig, train
from pocketrank.device.contract import Format
from pocketrank.export.bundle import export_bundle
from pocketrank.sdk_demo.emulator import emulate
from pocketrank.sdk_demo.report import write_report
from pocketrank.sdk_demo.server import running_server
from pocketrank.sdk_demo.world import World, WorldConfig

__all__ = ["DemoConfig", "DemoError", "PlaceError", "run_demo"]

MARK = "demo.json"
"""Says that a folder is a demo's, and what the demo was asked for."""
_OURS = ("report.json", "report.html", "run", "bundle", "feedback.db", "feedback.db-wal", "server.log", MARK)
_VERSIONS = ("pocketrank", "torch", "numpy", "onnxruntime", "litert-torch", "coremltools")


class DemoError(RuntimeError):
    """A demo that cannot be made here."""


class PlaceError(DemoError):
    """The folder holds something that no demo wrote."""


@dataclass(frozen=True)
class DemoConfig:
    """The size of a demo. The defaults fit into five minutes on two cores."""

    world: Path | None = None
    """TOML of the simulated world; None is the default one."""
    seed: int = 1
    """Of the log, of the training and of the emulated sessions."""
    train: TrainConfig = replace(WORLD_CONFIG, no_feedback=False)
    """One training. The model without feedback is left out: it serves comparison only (`pocketrank train` has it)."""
    formats: tuple[Format, ...] = ("onnx", "tflite", "coreml")
    """What the device model is exported to."""
    sessions: int = 1000
    """Sessions for each policy. At 400 the interval of the gain is some 1.8 effective views wide; width falls with the root."""
    clients: int = 8
    """Phones that swipe at the same time; two cores are busy from four on."""


def run_demo(
    out: Path, *, config: DemoConfig = DemoConfig(), progress: Callable[[str, float], None] | None = None
) -> dict[str, Any]:
    """Make the demo in `out` and return what `report.json` holds. `progress` gets a step and the share of it that is done.

    What an earlier demo, finished or not, wrote into `out` is replaced; other files beside it stay. Raises `PlaceError` for a
    folder with files in it that no demo wrote, and whatever a step raises; there is no `report.json` then.
    """
    tell = progress or (lambda step, share: None)
    described = WorldConfig.load(config.world)  # before anything is taken away
    _clear(out, config)
    seconds: dict[str, float] = {}

    with _timed(seconds, "world"):
        log = World(described).simulate_log(seed=config.seed, progress=lambda share: tell("simulate the log", share))
    with _timed(seconds, "train"):
        run = train(log, out=out / "run", seeds=1, seed=config.seed, config=config.train, progress=tell)
        models = evaluate(run.folder)["models"]
    with _timed(seconds, "export"):
        bundle = out / "bundle"
        exported = export_bundle(
            run, bundle, formats=config.formats, progress=lambda _, share: tell("export and compare with torch", share)
        )
    with _timed(seconds, "emulate"), running_server(
        run.folder, bundle, feedback_db=out / "feedback.db", said=out / "server.log"
    ) as url:  # fmt: skip
        emulation = emulate(
            url,
            clients=config.clients,
            sessions=config.sessions,
            seed=config.seed,
            world=config.world,
            progress=lambda share: tell("emulate phones", share),
        )
    report = {
        "data": _data(log),
        "models": models,
        "export": exported,
        "emulation": {name: value for name, value in emulation.items() if name != "latency_ms"},
        "latency_ms": emulation["latency_ms"],
        "seconds": seconds,
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _VERSIONS},
    }
    tell("write the report", 0.0)
    write_report(report, out)
    tell("write the report", 1.0)
    return report


def _clear(out: Path, config: DemoConfig) -> None:
    """Take away what an earlier demo wrote, and leave the mark of this one."""
    if out.exists() and not out.is_dir():
        raise PlaceError(f"Expected a folder for the demo, got a file - at {out}. Choose another --out.")
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise PlaceError(f"Expected an empty folder or an earlier demo, got other files - at {out}. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    for name in _OURS:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif name != MARK:
            path.unlink(missing_ok=True)
    mark = {"seed": config.seed, "sessions": config.sessions, "world": None if config.world is None else config.world.name}
    (out / MARK).write_bytes(msgspec.json.encode(mark))


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - started, 1)


def _data(log: ImpressionLog) -> dict[str, Any]:
    """What the log is, and the rates of its labels, over the rows where they are known."""
    rows = log.impressions
    known = [label for label in LABELS if rows.column(label).null_count < len(rows)]
    return {
        "name": log.name,
        "simulated": log.simulated,
        "impressions": len(rows),
        "pages": len(log.pages),
        "items": len(log.items),
        "users": len(log.users),
        "digest": log.digest(),
        "rates": {label: float(pc.mean(rows.column(label).cast("float64")).as_py()) for label in known},
    }
