"""A start from a snapshot and what the log accepted after it equals one that replays the whole log."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import UNSET
from msgspec.structs import replace

from pocketrank.cloud.data.features import FeatureConfig, Statistic
from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.state_snapshot import SnapshotConfig, StateSnapshot
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog, SqliteLogConfig
from pocketrank.device.contract import FeedbackEvent
from tests.cloud.events import accept, event
from tests.cloud.small_published import SmallRun, small_run
from tests.power.disk import disk_of

NOW = 1_780_000_000_000
USERS = range(1, 6)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    statistics = [Statistic(of=key, days=(3,), rates=("long_view", "like", "gift")) for key in ("item", "author")]
    features = FeatureConfig(statistics=tuple(statistics), user_events=5)
    return small_run(tmp_path_factory.mktemp("run"), actions=("purchase", "gift"), features=features)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> SmallRun:
    """A run without counts of all users."""
    return small_run(tmp_path_factory.mktemp("run"), actions=("purchase", "gift"))


def opened(path: Path) -> SqliteFeedbackLog:
    return SqliteFeedbackLog(path, SqliteLogConfig(full_sync=False, keep_days=None, replay_rows=7))


def snapshot_of(log: SqliteFeedbackLog, **config: Any) -> StateSnapshot:
    return StateSnapshot(log.derived, SnapshotConfig(**config))


def contents(states: UserStates) -> list[Any]:
    """All that states hold, in the order in which users and experiments would go."""
    users = {user: kept for part in states.copies() for user, kept in part.items()}
    order = sorted(users, key=lambda user: users[user].place)
    assert order == list(states._recent)
    assert states.cost == sum(kept.cost for kept in users.values())
    windows = [
        (user, users[user].place, [(name, rows.tolist()) for name, rows in users[user].windows.items()]) for user in order
    ]
    shared = {
        (one.key, one.day, code): values
        for one in (states.counts.copy() if states.counts else ())
        for code, *values in np.column_stack(
            [np.frombuffer(one.code, np.int64), np.frombuffer(one.counts, np.float32).reshape(-1, 4)]
        ).tolist()
        if any(values)
    }
    return [windows, states.cost, states.place, shared]


class Servers:
    """Processes on one log, which start with and without its snapshot."""

    def __init__(self, run: SmallRun, path: Path, count: int, **limits: int) -> None:
        self._run, self._path, self._limits = run, path, limits
        self.logs = [opened(path) for _ in range(count)]
        self.intakes = [self.start(log) for log in self.logs]

    def start(self, log: SqliteFeedbackLog, *, whole: bool = False) -> tuple[FeedbackIntake, UserStates]:
        states = UserStates(self._run.published, self._run.record, **self._limits)
        snapshot = None if whole else snapshot_of(log, check_s=3600.0)
        return FeedbackIntake(log, states, clock=lambda: NOW / 1e3, snapshot=snapshot), states

    def restart(self, who: int, *, kill: bool) -> None:
        if not kill:
            self.intakes[who][0].close()
        self.logs[who].close()
        self.logs[who] = opened(self._path)
        self.intakes[who] = self.start(self.logs[who])

    def check(self) -> None:
        """All know the same: those that went on, one that starts from the snapshot, and one that replays."""
        # The counts keep what a forgotten user did before the events that were kept of that user.
        compared = slice(3 if self._limits else 4)
        with closing(opened(self._path)) as log:
            expected = contents(self.start(log, whole=True)[1])[compared]
        with closing(opened(self._path)) as log:
            assert contents(self.start(log)[1])[compared] == expected
        for intake, states in self.intakes:
            intake.follow()
            assert contents(states)[compared] == expected

    def close(self) -> None:
        for log in self.logs:
            log.close()


events_drawn = st.builds(
    event,
    st.sampled_from(USERS),
    st.sampled_from([1000, 1003, 1006, 1009, 1012, 7]),
    ms=st.integers(NOW - 5, NOW + 2) | st.sampled_from([0, NOW + 10**9]),
    position=st.integers(0, 2),
    experiment=st.sampled_from([None, None, "a", "b", *"cdefghij"]),
    event_id=st.integers(0, 300).map(str),
    watch_ms=st.integers(0, 9000),
    like=st.booleans(),
    actions=st.sampled_from([UNSET, ("purchase",), ("gift", "purchase"), ("unknown",)]),
)
steps = st.one_of(
    st.tuples(st.just("accept"), st.integers(0, 1), st.lists(events_drawn, max_size=12)),
    st.tuples(st.just("forget"), st.integers(0, 1), st.sampled_from(USERS)),
    st.tuples(st.sampled_from(["save", "follow", "stop", "kill"]), st.integers(0, 1), st.none()),
)


@pytest.mark.parametrize("limits", [{}, {"seen_max": 8}, {"events_max": 150}, {"seen_max": 7, "events_max": 90}])
@settings(max_examples=40)
@given(moves=st.lists(steps, max_size=25), count=st.integers(1, 2))
def test_snapshot_and_replay_equal_a_whole_replay(
    run: SmallRun, tmp_path_factory: pytest.TempPathFactory, moves: list[Any], count: int, limits: dict[str, int]
) -> None:
    path = tmp_path_factory.mktemp("log") / "feedback.db"
    servers = Servers(run, path, count, **limits)
    for what, who, more in moves:
        who %= count
        intake = servers.intakes[who][0]
        if what == "accept":
            accept(intake, more)
        elif what == "forget" and "events_max" in limits:
            pass  # a replay does not know of the events that made others go
        elif what == "forget":
            servers.logs[who].forget(more)
            snapshot_of(servers.logs[who]).forget(more)
        elif what == "save":
            intake.save(hurry=True)
        elif what == "follow":
            intake.follow()
        else:
            servers.restart(who, kill=what == "kill")
    servers.check()
    servers.close()


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteFeedbackLog]:
    with closing(opened(tmp_path / "feedback.db")) as log:
        yield log


def start(run: SmallRun, log: SqliteFeedbackLog, **limits: int) -> tuple[FeedbackIntake, UserStates]:
    states = UserStates(run.published, run.record, **limits)
    return FeedbackIntake(log, states, clock=lambda: NOW / 1e3, snapshot=snapshot_of(log, check_s=3600.0)), states


def some(count: int, first: int = 0) -> list[FeedbackEvent]:
    return [
        event(1 + n % 5, 1000 + 3 * (n % 20), ms=NOW - 1000 + n, event_id=f"{n}", actions=("gift",) * (n % 2))
        for n in range(first, first + count)
    ]


def test_a_start_reads_only_what_came_after_the_snapshot(run: SmallRun, log: SqliteFeedbackLog, tmp_path: Path) -> None:
    intake, _ = start(run, log)
    accept(intake, some(40))
    intake.close()
    assert log.derived.stat().st_mode & 0o777 == 0o600
    accept(intake, some(3, 40))
    with closing(opened(tmp_path / "feedback.db")) as again:
        places = list[int]()
        read = again.read
        again.read = lambda after, count=None: places.append(after) or read(after, count)  # type: ignore[method-assign,func-returns-value,assignment]
        assert start(run, again)[0].replayed == 43
        assert min(places) == 40


def test_states_are_as_they_were_when_copying_began(run: SmallRun) -> None:
    states = UserStates(run.published, run.record, events_max=5000)
    states.apply([event(user, 1003) for user in range(60)])
    parts = states.copies()
    kept = dict(next(parts))
    states.apply([event(user, 1006, experiment="x") for user in range(30, 140)])
    states.forget([1, 2])
    for part in parts:
        kept |= part
    assert sorted(kept) == list(range(60))
    assert {len(user.windows) for user in kept.values()} == {1}


def damaged(how: str) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        match how:
            case "cut":
                del data[-9:]
            case "no end":
                del data[-8:]
            case "flipped":
                data[len(data) // 2] ^= 1
            case "header":
                data[30] ^= 1
            case "empty":
                data.clear()
            case "text":
                data[:] = b"hello" * 99
            case "long":
                data[:4] = b"\xff" * 4
        file.write_bytes(data)

    return damage


@pytest.mark.parametrize("how", ["cut", "no end", "flipped", "header", "empty", "text", "long"])
def test_a_damaged_snapshot_is_ignored_with_one_line(
    run: SmallRun, log: SqliteFeedbackLog, caplog: pytest.LogCaptureFixture, how: str
) -> None:
    intake, states = start(run, log)
    accept(intake, some(40))
    intake.close()
    damaged(how)(log.derived)
    again = start(run, log)
    assert contents(again[1]) == contents(states)
    (line,) = caplog.messages
    assert line.startswith(f"the snapshot {log.derived} is ignored, and the feedback log is replayed from its start: it is ")
    again[0].close()
    assert contents(start(run, log)[1]) == contents(states)
    assert len(caplog.messages) == 1


def test_every_flipped_byte_is_noticed(run: SmallRun, log: SqliteFeedbackLog) -> None:
    intake, states = start(run, log)
    accept(intake, some(9))
    intake.close()
    whole, expected = log.derived.read_bytes(), contents(states)
    for at in range(len(whole)):
        log.derived.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        fresh = UserStates(run.published, run.record)
        assert snapshot_of(log).load(fresh, log) is None
        assert fresh.place == 0
    log.derived.write_bytes(whole)
    assert contents(start(run, log)[1]) == expected


def test_a_snapshot_of_something_else_is_ignored(run: SmallRun, log: SqliteFeedbackLog, tmp_path: Path) -> None:
    intake, _ = start(run, log)
    accept(intake, some(40))
    intake.close()
    other_run = small_run(tmp_path / "other", seed=1)
    for states in (
        UserStates(run.published, run.record, seen_max=30),
        UserStates(run.published, run.record, events_max=10**6),
        UserStates(other_run.published, other_run.record),
        UserStates(run.published, replace(run.record, actions=("gift", "purchase"))),
    ):
        assert snapshot_of(log).load(states, log) is None
    assert snapshot_of(log).load(UserStates(run.published, run.record), log) is not None
    with closing(opened(tmp_path / "another.db")) as another:
        another.append(some(50))
        another.derived.write_bytes(log.derived.read_bytes())
        assert snapshot_of(another).load(UserStates(run.published, run.record), another) is None


@pytest.mark.parametrize("more", [0, 5, 50])
def test_a_snapshot_from_after_a_backup_of_the_log_is_ignored(run: SmallRun, tmp_path: Path, more: int) -> None:
    path = tmp_path / "feedback.db"
    with closing(opened(path)) as log:
        log.append(some(20))
    backup = path.read_bytes()
    with closing(opened(path)) as log:
        intake, _ = start(run, log)
        accept(intake, some(20, 20))
        intake.close()
    path.write_bytes(backup)
    with closing(opened(path)) as log:
        log.append(some(more, 100))
        states = UserStates(run.published, run.record)
        assert snapshot_of(log).load(states, log) is None


def test_what_a_killed_process_left_is_removed(run: SmallRun, log: SqliteFeedbackLog) -> None:
    intake, _ = start(run, log)
    accept(intake, some(40))
    part = log.derived.with_name(f"{log.derived.name}.0123.part")
    part.write_bytes(b"half")
    intake.close()
    assert not part.exists()
    assert log.derived.exists()


def test_nothing_of_a_forgotten_user_stays_in_the_file(bare: SmallRun, log: SqliteFeedbackLog) -> None:
    intake, states = start(bare, log)
    accept(intake, [event(7_777_777_777, 1003, experiment="of-seven"), *some(40)])
    intake.close()
    part = log.derived.with_name(f"{log.derived.name}.0123.part")  # of a process that was killed while it wrote
    part.write_bytes(log.derived.read_bytes())
    secret = b"of-seven"
    assert secret in log.derived.read_bytes()
    log.forget(7_777_777_777)
    assert snapshot_of(log).forget(7_777_777_777)
    assert not snapshot_of(log).forget(7_777_777_777)
    assert all(secret not in file.read_bytes() for file in log.derived.parent.glob("feedback.db*"))
    assert log.derived.stat().st_mode & 0o777 == 0o600
    assert snapshot_of(log).load(UserStates(bare.published, bare.record), log) is not None
    intake.follow()
    assert contents(start(bare, log)[1]) == contents(states)


def test_a_snapshot_with_counts_of_all_users_goes_with_a_forgotten_one(run: SmallRun, log: SqliteFeedbackLog) -> None:
    intake, states = start(run, log)
    accept(intake, [event(3, 1003, ms=NOW), *some(40)])
    intake.close()
    assert not snapshot_of(log).forget(999)
    assert log.derived.exists()
    log.forget(3)
    assert snapshot_of(log).forget(3)
    assert not log.derived.exists()
    intake.follow()
    assert contents(start(run, log)[1]) == contents(states)


def test_forgetting_waits_for_who_writes_what_it_knew_before(run: SmallRun, log: SqliteFeedbackLog) -> None:
    intake, _ = start(run, log)
    accept(intake, [event(7, 1003, experiment="of-seven"), *some(40)])
    snapshot = snapshot_of(log)
    code = f"""
