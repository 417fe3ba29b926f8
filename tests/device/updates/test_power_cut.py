"""Power cuts under installed bundles: what was activated, and the last release, are there and whole."""

import random
from pathlib import Path

import pytest

from benchmarks.reliability.released import KEYS, NOW_MS, make_bundle
from pocketrank.device.updates import BundleStore
from tests.power.disk import disk_of

_PHONE = """
import sys
from pathlib import Path
from benchmarks.reliability.released import KEYS, NOW_MS, release_of
from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import MANIFEST
from pocketrank.device.updates import BundleStore
from pocketrank.device.updates.trial import Figures
store = BundleStore(Path(sys.argv[1]), KEYS, clock=lambda: NOW_MS)
for serial in range(1, 5):
    bundle = Bundle.open(Path(sys.argv[2]) / str(serial), keys=KEYS, now_ms=NOW_MS)
    store.change(release=release_of((bundle.folder / MANIFEST).read_bytes(), serial, number=10 + serial))
    print("release", 10 + serial, flush=True)
    store.add(bundle)
    store.stage()
    store.activate()
    print("active", serial, flush=True)
    store.change(trial=None, baseline=Figures(ms=(1.0,)))
    print("passed", serial, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 8, 12])
def test_an_activated_bundle_and_the_last_release_survive_a_power_cut(tmp_path: Path, steps: int) -> None:
    disk = disk_of(tmp_path / "power")
    for serial in range(1, 5):
        make_bundle(tmp_path / "made" / str(serial), serial)
    with disk.process(_PHONE, str(tmp_path / "made")) as phone:
        done = [*phone.read(steps), *phone.kill()]
    last = {what: int(number) for what, number in map(str.split, done)}
    for seed in [None, *range(20)]:
        rng = None if seed is None else random.Random(seed)
        store = BundleStore(disk.after_cut(tmp_path / f"after-{seed}", rng), KEYS, clock=lambda: NOW_MS)
        active = store.active()
        assert (active.manifest.serial if active else 0) in range(last.get("active", 0), 5)
        assert store.state.release is not None
        assert store.state.release.serial >= last["release"]
        if last.get("passed") == store.state.active:
            assert store.state.trial is None
        store.close()
