"""One small demo for all tests that need a trained run: training and exporting is what costs."""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reliability.released import make_bundle
from pocketrank.cloud.training.train import TrainConfig
from pocketrank.device.contract import SearchSpec
from pocketrank.export.signing import generate_key
from pocketrank.sdk_demo.demo import DemoConfig, run_demo
from pocketrank.sdk_demo.world import DEFAULT_WORLD
from tests.shared import made_once

EARLIER_SERIAL = 8
"""Serial of the bundle of the earlier demo."""
SIZES = {"items": "400", "count": "40", "days": "4.0", "sessions_per_user": "3.0"}


@dataclass(frozen=True)
class SmallDemo:
    """A finished demo, made over an earlier one, and the progress that it reported."""

    out: Path
    world: Path
    report: dict[str, Any]
    progress: list[tuple[str, float]]


@pytest.fixture(scope="session")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> SmallDemo:
    folder, (report, steps) = made_once(tmp_path_factory, "small_demo", _make)
    return SmallDemo(folder / "demo", folder / "world.toml", report, [(step, share) for step, share in steps])


def _make(folder: Path) -> tuple[dict[str, Any], list[tuple[str, float]]]:
    text = DEFAULT_WORLD.read_text()
    for name, value in SIZES.items():
        text, changed = re.subn(rf"^{name} = .*$", f"{name} = {value}", text, count=1, flags=re.MULTILINE)
        assert changed, f"the default world has no `{name}`"
    world, out = folder / "world.toml", folder / "demo"
    world.write_text(text)
    (out / "run").mkdir(parents=True)
    for earlier in ("demo.json", "report.json", "run/started.json", "notes.txt"):
        (out / earlier).write_text('{"from": "an earlier time"}')
    make_bundle(out / "bundle", EARLIER_SERIAL)
    (out / "key_before.txt").write_text(generate_key(out / "key"))
    config = TrainConfig(no_feedback=False, search=SearchSpec())
    config = replace(config, device=replace(config.device, epochs=1))
    steps: list[tuple[str, float]] = []
    report = run_demo(
        out,
        config=DemoConfig(world=world, train=config, formats=("onnx",), sessions=30, clients=4),
        progress=lambda step, share: steps.append((step, share)),
    )
    return report, steps
