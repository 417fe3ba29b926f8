"""What a learner does after kills, rollbacks, failures of the log, and samples that do not fit."""

import shutil
import sqlite3
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pocketrank.cloud.streams.event_log import EventLogWriteError, NewRecord
from pocketrank.cloud.streams.messages import ItemChange, ParameterPart, ParameterTable
from pocketrank.cloud.streams.parameters import check_part
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog, SqliteEventsConfig
from pocketrank.cloud.training.guard import GuardConfig
from pocketrank.cloud.training.increments import IncrementTraining
from pocketrank.cloud.training.learner import Learner, LearnerConfig
from pocketrank.cloud.training.learning_base import open_base
from pocketrank.device.codec import to_msgpack
from tests.cloud.training.learn_until_killed import CONFIG, learn_all
from tests.cloud.training.learned_world import append, published, samples
from tests.shared import made_once

change = msgspec.structs.replace
NO_GUARD = replace(CONFIG, guard=GuardConfig(window=10**9), publish_s=1.0)
Tables = dict[str, dict[int, bytes]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "learned_world", lambda folder: str(published(folder)))[0] / "published"


def opened(log: SqliteEventLog, base: Path, path: Path, config: LearnerConfig = NO_GUARD) -> Learner:
    return Learner(log, open_base(base), path, config)


def learn(learner: Learner) -> None:
    while learner.step():
        pass


def learned(learner: Learner) -> Tables:
    """All that was learned, with the optimiser's state."""
    training = learner.training
    rows: Tables = {"items": {}, "users": {}, "counts": {}}
    for kind, table in (("items", training.items), ("users", training.users)):
        rows[kind] = {id: data for id in table.ids() if (data := table.pack(id)) is not None}
    rows["counts"] = {id: data for id in training.items.ids() if (data := training.counts(0, id)) is not None}
    return rows


def parts(log: SqliteEventLog, after: dict[int, int] | None = None) -> list[ParameterPart]:
    return [check_part(record.value) for record in log.read("parameters", after or {}, 100_000).records]


def applied(found: list[ParameterPart]) -> Tables:
    """What a server makes of parts: rows that differ from the run's, columns side by side."""
    tables: Tables = {"items": {}, "users": {}}
    for part in found:
        if part.kind == "snapshot" and part.part == 0:
            tables = {"items": {}, "users": {}}
        for kind, table in (("items", part.items), ("users", part.users)):
            if table is not None:
                for id in np.frombuffer(table.removed, "<i8").tolist():
                    tables[kind].pop(id, None)
                tables[kind].update(_rows(table))
    return tables


def _rows(table: ParameterTable) -> dict[int, bytes]:
    ids = np.frombuffer(table.ids, "<i8").tolist()
    assert len(set(ids)) == len(ids)
    columns = [np.frombuffer(data, np.uint8).reshape(len(ids), -1) for _, data in sorted(table.columns.items()) if ids]
    return {id: b"".join(column[at].tobytes() for column in columns) for at, id in enumerate(ids)}


def export(learner: Learner) -> Tables:
    training = learner.training
    items, users = training.items.ids(), training.users.ids()
    of_items = [rows for _, rows in sorted(training.item_rows(items).items())]
    return {
        "items": {id: b"".join(rows[at].tobytes() for rows in of_items) for at, id in enumerate(items)},
        "users": {id: row.tobytes() for id, row in zip(users, training.user_rows(users)["user_row"], strict=True)},
    }


def test_a_learner_that_is_killed_learns_and_publishes_as_one_that_is_not(base: Path, tmp_path: Path) -> None:
    """Good samples, then flipped ones, then good ones again: the guard goes back in between."""
    log = SqliteEventLog(tmp_path / "log")
    append(log, samples(base, 1600) + samples(base, 800, seed=1, flipped=True) + samples(base, 800, seed=2))
    log.close()
    shutil.copy(tmp_path / "log", tmp_path / "log-killed")
    assert learn_all(tmp_path / "log", base, tmp_path / "state") > 0
    module = "tests.cloud.training.learn_until_killed"
    arguments = [tmp_path / "log-killed", base, tmp_path / "state-killed", 15]
    done = subprocess.run([sys.executable, "-m", module, *map(str, arguments)], stdout=subprocess.PIPE, check=True)
    assert int(done.stdout) == 15
    found = []
    for name in ("", "-killed"):
        log = SqliteEventLog(tmp_path / f"log{name}")
        learner = opened(log, base, tmp_path / f"state{name}", CONFIG)
        published = parts(log)
        increments = [part.sequence for part in published if part.kind == "increment"]
        assert increments == list(range(1, len(increments) + 1))
        from_snapshot = parts(log, dict(log.committed("parameters")["parameters"]))
        assert from_snapshot[0].kind == "snapshot"
        assert from_snapshot[0].part == 0
        found.append((learned(learner), applied(published), applied(from_snapshot)))
        assert found[-1][1].keys() == {"items", "users"}
        assert {kind: set(rows) for kind, rows in export(learner).items()} == {
            kind: set(rows) for kind, rows in found[-1][1].items()
        }
        assert export(learner)["users"] == found[-1][1]["users"] == found[-1][2]["users"]
        learner.close()
        log.close()
    assert found[0][0] == found[1][0]
    assert found[0][1]["users"] == found[1][1]["users"]