from pathlib import Path
from pocketrank.cloud.pages.state_snapshot import StateSnapshot
print("begins", flush=True)
StateSnapshot(Path({str(log.derived)!r})).forget(7)
"""
    with snapshot.turn() as mine, ExitStack() as stack:
        assert mine
        forgetting = stack.enter_context(subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True))
        assert forgetting.stdout is not None
        assert forgetting.stdout.readline() == "begins\n"
        with snapshot.turn() as second:
            assert not second
        assert not intake.save(), "one process at a time"
        log.derived.write_bytes(b"it holds of-seven")
        stack.pop_all()
    assert forgetting.wait(30) == 0
    assert not log.derived.exists()


def test_expired_events_leave_the_snapshot_and_the_states_that_start_from_it(bare: SmallRun, tmp_path: Path) -> None:
    path = tmp_path / "feedback.db"
    with closing(SqliteFeedbackLog(path, SqliteLogConfig(keep_days=30))) as log:
        intake, _ = start(bare, log)
        accept(intake, [event(7_777_777_777, 1003, experiment="of-seven"), *some(30)])
        intake.save(hurry=True)
        accept(intake, some(20, 30))
        with log._writing as db:
            db.execute("UPDATE event SET added_ms = added_ms - 31 * 86400000 WHERE place <= 20")
        assert log.expire() == 20
        expected = UserStates(bare.published, bare.record)
        FeedbackIntake(log, expected)
        assert contents(start(bare, log)[1]) == contents(expected)
        assert b"of-seven" in log.derived.read_bytes()
        assert intake.save(hurry=True), "because the log begins later now"
        assert b"of-seven" not in log.derived.read_bytes()
        assert contents(start(bare, log)[1]) == contents(expected)


def test_records_that_cannot_be_read_are_still_counted_after_a_start_from_a_snapshot(
    run: SmallRun, log: SqliteFeedbackLog
) -> None:
    log.append(some(30))
    with log._writing as db:
        db.execute("UPDATE event SET body = x'c1' WHERE place IN (3, 30)")
    intake, _ = start(run, log)
    intake.close()
    assert log.unreadable == 2
    with closing(opened(log.derived.with_name("feedback.db"))) as again:
        assert start(run, again)[0].replayed == 28
        assert again.unreadable == 2


def test_snapshots_are_written_in_the_background_when_due(run: SmallRun, log: SqliteFeedbackLog) -> None:
    from tests.cloud.serving.running import until

    states = UserStates(run.published, run.record)
    intake = FeedbackIntake(log, states, snapshot=snapshot_of(log, events=30, check_s=0.01))
    accept(intake, some(29))
    accept(intake, some(1, 29))
    until(lambda: (header := snapshot_of(log).header()) and header.place == 30, "a snapshot of 30 events")
    intake.close()


def test_a_disk_without_room_costs_the_snapshot_alone(
    run: SmallRun, log: SqliteFeedbackLog, caplog: pytest.LogCaptureFixture
) -> None:
    intake, _ = start(run, log)
    accept(intake, some(40))
    log.derived.mkdir()  # nothing can be put in its place
    intake.close()
    assert caplog.messages[-1].startswith("no snapshot of the users' states could be written: ")
    assert not list(log.derived.parent.glob("*.part"))


_SERVER = """
import itertools, sys
from pathlib import Path
from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.state_snapshot import SnapshotConfig, StateSnapshot
from pocketrank.cloud.pages.user_state import UserStates
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from tests.cloud.events import accept, event
log = SqliteFeedbackLog(Path(sys.argv[1]) / "feedback.db")
states = UserStates(*Published.open(Path(sys.argv[2])))
intake = FeedbackIntake(log, states, snapshot=StateSnapshot(log.derived, SnapshotConfig(events=50, check_s=0.001)))
for batch in itertools.count(intake.replayed):
    ms = 1_700_000_000_000 + batch
    accept(intake, [event(1 + i % 5, 1000 + 3 * (i % 20), ms=ms, event_id=f"{batch}-{i}") for i in range(20)])
    print(batch, flush=True)
"""


def test_kills_and_power_cuts_while_it_is_written_leave_a_snapshot_that_is_right(run: SmallRun, tmp_path: Path) -> None:
    rng, folder, used = random.Random(0), None, 0
    for life in range(6):
        disk = disk_of(tmp_path / f"power-{life}")
        for file in folder.iterdir() if folder is not None else ():
            (disk.root / file.name).write_bytes(file.read_bytes())
        with disk.process(_SERVER, str(run.folder / "published")) as server:
            server.read(rng.randint(5, 40))
            server.kill()
        for how in (rng, None):
            folder = disk.after_cut(tmp_path / f"after-{life}-{how is None}", how)
            with closing(opened(folder / "feedback.db")) as log:
                started = UserStates(run.published, run.record)
                used += snapshot_of(log).load(started, log) is not None
                whole = UserStates(run.published, run.record)
                FeedbackIntake(log, whole)
                assert contents(start(run, log)[1]) == contents(whole)
    assert used >= 6
