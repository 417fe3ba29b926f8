import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import pytest

from benchmarks.reliability.released import (
    KEYS,
    MODEL,
    NOW_MS,
    Server,
    golden,
    make_bundle,
    make_files,
    model,
    release_of,
    serve,
    signed_release,
    use,
    weights,
)
from pocketrank.device.bundle.files import (
    GOLDEN,
    MANIFEST,
    BundleError,
    BundleLockedError,
    BundleStorageError,
    ExpiredBundleError,
    FutureReleaseError,
    OtherFeedError,
    ProbeError,
    ReleaseError,
    SignatureError,
)
from pocketrank.device.codec import to_msgpack
from pocketrank.device.contract import ScoreRange
from pocketrank.device.network.client import CloudClient
from pocketrank.device.network.errors import BadStatusError, ClientError
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes.onnx import OnnxRuntime
from pocketrank.device.updates import BundleStore, Outcome, TrialConfig, UpdateConfig, Updates

CONFIG = UpdateConfig(trial=TrialConfig(runs=4, failures=2, ms_max=1e6, slower=1e6), tries=2)

NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass
class World:
    """A server, and a device that has bundle 1 and trusts it."""

    folder: Path
    server: Server
    client: CloudClient
    now_ms: int = NOW_MS
    number: int = 10
    device: Updates = field(init=False)
    feed: dict[str, str] = field(default_factory=dict)
    config: UpdateConfig = CONFIG

    def start(self) -> Updates:
        """The device's app starts (again)."""
        store = BundleStore(self.folder / "device", KEYS, clock=lambda: self.now_ms)
        self.device = Updates(store, device_id="device", config=self.config, **self.feed)
        return self.device

    def release(
        self, serial: int, *, files: Mapping[str, bytes] = NOTHING, manifest: Mapping[str, Any] = NOTHING, **changes: Any
    ) -> None:
        """Serve bundle `serial` and a release of it."""
        self.number += 1
        sent = make_files(serial, files=files, **manifest)
        release = signed_release(release_of(sent[MANIFEST], serial, **{"number": self.number, **changes}))
        self.server.files = {**sent, **release}

    def update(self) -> tuple[Outcome, int | None]:
        """What a check comes to, and what then is in use."""
        return self.device.check(self.client), self.device.current().serial


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with serve() as server, CloudClient(server.url, timeout_s=20) as client:
        world = World(tmp_path, server, client)
        device = world.start()
        assert device.current()[:3] == (None, None, "none")
        assert device.add(make_bundle(tmp_path / "first", 1)) == "staged"
        _use(device.current().ranker)
        device.current()
        assert device.store.state.trial is None
        yield world


def _use(ranker: Ranker | None, *, fails: bool = False, runs: int = 4) -> None:
    assert ranker is not None
    use(ranker, runs, fails=fails)


def test_a_new_bundle_is_activated_between_pages_and_stays(world: World) -> None:
    world.release(2)
    assert world.device.current().serial == 1
    assert world.device.check(world.client) == "staged"
    current = world.device.current()
    assert (current.serial, current.state) == (2, "ok")
    assert world.device.current() == current
    assert world.update() == ("current", 2)
    _use(current.ranker)
    assert world.device.current().serial == 2
    state = world.device.store.state
    assert (state.previous, state.trial) == (1, None)
    assert state.baseline is not None
    assert state.baseline.runs == 4
    assert world.start().current().serial == 2


def test_a_bundle_staged_before_a_restart_is_activated_after_it(world: World) -> None:
    world.release(2)
    assert world.device.check(world.client) == "staged"
    device = world.start()
    assert device.store.state.active == 1
    assert device.current().serial == 2


def test_a_bundle_that_fails_in_use_is_replaced_and_not_tried_again(world: World) -> None:
    world.release(2)
    assert world.update() == ("staged", 2)
    _use(world.device.current().ranker, fails=True)
    assert world.device.current().serial == 1
    assert "failures in a row" in world.device.store.state.rejected[2]
    assert world.update() == ("rejected", 1)
    world.start()
    assert world.update() == ("rejected", 1)
    world.release(3)
    assert world.update() == ("staged", 3)