def test_an_increment_that_the_log_did_not_take_is_published_later(base: Path, tmp_path: Path) -> None:
    log = SqliteEventLog(tmp_path / "log", config=SqliteEventsConfig(busy_s=0.01))
    append(log, samples(base, 200))
    learner = opened(log, base, tmp_path / "state")
    learner.step()
    other = sqlite3.connect(tmp_path / "log", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    for _ in range(2):
        with pytest.raises(EventLogWriteError):
            learner.publish()
        learner.step()
    other.execute("ROLLBACK")
    other.close()
    learner.publish()
    found = parts(log)
    assert [part.sequence for part in found] == [1, 2]
    assert applied(found)["users"] == export(learner)["users"]
    learner.close()
    log.close()


def test_what_cannot_be_read_is_skipped(base: Path, tmp_path: Path) -> None:
    log = SqliteEventLog(tmp_path / "log")
    learner = opened(log, base, tmp_path / "state")
    log.append("samples", [NewRecord(1, b"\xff")])
    learn(learner)
    sample = samples(base, 1)[0]
    wide = change(sample.inputs, history_item=sample.inputs.history_item + b"\0" * 8)
    append(log, [change(sample, inputs=wide), sample])
    log.append("samples", [NewRecord(1, b"\xff")])
    learn(learner)
    assert (learner.counts.unreadable, learner.counts.samples) == (3, 1)
    assert learner.step() == 0
    learner.close()
    log.close()


def test_nothing_brings_a_forgotten_user_back(base: Path, tmp_path: Path) -> None:
    log = SqliteEventLog(tmp_path / "log")
    learner = opened(log, base, tmp_path / "state", CONFIG)
    append(log, samples(base, 1600))
    learn(learner)
    user = learner.training.users.ids()[0]
    log.forget(user)
    append(log, [one for one in samples(base, 800, seed=1, flipped=True) if one.inputs.user_id != user])
    learn(learner)
    assert learner.counts.rollbacks > 0
    assert user not in learner.training.users
    learner.publish()
    assert user not in applied(parts(log))["users"]
    learner.close()
    log.close()


def test_it_does_not_matter_when_new_items_are_read(base: Path, tmp_path: Path) -> None:
    log, new = SqliteEventLog(tmp_path / "log"), 10**12
    of_new = [change(one, item_id=new) for one in samples(base, 240)]
    put = ItemChange(item_id=new, changed_ms=0, author_id=3, category=2, duration_ms=9000)
    following = opened(log, base, tmp_path / "state")
    for number in range(6):
        append(log, of_new[40 * number : 40 * (number + 1)])
        if number == 2:
            log.append("items", [NewRecord(new, to_msgpack(put))])
        learn(following)
    at_once = opened(log, base, tmp_path / "state-late")
    learn(at_once)
    assert learned(at_once) == learned(following)
    assert new in at_once.training.items
    following.close()
    at_once.close()
    log.close()


def test_a_sample_of_a_run_with_other_inputs_does_not_fit(base: Path) -> None:
    training, sample = IncrementTraining(open_base(base)), samples(base, 1)[0]
    inputs = sample.inputs
    assert training.fits(sample)
    assert training.fits(change(sample, pxtr=b""))
    for bad in (
        change(sample, inputs=change(inputs, history_item=inputs.history_item + b"\0" * 8)),
        change(sample, inputs=change(inputs, history_item=inputs.history_item + b"\0")),
        change(sample, inputs=change(inputs, history_feedback=inputs.history_feedback + b"\0" * 4)),
        change(sample, inputs=change(inputs, sequence_item=b"\0" * 8, sequence_mask=b"\0" * 4)),
        change(sample, inputs=change(inputs, hour=24)),
        change(sample, statistics=b"\0" * 4),
        change(sample, pxtr=b"\0" * 4),
    ):
        assert not training.fits(bad)


def test_nothing_is_kept_of_items_that_expired(base: Path) -> None:
    """Not what was counted of them either: memory does not grow with the items that ever were."""
    training, sample = IncrementTraining(open_base(base), CONFIG.increments), samples(base, 1)[0]
    for _ in range(2):
        training.step([sample])
    item = sample.item_id
    assert training.counts(0, item) is not None
    assert training.changed_items() == ([item], [])
    training.expire(sample.event_ms + CONFIG.increments.items.expire_ms + 1)
    assert training.counts(0, item) is None
    assert training.changed_items() == ([], [item])
    assert training.items.ids() == []


def test_codes_that_the_run_does_not_know_are_unknown(base: Path) -> None:
    training = IncrementTraining(open_base(base))
    put = ItemChange(item_id=1 << 50, changed_ms=0, category=0)
    training.put([put, change(put, item_id=1 + (1 << 50), category=10**6), change(put, item_id=2 + (1 << 50), category=-5)])
    rows = training.item_rows([put.item_id, 1 + put.item_id, 2 + put.item_id])["item_row"]
    np.testing.assert_array_equal(rows[1:], rows[[0, 0]])
