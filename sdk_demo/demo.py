"""The whole system in one run: world → train → export and sign → serve → emulate → report.

Errors::

    DemoError                  the demo cannot run
    └── PlaceError             the folder holds files that no demo wrote
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
from pocketrank.export.bundle import export_bundle, next_serial
from pocketrank.export.signing import generate_key, public_key, read_key, write_release
from pocketrank.sdk_demo.emulator import emulate
from pocketrank.sdk_demo.report import write_report
from pocketrank.sdk_demo.server import running_server
from pocketrank.sdk_demo.world import World, WorldConfig

__all__ = ["BUNDLE", "KEY", "RUN", "DemoConfig", "DemoError", "PlaceError", "run_demo"]

RUN = "run"
"""Folder of the trained run, in the demo's folder."""
BUNDLE = "bundle"
"""Folder of the signed and released bundle, in the demo's folder."""
KEY = "key"
"""File of the private key that signs the bundle and its release; its public half is in `key.pub`."""
MARK = "demo.json"
"""File that marks a folder as a demo's and records the demo's parameters."""
RELEASE_DAYS = 90
"""How long devices follow the release. A production release is valid for days; a demo should still work months later."""
_WRITTEN = ("report.json", "report.html", RUN, BUNDLE, "feedback.db", "feedback.db-wal", "server.log")
_DAY_MS = 86_400_000
_VERSIONS = ("pocketrank", "torch", "numpy", "onnxruntime", "litert-torch", "coremltools")


class DemoError(RuntimeError):
    """The demo cannot run."""


class PlaceError(DemoError):
    """The folder holds files that no demo wrote."""


@dataclass(frozen=True)
class DemoConfig:
    """The size of a demo. With the defaults it takes about five minutes on two cores."""

    world: Path | None = None
    """TOML file of the simulated world; None is the default world."""
    seed: int = 1
    """Seed of the log, of the training and of the emulated sessions."""
    train: TrainConfig = replace(WORLD_CONFIG, no_feedback=False)
    """The training. The model without feedback is left out: it is only a baseline, which `pocketrank train` trains as well."""
    formats: tuple[Format, ...] = ("onnx", "tflite", "coreml")
    """Formats that the device model is exported to."""
    sessions: int = 1000
    """Sessions of each policy. At 400 the interval of the gain is some 1.8 effective views wide; its width falls with the
    square root of the sessions.
    """
    clients: int = 8
    """Phones that swipe at the same time. Four keep two cores busy."""


def run_demo(
    out: Path, *, config: DemoConfig = DemoConfig(), progress: Callable[[str, float], None] | None = None
) -> dict[str, Any]:
    """Run the demo in the folder `out` and return the contents of its `report.json`.

    `progress` is called with the name of a step and the share of it that is done. The files of an earlier demo in `out` are
    replaced, except its key; other files stay. Raises `PlaceError` when `out` holds files but no demo, and whatever a step
    raises; there is no `report.json` then.
    """
    report_progress = progress or (lambda step, share: None)
    world = WorldConfig.load(config.world)  # before anything is removed
    run_folder, bundle = out / RUN, out / BUNDLE
    # Devices that installed the bundle of an earlier demo refuse another bundle of the same serial or of another key.
    serial = next_serial(bundle)
    _clear(out, config)
    if not (out / KEY).exists():
        generate_key(out / KEY)
    key = read_key(out / KEY)
    seconds: dict[str, float] = {}

    with _timed(seconds, "world"):
        log = World(world).simulate_log(seed=config.seed, progress=lambda share: report_progress("simulate the log", share))
    with _timed(seconds, "train"):
        run = train(log, out=run_folder, seeds=1, seed=config.seed, config=config.train, progress=report_progress)
        models = evaluate(run.folder)["models"]
    with _timed(seconds, "export"):
        exported = export_bundle(
            run,
            bundle,
            formats=config.formats,
            serial=serial,
            keys=[key],
            progress=lambda _, share: report_progress("export and compare with torch", share),
        )
        write_release(bundle, [key], now_ms=time.time_ns() // 1_000_000, lasts_ms=RELEASE_DAYS * _DAY_MS)
    with _timed(seconds, "emulate"), running_server(
        run.folder, bundle, feedback_db=out / "feedback.db", said=out / "server.log"
    ) as url:  # fmt: skip
        emulation = emulate(
            url,
            clients=config.clients,
            sessions=config.sessions,
            seed=config.seed,
            world=config.world,
            progress=lambda share: report_progress("emulate phones", share),
        )
    report = {
        "data": _data(log),
        "models": models,
        "export": exported,
        "public_key": public_key(key),
        "emulation": {name: value for name, value in emulation.items() if name != "latency_ms"},
        "latency_ms": emulation["latency_ms"],
        "seconds": seconds,
        "versions": {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in _VERSIONS},
    }
    report_progress("write the report", 0.0)
    write_report(report, out)
    report_progress("write the report", 1.0)
    return report


def _clear(out: Path, config: DemoConfig) -> None:
    """Remove the files of an earlier demo, except its key, and mark the folder as this demo's."""
    if out.exists() and not out.is_dir():
        raise PlaceError(f"Expected a folder for the demo, got a file - at {out}. Choose another --out.")
    if out.exists() and any(out.iterdir()) and not (out / MARK).is_file():
        raise PlaceError(f"Expected an empty folder or an earlier demo, got other files - at {out}. Choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    for name in _WRITTEN:
        path = out / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    mark = {"seed": config.seed, "sessions": config.sessions, "world": None if config.world is None else config.world.name}
    (out / MARK).write_bytes(msgspec.json.encode(mark))


@contextmanager
def _timed(seconds: dict[str, float], step: str) -> Iterator[None]:
    started = time.monotonic()
    yield
    seconds[step] = round(time.monotonic() - started, 1)


def _data(log: ImpressionLog) -> dict[str, Any]:
    """Return the size and digest of the log, and the rate of each label over the rows where it is known."""
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
