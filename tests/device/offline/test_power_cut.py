"""Power cuts under a device's file: the last seconds may be lost, and the file is whole or replaced."""

import random
from pathlib import Path

import pytest

from pocketrank.device.offline.store import DeviceStore
from tests.power.disk import Disk, disk_of

_PHONE = """
import itertools, sys
from pathlib import Path
from pocketrank.device.offline.store import DeviceStore, DeviceStoreConfig
from tests.cloud.events import event
store = DeviceStore(Path(sys.argv[1]) / "device.db", DeviceStoreConfig(wal_bytes=1 << 16))
for number in itertools.count():
    if number == int(sys.argv[2]):
        store.close()
        print("closed", flush=True)
    store.outbox.add(event(item_id=number, session_id="x" * 400, event_id=str(number)))
    if number % 20 == 0:
        store.set_state("personal", b"%d " % number * 1000)
        store.outbox.tidy()
    print(number, flush=True)
"""


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return disk_of(tmp_path / "power")


def _left(folder: Path) -> list[int]:
    """Return the numbers of the events in a store, which must open, hold nothing but what was written, and go on."""
    with DeviceStore(folder / "device.db") as store:
        assert store.outbox.damaged == store.damaged_files == 0 or store.damaged_files == 1
        state = store.state("personal")
        assert state is None or len(set(state.split())) == 1
        events = store.outbox.take()
        assert all(e.event_id == str(e.item_id) for e in events)
        assert store.set_state("after", b"the cut")
    with DeviceStore(folder / "device.db") as again:
        assert (again.state("after"), again.damaged_files) == (b"the cut", 0)
    return [e.item_id for e in events]


@pytest.mark.parametrize("events", [1, 30, 400, 1000])
def test_a_store_opens_after_a_power_cut_and_goes_on(disk: Disk, tmp_path: Path, events: int) -> None:
    with disk.process(_PHONE, "-1") as phone:
        phone.read(events)
        phone.kill()
    for seed in [None, *range(30)]:
        left = _left(disk.after_cut(tmp_path / f"after-{seed}", None if seed is None else random.Random(seed)))
        assert not left or left == list(range(left[0], left[0] + len(left)))


def test_what_a_closed_store_holds_survives_a_power_cut(disk: Disk, tmp_path: Path) -> None:
    with disk.process(_PHONE, "300") as phone:
        assert phone.read(301)[-1] == "closed\n"
        phone.kill()
    for seed in [None, *range(8)]:
        folder = disk.after_cut(tmp_path / f"after-{seed}", None if seed is None else random.Random(seed))
        assert _left(folder) == list(range(300))
