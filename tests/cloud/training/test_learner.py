import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import numpy as np
import pytest

from pocketrank.cloud.published.item_encoder import ItemEncoder
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.streams.event_log import NewRecord
from pocketrank.cloud.streams.messages import ItemChange, ParameterPart
from pocketrank.cloud.streams.parameters import check_part
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.errors import RunError
from pocketrank.cloud.training.guard import GuardConfig
from pocketrank.cloud.training.increments import IncrementConfig, IncrementTraining
from pocketrank.cloud.training.learner import CONSUMER, Learner, LearnerConfig
from pocketrank.cloud.training.learning_base import open_base
from pocketrank.cloud.training.row_table import RowConfig
from pocketrank.device.codec import to_msgpack
from tests.cloud.training.learned_world import append, learner_of, published, samples
from tests.shared import made_once

FAST = LearnerConfig(IncrementConfig(RowConfig(learning_rate=2.0, clip=10.0), RowConfig(learning_rate=2.0, clip=10.0)))
"""A run with random weights hardly depends on its rows."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "learned_world", lambda folder: str(published(folder)))[0] / "published"


@pytest.fixture
def base(made: Path, tmp_path: Path) -> Path:
    return copytree(made, tmp_path / "published")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[SqliteEventLog]:
    opened = SqliteEventLog(tmp_path / "events")
    yield opened
    opened.close()


def parts(log: SqliteEventLog) -> list[ParameterPart]:
    return [check_part(record.value) for record in log.read("parameters", {}, 10_000).records]


def learned(learner: Learner) -> tuple[object, object]:
    return learner.training.items.copy(), learner.training.users.copy()


def all_read(learner: Learner) -> None:
    while learner.step():
        pass


def test_a_base_reproduces_what_the_run_published(base: Path) -> None:
    opened, (tables, _) = open_base(base), Published.open(base)
    training = IncrementTraining(opened)
    rows = training.item_rows(tables.item_id[1:].tolist())
    assert np.array_equal(rows["item_identity"], tables.item_identity[1:])
    assert np.array_equal(rows["item_row"], tables.item_row[1:])
    assert np.array_equal(training.user_rows(tables.user_id.tolist())["user_row"], tables.user_row)


def test_a_run_without_a_base_is_refused_in_one_line(base: Path) -> None:
    (base / "learning" / "base.json").unlink()
    with pytest.raises(RunError, match="can be learned on"):
        open_base(base)


def test_a_new_item_has_the_rows_of_its_attributes(base: Path) -> None:
    opened, (tables, record) = open_base(base), Published.open(base)
    encoder = ItemEncoder(base, tables, record)
    author = int(tables.item_author[5])
    same = ItemChange(
        item_id=1 << 50, changed_ms=0, author_id=author, category=int(tables.item_category[5, 0]), duration_ms=9000
    )
    other = ItemChange(item_id=(1 << 50) + 1, changed_ms=0, duration_ms=9000)
    rows = encoder.columns_of([same, other, same])
    own = opened.item_width
    side = slice(own, own + 2 * opened.config.side_width)
    assert np.array_equal(rows["item_identity"][0, side], tables.item_identity[5, side]), "author and category"
    assert not np.array_equal(rows["item_identity"][1, side], tables.item_identity[5, side])
    assert all(np.array_equal(values[0], values[2]) for values in rows.values())
    statistics = encoder.statistics_of(encoder.new_items([same]))[0]
    block = len(record.tasks) + 1
    assert np.array_equal(statistics[block : 2 * block], opened.statistics[5, block : 2 * block])
    assert not statistics[:block].any(), "nobody has seen it"


def test_what_is_learned_is_predicted(base: Path) -> None:
    training, batch, losses = IncrementTraining(open_base(base), FAST.increments), samples(base, 20), []
    for _ in range(300):
        result = training.step(batch)
        p, y = result.probability[:, 0].clip(1e-6, 1 - 1e-6), result.labels[:, 0]
        losses.append(-(y * np.log(p) + (1 - y) * np.log(1 - p)).mean())
    assert losses[-1] < 0.9 * losses[0]


def test_a_correction_takes_back_what_a_wrong_label_taught(base: Path) -> None:
    config = IncrementConfig(RowConfig(admit=1, learning_rate=0.01), RowConfig(admit=1, learning_rate=0.01), statistics=False)
    (sample,) = samples(base, 1, of=1)
    wrong, right = ({**sample.labels, "like": value} for value in (True, False))
    fields = {name: getattr(sample, name) for name in sample.__struct_fields__ if name not in ("labels", "before", "revision")}
    kind = type(sample)
    told, corrected = IncrementTraining(open_base(base), config), IncrementTraining(open_base(base), config)
    told.step([kind(**fields, labels=wrong)])
    corrected.step([kind(**fields, labels=wrong)])
    corrected.step([kind(**fields, labels=right, before=wrong, revision=1)])
    likes = [one.step([kind(**fields, labels=right)], learn=False).probability[0, 1] for one in (told, corrected)]
    assert likes[1] < likes[0]


def test_increments_have_numbers_without_gaps_and_the_rows_that_changed(
    base: Path, log: SqliteEventLog, tmp_path: Path
) -> None:
    learner = learner_of(base, log, tmp_path / "state")
    made = samples(base, 400)
    for start in range(0, 400, 80):
        append(log, made[start : start + 80])
        all_read(learner)
        assert learner.publish()
        assert not learner.publish(), "nothing has changed since"
    found = parts(log)
    assert [part.sequence for part in found] == [1, 2, 3, 4, 5]
    last: dict[int, bytes] = {}
    for part in found:
        assert part.items is not None
        ids, rows = np.frombuffer(part.items.ids, "<i8"), part.items.columns["item_row"]
        width = len(rows) // len(ids)
        last |= {item: rows[i * width : (i + 1) * width] for i, item in enumerate(ids.tolist())}
    assert sorted(last) == sorted(learner.training.items.ids())
    now = learner.training.item_rows(list(last))["item_row"]
    rows = np.stack([np.frombuffer(row, np.float16) for row in last.values()])
    assert np.allclose(rows, now, atol=2e-3), "up to what a product of matrices of another size rounds"
    learner.close()


def test_kills_at_any_moment_change_nothing_of_what_is_learned(base: Path, log: SqliteEventLog, tmp_path: Path) -> None:
    append(log, samples(base, 2000))
    state, path, rng = tmp_path / "state", tmp_path / "events", np.random.default_rng(0)
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.cloud.training.learned_world", str(base), str(path), str(state)],
            stdout=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        before = log.ends("parameters").get(0, 0)
        for _ in range(int(rng.integers(0, 3000))):
            if log.ends("parameters").get(0, 0) > before + 1:
                break
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
    learner = learner_of(base, log, state, samples=100)
    all_read(learner)
    learner.publish()
    other = SqliteEventLog(tmp_path / "other")
    append(other, samples(base, 2000))
    uninterrupted = learner_of(base, other, tmp_path / "other-state", samples=100)
    all_read(uninterrupted)
    assert learned(learner) == learned(uninterrupted)
    numbers = [part.sequence for part in parts(log)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert log.committed(CONSUMER)["parameters"][0] == learner.sequence == numbers[-1]
    for one in (learner, uninterrupted, other):
        one.close()


def test_how_much_is_read_at_a_time_changes_nothing(base: Path, log: SqliteEventLog, tmp_path: Path) -> None:
    append(log, samples(base, 600))
    found = []
    for number, count in enumerate((1, 37, 5000)):
        learner = learner_of(base, log, tmp_path / f"state{number}", samples=count)
        all_read(learner)
        found.append(learned(learner))
    assert found[0] == found[1] == found[2]


def test_flipped_labels_are_noticed_and_taken_back(base: Path, log: SqliteEventLog, tmp_path: Path) -> None:
    learner = learner_of(base, log, tmp_path / "state", guard=GuardConfig(window=500), good_every=500)
    states = [learned(learner)]

    def learn(count: int, seed: int, *, flipped: bool = False) -> None:
        made = samples(base, count, seed, flipped=flipped)
        for start in range(0, count, 40):
            append(log, made[start : start + 40])
            all_read(learner)
            if not flipped:
                states.append(learned(learner))

    learn(3000, seed=0)
    assert (learner.counts.rollbacks, learner.counts.is_paused) == (0, False)
    learner.publish()
    learn(1000, seed=1, flipped=True)
    assert (learner.counts.rollbacks, learner.counts.is_paused) == (1, True)
    assert learned(learner) in states[1:], "what was learned before is known again"
    assert learner.publish(), "servers get what it goes back to"
    learn(1000, seed=2)
    assert not learner.counts.is_paused, "it goes on once labels are right again"
    assert learner.counts.rollbacks == 1
    learner.close()


def test_a_forgotten_user_has_no_row_any_more(base: Path, log: SqliteEventLog, tmp_path: Path) -> None:
    learner = learner_of(base, log, tmp_path / "state")
    append(log, samples(base, 400))
    all_read(learner)
    user = learner.training.users.ids()[0]
    learner.publish()
    log.forget(user)
    all_read(learner)
    assert user not in learner.training.users
    learner.publish()
    users = parts(log)[-1].users
    assert users is not None
    assert user in np.frombuffer(users.removed, "<i8").tolist()
    learner.close()
    assert learner_of(base, log, tmp_path / "state").training.users.pack(user) is None


def test_a_damaged_record_stops_nothing(base: Path, log: SqliteEventLog, tmp_path: Path) -> None:
    log.append("samples", [NewRecord(1, b"no sample")])
    append(log, samples(base, 80))
    log.append("items", [NewRecord(1, b"no item"), NewRecord(5, to_msgpack(ItemChange(item_id=1 << 40, changed_ms=1)))])
    learner = learner_of(base, log, tmp_path / "state")
    all_read(learner)
    assert (learner.counts.unreadable, learner.counts.samples) == (2, 80)
    learner.close()


def test_a_lost_state_goes_on_with_the_next_number(base: Path, log: SqliteEventLog, tmp_path: Path) -> None:
    append(log, samples(base, 160))
    first = learner_of(base, log, tmp_path / "state")
    all_read(first)
    first.close()
    second = learner_of(base, log, tmp_path / "other")
    snapshot = parts(log)[-1]
    assert (snapshot.kind, snapshot.sequence) == ("snapshot", 1)
    assert snapshot.items is None, "it knows nothing yet, and servers are told so"
    all_read(second)
    second.close()
    assert [part.sequence for part in parts(log)] == [1, 1, 2]
