import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from random import Random

import pytest
from msgspec.structs import replace

from pocketrank.cloud.streams.event_log import EventLog, EventLogWriteError, NewRecord
from pocketrank.cloud.streams.feedback_log import LoggedEvent
from pocketrank.cloud.streams.join import CONSUMER, Join, JoinConfig, JoinStateError
from pocketrank.cloud.streams.messages import Sample
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackEvent
from tests.cloud.events import event
from tests.cloud.serving.running import until
from tests.cloud.streams.batch_join import last_revisions, random_records, served
from tests.cloud.streams.killed_join import duration, join_all, opened_join, opened_log


def write_records(folder: Path, users: int = 60) -> None:
    """Write the records of random sessions to a log; those of a time together."""
    records = random_records(Random(7), users=users)
    with closing(SqliteFeedbackLog(folder / "feedback.db")) as feedback, closing(event_log(folder, feedback)) as log:
        for start in range(0, len(records), 25):
            part = records[start : start + 25]
            log.append("pages", [NewRecord(record.key, record.value) for topic, record in part if topic == "pages"])
            feedback.append([from_msgpack(record.value, LoggedEvent) for topic, record in part if topic == "feedback"])


def event_log(folder: Path, feedback: SqliteFeedbackLog) -> SqliteEventLog:
    return SqliteEventLog(folder / "events.db", feedback)


def samples_of(log: EventLog) -> list[Sample]:
    """Return all samples. Asserts that each batch is whole."""
    samples = [from_msgpack(record.value, Sample) for record in log.read("samples", {}, 100_000).records]
    batches = [sample.batch for sample in samples]
    assert batches == sorted(batches)
    assert all(sample.of == count for count, sample in zip(map(Counter(batches).get, batches), samples, strict=True))
    return samples


def without_batch(samples: Sequence[Sample]) -> list[Sample]:
    return [replace(sample, batch=0, of=0) for sample in samples]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "log").mkdir()
    write_records(tmp_path / "log")
    return tmp_path / "log"


def test_killed_joins_send_what_one_sends_that_is_not_killed(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    records = join_all(whole)
    command = [sys.executable, "-m", "tests.cloud.streams.killed_join", str(folder), "25", "1"]
    joined, left = map(int, subprocess.run(command, check=True, capture_output=True, text=True).stdout.split())
    assert joined == 25
    assert 0 < left < records
    with opened_log(whole) as log, opened_log(folder) as killed:
        expected, got = samples_of(log), samples_of(killed)
    assert without_batch(got) == without_batch(expected)
    assert len(last_revisions(got)) > 100


def test_how_records_are_read_changes_no_sample(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    assert join_all(whole, records=1000) == join_all(folder, records=7)
    with opened_log(whole) as log, opened_log(folder) as other:
        assert without_batch(samples_of(log)) == without_batch(samples_of(other))


def test_a_join_whose_state_is_lost_sends_nothing_twice(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    join_all(whole, records=40)
    with opened_log(folder) as log:
        with closing(opened_join(folder, log, records=20)) as join:
            for _ in range(9):
                join.step()
        sent = len(samples_of(log))
        for path in folder.glob("join.db*"):
            path.unlink()
        join_all(folder, records=40)
        with opened_log(whole) as other:
            assert without_batch(samples_of(log)) == without_batch(samples_of(other))
            assert 0 < sent < len(samples_of(log))


def test_a_join_whose_state_is_lost_corrects_what_was_sent_and_is_other_now(tmp_path: Path) -> None:
    with closing(Small(tmp_path)) as small:
        small.add(event(item_id=6, page_id="p", watch_ms=5000), event(item_id=7, page_id="p", position=1))
        with closing(Join(small.log, tmp_path / "join.db", lambda item: None)) as join:
            join.step()
        for path in tmp_path.glob("join.db*"):
            path.unlink()
        with closing(Join(small.log, tmp_path / "join.db", lambda item: 5000)) as join:
            join.step()
        samples = samples_of(small.log)
        *before, last = samples
        assert not any(one.labels["effective_view"] for one in before)
        assert (last.item_id, last.labels["effective_view"]) == (6, True)
        assert len(last_revisions(samples)) == 2


def test_samples_that_the_log_did_not_take_are_committed_later(folder: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    shutil.copytree(folder, whole)
    join_all(whole, records=40)
    with opened_log(folder) as log, closing(opened_join(folder, log, records=40)) as join:
        for turn in range(12):
            if turn % 3:
                join.step()
                continue
            with closing(sqlite3.connect(folder / "events.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")  # the log cannot be written meanwhile
                for _ in range(2):
                    with pytest.raises(EventLogWriteError):
                        join.step()
        while join.step():
            pass
        with opened_log(whole) as other_log:
            assert without_batch(samples_of(log)) == without_batch(samples_of(other_log))


class Small:
    """A log with one page, and what it takes to join it."""

    def __init__(self, folder: Path) -> None:
        self.feedback = SqliteFeedbackLog(folder / "feedback.db")
        self.log = event_log(folder, self.feedback)
        self.log.append("pages", [NewRecord(1, to_msgpack(served("p", 1, "s", [5, 6, 7], 0)))])

    def add(self, *events: FeedbackEvent) -> None:
        self.feedback.append(events)

    def close(self) -> None:
        self.log.close()
        self.feedback.close()


def test_a_sample_is_in_the_log_after_the_step_that_read_its_event(tmp_path: Path) -> None:
    with closing(Small(tmp_path)) as small, closing(opened_join(tmp_path, small.log, records=100)) as join:
        assert join.step() == 1
        small.add(event(item_id=6, page_id="p"))
        assert join.step() == 1
        (sample,) = samples_of(small.log)
        assert (sample.item_id, sample.place, sample.batch, sample.of) == (6, 1, 2, 1)
        assert 0 <= join.counts.lag_s < 5
        assert small.log.committed(CONSUMER) == {"pages": {0: 2}, "feedback": {0: 2}, "samples": {0: 2}}
        assert join.step() == 0
        assert small.log.committed(CONSUMER)["samples"] == {0: 2}, "nothing is committed when nothing comes"


def test_time_goes_on_when_no_record_comes(tmp_path: Path) -> None:
    config = JoinConfig(wait_ms=80, session_ms=100)
    with closing(Small(tmp_path)) as small:
        small.add(event(item_id=6, page_id="p"))
        with closing(Join(small.log, tmp_path / "join.db", duration, config, idle_ms=0)) as join:
            assert join.step() == 2
            until(lambda: join.step() == 0 and join.counts.samples == 2, "the end of the session")
        assert [sample.labels.get("has_next") for sample in samples_of(small.log)] == [None, False]


def test_a_forgotten_user_has_no_samples(tmp_path: Path) -> None:
    with closing(Small(tmp_path)) as small, closing(opened_join(tmp_path, small.log, records=100)) as join:
        small.add(event(item_id=6, page_id="p"))
        join.step()
        small.feedback.forget(1)
        small.log.forget(1)
        small.add(event(item_id=7, page_id="p"))
        while join.step():
            pass
        assert join.counts.forgotten >= 1
        assert [record.value for record in small.log.read("samples", {}).records] == [b""]


def test_two_processes_do_not_share_a_state(tmp_path: Path) -> None:
    with closing(Small(tmp_path)) as small, closing(opened_join(tmp_path, small.log)):
        with pytest.raises(JoinStateError, match="no other process"):
            opened_join(tmp_path, small.log)
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "join.db").write_bytes(b"no database" * 100)
        with pytest.raises(JoinStateError, match="not a database"):
            opened_join(tmp_path / "other", small.log)