def test_a_trial_continues_after_a_restart(world: World) -> None:
    world.release(2)
    assert world.update() == ("staged", 2)
    _use(world.device.current().ranker, runs=3)
    world.device.close()
    device = world.start()
    assert device.store.state.trial is not None
    _use(device.current().ranker, runs=1)
    device.current()
    assert device.store.state.trial is None


def test_a_bundle_that_ends_the_process_before_a_run_is_rejected(world: World) -> None:
    world.release(2)
    assert world.update() == ("staged", 2)
    assert [world.start().current().serial for _ in range(3)] == [2, 2, 1]
    assert world.device.store.state.rejected == {2: "the process ended before a run"}


def test_starts_in_which_it_ran_do_not_count(world: World) -> None:
    world.release(2)
    assert world.update() == ("staged", 2)
    for _ in range(3):
        device = world.start()
        _use(device.current().ranker, runs=1)
        assert device.current().serial == 2


def _crashes(world: World, starts: int, *, ends: Callable[[Updates], None] | None = None) -> list[int | None]:
    """Bundle in use in each of `starts` whose process ends in a run between two pages. `ends` is called in the first one."""
    used = []
    for start in range(starts):
        device = world.start()
        used.append(device.current().serial)
        if ends is not None and start == 0:
            ends(device)
            device.current()
        _use(device.current().ranker, runs=1)
        device.current()
        _use(device.current().ranker, runs=1)  # and here the process ends
    return used


@pytest.fixture
def long_trial(world: World) -> World:
    """A device that has just activated bundle 2, whose trial is long."""
    world.config = UpdateConfig(trial=TrialConfig(runs=1000, ms_max=1e6, slower=1e6), tries=2)
    world.start()
    world.release(2)
    assert world.update() == ("staged", 2)
    return world


def test_a_model_that_crashes_late_is_not_started_for_ever(long_trial: World) -> None:
    assert _crashes(long_trial, 8) == [2, 2, 2, 2, 1, 1, 1, 1]
    assert long_trial.device.store.state.rejected == {2: "the process ended in each of its last 4 starts"}
    assert long_trial.update() == ("rejected", 1)


@pytest.mark.parametrize("ends", [Updates.close, Updates.background])
def test_it_is_blamed_sooner_in_an_app_that_reports_its_ends(long_trial: World, ends: Callable[[Updates], None]) -> None:
    assert _crashes(long_trial, 4, ends=ends) == [2, 2, 1, 1]


def test_a_trusted_bundle_that_begins_to_crash_is_replaced_where_the_app_reports_its_ends(world: World) -> None:
    world.release(2)
    assert world.update() == ("staged", 2)
    _use(world.device.current().ranker)
    world.device.current()
    assert world.device.store.state.trial is None
    assert _crashes(world, 8) == [2] * 8  # such an app may be stopped at any time
    assert _crashes(world, 4, ends=Updates.background) == [2, 2, 1, 1]
    assert world.start().current().serial is None


def test_starts_that_the_app_ends_are_never_blamed(long_trial: World) -> None:
    for _ in range(9):
        device = long_trial.start()
        assert device.current().serial == 2
        _use(device.current().ranker, runs=1)
        device.background()
        device.background()
    long_trial.device.close()
    for _ in range(9):  # nor those without a run
        long_trial.start().close()
    assert long_trial.start().current().serial == 2


_STARTS = """
import os, sys
from pathlib import Path
from benchmarks.reliability.released import KEYS, NOW_MS
from pocketrank.device.updates import BundleStore, Updates
updates = Updates(BundleStore(Path(sys.argv[1]), KEYS, clock=lambda: NOW_MS), device_id="device")
assert updates.current().serial == 2
if sys.argv[2] == "crash":
    os._exit(0)
"""


@pytest.mark.parametrize(("end", "crashes"), [("exit", 0), ("crash", 2)])
def test_a_process_that_exits_in_order_has_not_crashed(long_trial: World, end: str, crashes: int) -> None:
    store = long_trial.device.store
    store.close()
    for _ in range(2):
        subprocess.run([sys.executable, "-c", _STARTS, str(store.root), end], check=True, timeout=60)
    assert BundleStore(store.root, KEYS, clock=lambda: NOW_MS).state.crashes == crashes


