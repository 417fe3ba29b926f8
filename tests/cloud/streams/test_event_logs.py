"""What every backend of the event log does: SQLite's file, and a real Kafka broker."""

import socket
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Thread
from time import monotonic
from uuid import uuid4

import pytest

from pocketrank.cloud.streams.event_log import EventLog, EventLogOpenError, EventLogWriteError, NewRecord, Topic
from pocketrank.cloud.streams.kafka import KafkaConfig, KafkaEventLog
from pocketrank.cloud.streams.opening import open_event_log
from tests.kafka_server import JARS, KafkaServer

Open = Callable[[], EventLog]
CONFIG = KafkaConfig(replication=1)


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    if not (JARS / ".installed").exists():
        pytest.skip("no Kafka: `make test` gets it")
    server = KafkaServer(tmp_path_factory.mktemp("kafka"))
    server.start()
    KafkaEventLog(server.servers, replace(CONFIG, timeout_s=60)).close()
    yield server
    server.kill()


@pytest.fixture(params=["sqlite", "kafka"])
def open_log(request: pytest.FixtureRequest, tmp_path: Path) -> Open:
    if request.param == "sqlite":
        return lambda: open_event_log(tmp_path / "events")
    address = f"kafka://{request.getfixturevalue('broker').servers}/{uuid4()}"
    return lambda: open_event_log(address, kafka=CONFIG)


@pytest.fixture
def log(open_log: Open) -> Iterator[EventLog]:
    opened = open_log()
    yield opened
    opened.close()


def record(number: int, key: int = 1) -> NewRecord:
    return NewRecord(key, f"value {number}".encode())


def values(log: EventLog, topic: Topic = "pages") -> list[bytes]:
    found, after = [], dict[int, int]()
    while (part := log.read(topic, after, 7)).records:
        found += [one.value for one in part.records]
        after = dict(part.offsets)
    return found


def test_records_are_read_in_their_order_and_once(log: EventLog) -> None:
    for start in range(0, 30, 3):
        log.append("pages", [record(number) for number in range(start, start + 3)])
    assert values(log) == [f"value {number}".encode() for number in range(30)]
    end = log.ends("pages")
    assert not log.read("pages", end).records
    log.append("pages", [record(30)])
    part = log.read("pages", end)
    assert [one.value for one in part.records] == [b"value 30"]
    assert part.offsets == log.ends("pages")


def test_topics_do_not_mix(log: EventLog) -> None:
    log.append("pages", [record(1)])
    log.append("samples", [record(2)])
    assert (values(log, "pages"), values(log, "samples"), values(log, "items")) == ([b"value 1"], [b"value 2"], [])


def test_a_place_is_kept_with_its_effect_or_neither_is(log: EventLog) -> None:
    log.commit("join", {"pages": {0: 5}, "feedback": {0: 2}}, "samples", [record(1)])
    log.commit("join", {"pages": {0: 6}})
    log.commit("other", {"pages": {0: 1}})
    assert log.committed("join") == {"pages": {0: 6}, "feedback": {0: 2}}
    assert log.committed("nobody") == {}
    with pytest.raises(EventLogWriteError):
        log.commit("join", {"pages": {0: 7}}, "samples", [record(2), NewRecord(1, None)])  # type: ignore[arg-type]
    assert log.committed("join")["pages"] == {0: 6}
    assert values(log, "samples") == [b"value 1"]


def test_another_process_reads_what_was_written(log: EventLog, open_log: Open) -> None:
    other = open_log()
    log.append("items", [record(1)])
    assert values(other, "items") == [b"value 1"]
    other.append("items", [record(2)])
    assert values(log, "items") == [b"value 1", b"value 2"]
    other.close()


def test_a_reader_that_waits_gets_the_record_that_comes(log: EventLog, open_log: Open) -> None:
    found = []
    reader = Thread(target=lambda: found.append(log.read("pages", {}, wait_s=30).records))
    reader.start()
    other = open_log()
    other.append("pages", [record(1)])
    reader.join(30)
    other.close()
    assert [one.value for one in found[0]] == [b"value 1"]


def test_a_forgotten_user_is_named_in_each_topic_of_users(log: EventLog) -> None:
    log.append("pages", [record(1, key=7), record(2, key=8)])
    log.forget(7)
    for topic in ("pages", "samples", "users"):
        last = log.read(topic, {}).records[-1]
        assert (last.key, last.value) == (7, b"")
    assert b"value 2" in values(log)


def test_a_check_of_a_log_that_works_leaves_no_record(log: EventLog) -> None:
    log.check()
    assert [values(log, topic) for topic in ("pages", "samples")] == [[], []]


def test_a_closed_log_takes_and_gives_nothing(log: EventLog) -> None:
    log.append("pages", [record(1)])
    log.close()
    log.close()
    with pytest.raises(EventLogWriteError, match="closed"):
        log.append("pages", [record(1)])
    with pytest.raises(EventLogOpenError, match="closed"):
        log.read("pages", {})


def test_a_key_stays_in_its_partition(broker: KafkaServer) -> None:
    config = replace(CONFIG, prefix=str(uuid4()), partitions=3)
    log = KafkaEventLog(broker.servers, config)
    log.append("pages", [record(number, key=number % 10 - 5) for number in range(60)])
    other = KafkaEventLog(broker.servers, config)
    other.append("pages", [record(number, key=number % 10 - 5) for number in range(60, 90)])
    part = other.read("pages", {})
    assert {one.partition for one in part.records} == {0, 1, 2}
    for key in range(-5, 5):
        of_key = [one for one in part.records if one.key == key]
        assert len({one.partition for one in of_key}) == 1
        assert [one.value for one in of_key] == [f"value {number}".encode() for number in range(key + 5, 90, 10)]
    assert part.offsets == log.ends("pages")
    log.close()
    other.close()


def test_a_broker_that_is_killed_has_lost_nothing_when_it_is_back(broker: KafkaServer) -> None:
    config = replace(CONFIG, prefix=str(uuid4()), timeout_s=2)
    log = KafkaEventLog(broker.servers, config)
    for number in range(20):
        log.commit("reader", {"pages": {0: number}}, "pages", [record(number)])
    broker.kill()
    started = monotonic()
    with pytest.raises(EventLogWriteError):
        log.append("pages", [record(99)])
    assert monotonic() - started < 5
    with pytest.raises(EventLogOpenError):
        log.read("pages", {})
    log.close()
    broker.start()
    again = KafkaEventLog(broker.servers, replace(config, timeout_s=60))
    assert values(again) == [f"value {number}".encode() for number in range(20)]
    assert again.committed("reader") == {"pages": {0: 19}}
    again.append("pages", [record(20)])
    assert values(again)[-1] == b"value 20"
    again.close()


def test_an_address_where_nobody_answers_is_an_error_in_time() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        started = monotonic()
        with pytest.raises(EventLogOpenError, match="broker"):
            KafkaEventLog(f"127.0.0.1:{free.getsockname()[1]}", KafkaConfig(timeout_s=1))
    assert monotonic() - started < 5


@pytest.mark.parametrize("where", ["kafka://one", "kafka://one:1", "kafka://one:1/", "kafka:/one:1/x", "kafka://one:x/y"])
def test_an_address_that_is_none_is_refused(where: str) -> None:
    with pytest.raises(EventLogOpenError, match="PREFIX"):
        open_event_log(where)