def test_a_trial_goes_on_in_an_app_that_is_stopped_without_a_word(world: World) -> None:
    world.release(2)
    assert world.update() == ("staged", 2)
    for _ in range(3):
        device = world.start()
        _use(device.current().ranker, runs=1)
        assert device.current().serial == 2
    figures = device.store.state.trial
    assert figures is not None
    assert figures.runs == 3


def test_a_probe_that_ends_the_process_is_not_tried_for_ever(world: World) -> None:
    world.release(2)
    world.device.store.begin(2)
    world.device.store.change(probes=CONFIG.tries)
    with pytest.raises(ProbeError, match="a probe that ends"):
        world.device.check(world.client)
    assert world.update() == ("rejected", 1)


def test_a_probe_that_never_ends_holds_neither_the_next_bundle_nor_a_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.device.updates.hung_probe", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["ok 1 [2] 1", "ok 3 [2] 1", "killed None [2] 1"]


def test_a_bundle_that_fails_the_probe_is_rejected(world: World) -> None:
    world.release(2, files={MODEL: model(weights(9))})
    with pytest.raises(ProbeError, match="golden scores"):
        world.device.check(world.client)
    assert world.update() == ("rejected", 1)
    assert sorted(p.name for p in (world.device.store.root / "bundles").iterdir()) == ["1"]


def test_a_rollout_reaches_a_device_when_it_is_wide_enough(world: World) -> None:
    outcomes = []
    for percent in (0, 1, 10, 100):
        world.release(2, rollout=percent, salt="s")
        outcomes.append(world.update())
    assert outcomes[0] == ("waiting", 1)
    assert outcomes[-1] == ("staged", 2)
    world.release(2, rollout=0, salt="s")  # who is in stays in
    assert world.update() == ("current", 2)


def test_a_kill_stops_models_until_a_release_says_otherwise(world: World) -> None:
    world.release(1, kill=True)
    assert world.device.check(world.client) == "killed"
    assert world.device.current()[:3] == (None, None, "killed")
    assert world.start().current().state == "killed"
    world.release(2)
    assert world.update() == ("staged", 2)


def test_a_release_dated_ahead_is_not_believed_and_its_kill_is(world: World) -> None:
    year = 365 * 86_400_000
    ahead = {"created_ms": NOW_MS + year, "expires_ms": NOW_MS + year + 9}
    world.release(2, **ahead)
    with pytest.raises(FutureReleaseError):
        world.device.check(world.client)
    current = world.device.current()
    assert (current.serial, current.state) == (1, "ok")
    assert "the server's release is dated ahead of this device's clock" in current.why
    world.release(2, kill=True, **ahead)
    assert world.device.check(world.client) == "killed"
    world.release(2)
    assert world.update() == ("staged", 2)


def test_a_damaged_state_forgets_neither_the_kill_nor_the_last_serial(world: World) -> None:
    world.release(1, kill=True)
    assert world.device.check(world.client) == "killed"
    (world.device.store.root / "state.json").write_bytes(b"\0" * 99)
    assert world.start().current().state == "killed"
    world.release(1, number=5)
    with pytest.raises(ReleaseError, match="a serial above 11"):
        world.device.check(world.client)
    world.release(2)
    assert world.update() == ("staged", 2)


def test_two_updates_of_one_folder_do_not_disturb_each_other(world: World) -> None:
    first = world.device
    world.release(2)
    assert first.check(world.client) == "staged"
    world.start()
    world.release(3)
    assert world.update() == ("staged", 3)
    with pytest.raises(BundleLockedError):
        first.check(world.client)
    assert first.current().serial == 1  # what it has goes on
    assert world.start().current().serial == 3


PRODUCTION, STAGING = {"app": "reels", "channel": "production"}, {"app": "reels", "channel": "staging"}


@pytest.mark.parametrize(
    ("own", "other"),
    [
        (PRODUCTION, STAGING),
        (PRODUCTION, {"app": "shop", "channel": "production"}),
        (PRODUCTION, {"app": "reels"}),
        (PRODUCTION, {}),
        ({}, STAGING),
    ],
)
def test_a_bundle_of_another_feed_is_refused_and_locks_nothing_out(
    world: World, own: dict[str, str], other: dict[str, str]
) -> None:
    world.feed = own
    world.start()
    world.device.add(make_bundle(world.folder / "own", 2, **own))
    assert world.device.current().serial == 2
    world.release(9, manifest=other, **other, number=99)
    with pytest.raises(OtherFeedError):
        world.device.check(world.client)
    assert "the server's release is for another app or channel" in world.device.current().why
    world.release(9, manifest=other, **other, number=99, kill=True)
    with pytest.raises(OtherFeedError):
        world.device.check(world.client)
    world.release(9, manifest=other, **own)  # only the bundle is another's
    with pytest.raises(OtherFeedError):
        world.device.check(world.client)
    with pytest.raises(OtherFeedError):
        world.device.add(make_bundle(world.folder / "other", 9, **other))
    assert world.device.current()[0::2] == (2, "ok")
    world.release(10, manifest=own, **own)
    assert world.update() == ("staged", 10)


def test_an_app_that_changes_its_channel_leaves_the_bundle_of_the_last_one(world: World) -> None:
    world.feed = STAGING
    assert world.start().current().serial is None
    world.release(20, manifest=STAGING, **STAGING, number=99, kill=True)
    assert world.device.check(world.client) == "killed"
    world.feed = PRODUCTION
    assert world.start().current()[0::2] == (None, "none")
    world.release(2, manifest=PRODUCTION, **PRODUCTION, number=50)
    assert world.update() == ("staged", 2)


def test_a_revoked_bundle_is_replaced(world: World) -> None:
    world.release(2)
    assert world.update() == ("staged", 2)
    world.release(2, revoked=(2,), rollout=0)
    assert world.update() == ("rejected", 1)
    world.release(2, revoked=(1, 2), rollout=0)
    assert world.update() == ("rejected", None)
    assert world.device.add(world.folder / "first") == "rejected"


def test_an_expired_bundle_leaves_cloud_order(world: World) -> None:
    world.release(2, manifest={"expires_ms": NOW_MS + 5})
    assert world.update() == ("staged", 2)
    world.now_ms += 5
    assert world.device.current()[:3] == (2, None, "expired")
    assert world.start().current()[:3] == (2, None, "expired")


def test_an_expired_release_changes_nothing_and_neither_does_an_older_one(world: World) -> None:
    world.release(2)
    old = world.server.files
    assert world.update() == ("staged", 2)
    world.release(3)
    assert world.update() == ("staged", 3)
    world.server.files = old
    with pytest.raises(ReleaseError):
        world.device.check(world.client)
    world.now_ms += 30 * 86_400_000
    world.release(4)
    with pytest.raises(ReleaseError, match="a time before"):
        world.device.check(world.client)
    assert world.device.current().serial == 3


def test_a_download_resumes_where_it_was_interrupted(world: World) -> None:
    world.release(2)
    whole = world.server.files
    data = whole[f"files/{MODEL}"]
    assert isinstance(data, bytes)
    world.server.files = {path: body for path, body in whole.items() if path != f"files/{MODEL}"}
    with pytest.raises(BadStatusError):
        world.device.check(world.client)
    (world.device.store.folder(2) / MODEL).write_bytes(data[:100])  # as a kill leaves it
    world.server.files = whole
    world.server.asked.clear()
    world.start()
    assert world.update() == ("staged", 2)
    files = {path: wanted for path, wanted in world.server.asked if path.startswith("files/")}
    assert files[f"files/{MODEL}"] == "bytes=100-"
    assert len(files) == 2  # and the spec; what was whole was not asked for again


def test_a_full_disk_keeps_the_active_bundle(world: World) -> None:
    world.release(2)
    assert world.device.check(world.client) == "staged"
    (world.device.store.root / "state.json.tmp").mkdir()  # nothing can be written over a folder
    assert world.device.current().serial == 1
    world.release(3)
    with pytest.raises(BundleStorageError):
        world.device.check(world.client)
    world.release(3, kill=True)
    with pytest.raises(BundleStorageError):
        world.device.check(world.client)
    assert world.device.current().state == "killed"  # until the app ends; a later check brings it again
    assert world.start().current().serial == 1
    (world.device.store.root / "state.json.tmp").rmdir()
    assert world.device.current().serial == 2


def test_a_device_that_lost_its_bundle_ranks_with_the_one_before(world: World) -> None:
    world.release(2)
    assert world.update() == ("staged", 2)
    (world.device.store.folder(2) / MODEL).write_bytes(b"rot")
    assert world.start().current().serial == 1
    assert world.update() == ("staged", 2)  # it was the disk, not the bundle


def test_a_bundle_that_is_part_of_the_app_is_checked_like_any_other(world: World) -> None:
    assert world.device.add(world.folder / "first") == "current"
    folder = make_bundle(world.folder / "newer", 2)
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b" ")
    with pytest.raises(SignatureError):
        world.device.add(folder)


def test_checks_in_the_background(world: World) -> None:
    world.release(2)
    outcomes: list[Outcome | ClientError | BundleError] = []
    twice = threading.Event()

    def report(outcome: Outcome | ClientError | BundleError) -> None:
        outcomes.append(outcome)
        if len(outcomes) == 1:
            world.server.files = {}
        else:
            twice.set()

    world.device.start(world.client, every_s=0.001, report=report)
    assert twice.wait(20)
    world.device.close()
    assert outcomes[0] == "staged"
    assert isinstance(outcomes[1], BadStatusError)
    assert world.device.current().serial == 2


def test_an_error_of_the_app_ends_no_checks_in_the_background(world: World) -> None:
    """A later release may be a kill."""
    reports = 0
    twice = threading.Event()

    def report(outcome: Outcome | ClientError | BundleError) -> None:
        nonlocal reports
        reports += 1
        if reports == 1:
            raise KeyError(outcome)
        twice.set()

    world.device.start(world.client, every_s=0.001, report=report)
    assert twice.wait(20)
    world.device.close()


def test_a_check_saves_the_progress_of_a_trial(world: World) -> None:
    world.release(2)
    assert world.update() == ("staged", 2)
    _use(world.device.current().ranker, runs=3)
    assert world.device.check(world.client) == "current"
    figures = world.device.store.state.trial
    assert figures is not None
    assert figures.runs == 3


def test_a_trusted_bundle_runs_unwatched(world: World) -> None:
    ranker = world.device.current().ranker
    assert ranker is not None
    assert isinstance(ranker.runtimes["self_contained"]["whole"], OnnxRuntime)
    world.release(2)
    world.update()
    on_trial = world.device.current().ranker
    assert on_trial is not None
    assert not isinstance(on_trial.runtimes["self_contained"]["whole"], OnnxRuntime)


def test_a_staged_bundle_that_is_revoked_is_never_activated(world: World) -> None:
    world.release(2)
    assert world.device.check(world.client) == "staged"
    world.release(2, revoked=(2,))
    assert world.device.check(world.client) == "rejected"
    assert world.device.current().serial == 1
    assert world.start().current().serial == 1


def test_a_staged_bundle_is_not_downloaded_again(world: World) -> None:
    world.release(2)
    assert [world.device.check(world.client) for _ in range(2)] == ["staged", "current"]


def test_a_staged_bundle_that_was_damaged_is_downloaded_again(world: World) -> None:
    world.release(2)
    assert world.device.check(world.client) == "staged"
    (world.device.store.folder(2) / MODEL).write_bytes(b"rot")
    assert world.start().current().serial == 1
    assert world.update() == ("staged", 2)


def test_a_bundle_of_the_app_that_expired_is_refused(world: World) -> None:
    with pytest.raises(ExpiredBundleError):
        world.device.add(make_bundle(world.folder / "old", 2, expires_ms=NOW_MS))


def test_a_trial_compares_with_the_previous_bundle_and_the_recorded_scores(world: World) -> None:
    ranges = msgspec.structs.replace(
        golden(weights()), ranges=(ScoreRange(form="self_contained", mean=(0.9, 0.9), std=(0.01, 0.01)),)
    )
    world.release(2, files={GOLDEN: to_msgpack(ranges)})
    assert world.update() == ("staged", 2)
    _use(world.device.current().ranker)
    assert world.device.current().serial == 1
    assert "task 0 has a mean score of" in world.device.store.state.rejected[2]
