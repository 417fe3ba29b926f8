"""Event log in a Kafka cluster: the backend for processes on several machines (extra `kafka`).

A topic is `PREFIX.topic`. Records are appended in transactions and read with `read_committed`, by assigned partitions and
never by the balancing of a consumer group. A key is in the partition that Kafka's own hash gives (`murmur2_random`, which Java
clients use too), so partitions must not be added to a topic that has records.

Consumers' places are records of the compacted topic `PREFIX.places` in the transaction of what was made of the records: the
places of a consumer group would expire after a week without a commit (`offsets.retention.minutes`).

Single records cannot be deleted in Kafka. `forget` appends a record with an empty value, which says that the user of its key
was forgotten. The topics `items` and `users` are compacted, so it replaces the user's earlier record in `users`; those in
`pages`, `feedback` and `samples` remain until their retention ends, after `KafkaConfig.days` plus the time until the cluster
closes a file of the log (`segment.ms`, a quarter of the days).

A write that fails before its commit was sent has written nothing. Where no broker answers the commit, the cluster may still
have made it: the error says so, and a caller that must not write twice reads the places (`committed`) or the topic again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from threading import Event, Lock
from time import monotonic
from typing import Any
from uuid import uuid4

from confluent_kafka import (
    OFFSET_BEGINNING,
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, NewTopic, OffsetSpec

from pocketrank.cloud.streams.event_log import (
    TOPICS,
    EventLog,
    EventLogOpenError,
    EventLogWriteError,
    NewRecord,
    Offsets,
    Record,
    Topic,
    TopicPart,
)

__all__ = ["KafkaConfig", "KafkaEventLog"]

_PLACES = "places"
_COMPACTED = ("items", "users", _PLACES)
_OF_USERS: tuple[Topic, ...] = ("pages", "feedback", "users", "samples")
_DAY_MS = 86_400_000
_SLICE_S = 0.1
_RETRY_S = 0.005
_SETTLE_S = 0.25
_ABORT_S = 1.0
_FETCH_WAIT_MS = 50  # longest wait of a fetch, and so for the news that a reader is at the end; the default is 500
_ELECTING = (KafkaError.NOT_LEADER_FOR_PARTITION, KafkaError.LEADER_NOT_AVAILABLE, KafkaError.UNKNOWN_TOPIC_OR_PART)


@dataclass(frozen=True)
class KafkaConfig:
    """Names, layout and waiting times. The layout is that of topics which do not exist yet."""

    prefix: str = "pocketrank"
    """Of the names of topics."""
    partitions: int = 1
    """Of `pages`, `feedback`, `items`, `users` and `samples`; `parameters` has one, since their order matters."""
    replication: int = 3
    """Copies of each record; a write waits for more than half of them."""
    days: Mapping[str, float] = field(
        default_factory=lambda: {"pages": 8.0, "feedback": 30.0, "samples": 30.0, "parameters": 2.0}
    )
    """Retention by topic, in days. Items and users keep the latest record of each key for ever: they are the catalogue."""
    record_bytes_max: int = 16 << 20
    """Size of the largest record."""
    timeout_s: float = 10.0
    """Longest wait for the cluster, in seconds, after which a call fails and the cluster undoes an unfinished transaction."""
    options: Mapping[str, str | int | float | bool] = field(default_factory=dict)
    """Further options of librdkafka for every client, such as `security.protocol`, `sasl.mechanism` and `ssl.ca.location`."""


@dataclass
class _Reader:
    """A topic's consumer and the place that it reads next."""

    consumer: Consumer
    places: dict[int, int] | None = None


class KafkaEventLog(EventLog):
    """Log in the cluster that `servers` (`host:port,host:port`) belong to; its topics are made if missing.

    Raises `EventLogOpenError`. One transaction is written at a time; processes write side by side.
    """

    def __init__(self, servers: str, config: KafkaConfig | None = None) -> None:
        self._config = config or KafkaConfig()
        self._name = f"kafka://{servers}/{self._config.prefix}"
        self._timeout_ms = round(1000 * self._config.timeout_s)
        self._client: dict[str, str | int | float | bool] = {
            "bootstrap.servers": servers,
            "socket.timeout.ms": self._timeout_ms,
            "reconnect.backoff.max.ms": 500,
            "log_level": 0,
            **self._config.options,
        }
        self._writer = f"{self._config.prefix}-{uuid4()}"
        self._write_lock, self._readers_lock, self._closed = Lock(), Lock(), Event()
        self._producer: Producer | None = None
        self._readers: dict[str, _Reader] = {}
        self._read_locks = {name: Lock() for name in (*TOPICS, _PLACES)}
        with self._opening():
            self._admin = AdminClient(self._client)
            self._partitions = self._make_topics()

    @contextmanager
    def _opening(self) -> Iterator[None]:
        if self._closed.is_set():
            raise EventLogOpenError(self._name, "an open log", "a closed one")
        try:
            yield
        except (KafkaException, ValueError) as error:
            expected = f"a broker that answers within {self._config.timeout_s:g} s"
            raise EventLogOpenError(self._name, expected, _text(error)) from error

    def _topic(self, name: str) -> str:
        return f"{self._config.prefix}.{name}"

    def _make_topics(self) -> dict[str, int]:
        """Make the topics that are missing, wait until all are known, and return their numbers of partitions."""
        until = monotonic() + self._config.timeout_s
        names = (*TOPICS, _PLACES)
        made = False
        while True:
            found = self._admin.list_topics(timeout=max(_SLICE_S, until - monotonic())).topics
            counts = {name: len(found[self._topic(name)].partitions) for name in names if self._topic(name) in found}
            if len(counts) == len(names):
                return counts
            if made and monotonic() > until:
                raise KafkaException(KafkaError(KafkaError.UNKNOWN_TOPIC_OR_PART))
            if made:
                self._closed.wait(_RETRY_S)
                continue
            new = [self._new_topic(name) for name in names if name not in counts]
            for future in self._admin.create_topics(new, request_timeout=self._config.timeout_s).values():
                try:
                    future.result()
                except KafkaException as error:
                    if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:  # another process makes them too
                        raise
            made = True

    def _new_topic(self, name: str) -> NewTopic:
        config = self._config
        layout = {"max.message.bytes": str(config.record_bytes_max), "min.insync.replicas": str(config.replication // 2 + 1)}
        if name in _COMPACTED:
            layout |= {"cleanup.policy": "compact", "max.compaction.lag.ms": str(_DAY_MS)}
        elif name in config.days:
            kept = max(1, round(config.days[name] * _DAY_MS))
            layout |= {"retention.ms": str(kept), "segment.ms": str(max(1, kept // 4))}
        else:
            layout |= {"retention.ms": "-1"}
        partitions = 1 if name in ("parameters", _PLACES) else config.partitions
        return NewTopic(self._topic(name), partitions, config.replication, config=layout)

    def append(self, topic: Topic, records: Sequence[NewRecord]) -> None:
        """Append records in one transaction. Raises `EventLogWriteError`."""
        self._write([(topic, _key(record.key), record.value) for record in records])

    def commit(
        self, consumer: str, offsets: Mapping[Topic, Offsets], topic: Topic | None = None, records: Sequence[NewRecord] = ()
    ) -> None:
        """Keep places and append records in one transaction. Raises `EventLogWriteError`."""
        made = [(topic, _key(record.key), record.value) for record in records] if topic is not None else []
        places = [
            (_PLACES, f"{consumer}/{name}/{partition}".encode(), str(place).encode())
            for name, of_topic in offsets.items()
            for partition, place in of_topic.items()
        ]
        self._write([*made, *places])

    def _write(self, rows: Sequence[tuple[str, bytes, Any]]) -> None:
        """Append to topics, all or nothing. Raises `EventLogWriteError`, also for a value that is not of bytes."""
        for name, _, value in rows:
            if not isinstance(value, bytes):
                raise EventLogWriteError(self._name, "a record of bytes", type(value).__name__)
            if len(value) + 1024 > self._config.record_bytes_max:  # key, headers and the batch around it
                expected = f"a record of {name} of at most {self._config.record_bytes_max} bytes"
                raise EventLogWriteError(self._name, expected, str(len(value)))
        with self._write_lock:
            if self._closed.is_set():
                raise EventLogWriteError(self._name, "an open log", "a closed one")
            if not rows:
                return
            until, sent = monotonic() + self._config.timeout_s, False
            try:
                producer = self._begin()
                for name, key, value in rows:
                    producer.produce(self._topic(name), value, key)
                if producer.flush(max(_SLICE_S, until - monotonic())):
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                sent = True
                producer.commit_transaction(max(_SLICE_S, until - monotonic()))
            except (KafkaException, BufferError, ValueError) as error:
                self._drop_producer()
                cause = error.args[0] if error.args else error
                is_open = sent and not (isinstance(cause, KafkaError) and cause.txn_requires_abort())
                got = f"{_text(error)}{'; whether the cluster committed is not known' if is_open else ''}"
                expected = f"a transaction within {self._config.timeout_s:g} s"
                raise EventLogWriteError(self._name, expected, got) from error

    def _begin(self) -> Producer:
        if self._producer is None:
            producer = Producer(
                self._client
                | {
                    "transactional.id": self._writer,
                    "transaction.timeout.ms": self._timeout_ms,
                    "message.timeout.ms": self._timeout_ms,
                    "message.max.bytes": self._config.record_bytes_max,
                    "partitioner": "murmur2_random",
                    "linger.ms": 0,
                }
            )
            producer.init_transactions(self._config.timeout_s)  # also ends what this writer left unfinished
            self._producer = producer
        self._producer.begin_transaction()
        return self._producer

    def _drop_producer(self) -> None:
        """Undo the transaction if the cluster answers; the next write starts anew."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            with suppress(KafkaException):
                producer.abort_transaction(_ABORT_S)

    def read(self, topic: Topic, after: Offsets, count: int = 1000, wait_s: float = 0.0) -> TopicPart:
        """Return up to `count` records after a place, in the order of each partition. Raises `EventLogOpenError`."""
        messages, offsets = self._read(topic, after, count, wait_s)
        records = [
            Record(
                int.from_bytes(message.key() or b"", "big", signed=True),
                message.value() or b"",
                message.timestamp()[1],
                message.partition() or 0,
                message.offset() or 0,
            )
            for message in messages
        ]
        return TopicPart(records, offsets)

    def _read(self, name: str, after: Offsets, count: int, wait_s: float) -> tuple[list[Message], Offsets]:
        """Messages after a place, and the place after them, beyond the marks of transactions."""
        wait_until = monotonic() + wait_s
        with self._read_locks[name], self._opening():
            reader = self._reader(name, after)
            places, messages = reader.places, list[Message]()
            assert places is not None
            ends, until = self._ends(name), monotonic() + self._config.timeout_s
            while len(messages) < count and not self._closed.is_set():
                now = monotonic()
                at_end = all(places[part] >= end for part, end in ends.items())
                if at_end and (messages or now >= wait_until):
                    break
                if not at_end and now >= until:
                    reader.places = None
                    raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
                first = reader.consumer.poll(min(_SLICE_S, (wait_until if at_end else until) - now))
                got = [first] if first is not None else []
                got += reader.consumer.consume(count - len(messages) - 1, 0) if got and count - len(messages) > 1 else []
                for message in got:
                    if (error := message.error()) is None:
                        messages.append(message)
                        places[message.partition() or 0] = (message.offset() or 0) + 1
                    elif error.code() == KafkaError._PARTITION_EOF:
                        places[message.partition() or 0] = message.offset() or 0
                    elif error.fatal():
                        reader.places = None
                        raise KafkaException(error)
                if messages and at_end:
                    ends = self._ends(name)  # what came after the wait
            return messages, {part: place for part, place in places.items() if place}

    def _reader(self, name: str, after: Offsets) -> _Reader:
        """The consumer of a topic, at a place."""
        with self._readers_lock:
            if name not in self._readers:
                consumer = Consumer(
                    self._client
                    | {
                        "group.id": self._writer,  # an option that must be there; the group has no members and no places
                        "isolation.level": "read_committed",
                        "enable.auto.commit": False,
                        "enable.auto.offset.store": False,
                        "auto.offset.reset": "earliest",
                        "enable.partition.eof": True,
                        "fetch.wait.max.ms": _FETCH_WAIT_MS,
                        "queued.max.messages.kbytes": 2 * self._config.record_bytes_max >> 10,
                    }
                )
                self._readers[name] = _Reader(consumer)
            reader = self._readers[name]
        places = {part: after.get(part, 0) for part in range(self._partitions[name])}
        if reader.places != places:
            starts = [TopicPartition(self._topic(name), part, place or OFFSET_BEGINNING) for part, place in places.items()]
            reader.consumer.assign(starts)
            reader.places = places
        return reader

    def ends(self, topic: Topic) -> Offsets:
        """Return the place after the last record that was committed. Raises `EventLogOpenError`."""
        with self._opening():
            return {part: place for part, place in self._ends(topic).items() if place}

    def _ends(self, name: str, settle_s: float = _SETTLE_S) -> dict[int, int]:
        """By partition, the place after the last committed record, once the transactions that are open now have ended.

        A commit is durable a moment before its records can be read. Waits `settle_s` seconds at most.
        """
        written = self._list_ends(name, IsolationLevel.READ_UNCOMMITTED)
        until = monotonic() + settle_s
        while True:
            ends = self._list_ends(name, IsolationLevel.READ_COMMITTED)
            if all(ends[part] >= end for part, end in written.items()) or monotonic() >= until or self._closed.is_set():
                return ends
            self._closed.wait(_RETRY_S)

    def _list_ends(self, name: str, isolation: IsolationLevel) -> dict[int, int]:
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        parts = {TopicPartition(self._topic(name), part): latest for part in range(self._partitions[name])}
        until = monotonic() + self._config.timeout_s
        while True:
            wait_s = max(_SLICE_S, until - monotonic())
            found = self._admin.list_offsets(parts, isolation_level=isolation, request_timeout=wait_s)
            try:
                return {part.partition: future.result().offset for part, future in found.items()}
            except KafkaException as error:
                if error.args[0].code() not in _ELECTING or monotonic() >= until:
                    raise
            self._closed.wait(_RETRY_S)

    def committed(self, consumer: str) -> Mapping[Topic, Offsets]:
        """Return the places that were last committed, after all commits that returned before. Raises `EventLogOpenError`."""
        found: dict[Topic, dict[int, int]] = {}
        after: Offsets = {}
        with self._opening():
            written = self._list_ends(_PLACES, IsolationLevel.READ_UNCOMMITTED)
            ends = self._ends(_PLACES, 2 * self._config.timeout_s)  # a writer that died is undone within the time
            if any(ends[part] < end for part, end in written.items()):
                raise KafkaException(KafkaError(KafkaError._TIMED_OUT))
        while True:
            messages, after = self._read(_PLACES, after, 1000, 0.0)
            if not messages:
                return found
            for message in messages:
                name, topic, partition = (message.key() or b"").decode().rsplit("/", 2)
                if name == consumer:
                    known: Topic = next(known for known in TOPICS if known == topic)
                    found.setdefault(known, {})[int(partition)] = int(message.value() or b"0")

    def forget(self, user_id: int) -> int:
        """Append a record to each topic of users that says that a user is forgotten; return 0, since none is deleted at once.

        Retention and compaction delete the user's records. Raises `EventLogWriteError`.
        """
        self._write([(topic, _key(user_id), b"") for topic in _OF_USERS])
        return 0

    def check(self) -> None:
        """Write a place of no consumer and read, or raise `EventLogError`."""
        self._write([(_PLACES, b"/pages/0", b"0")])
        self._read("pages", self.ends("pages"), 1, 0.0)

    def close(self) -> None:
        """Close the log. A transaction that another thread is writing ends first."""
        self._closed.set()
        with self._write_lock:
            self._producer = None
        for name, lock in self._read_locks.items():
            with lock, self._readers_lock:
                if (reader := self._readers.pop(name, None)) is not None:
                    reader.consumer.close()


def _key(key: int) -> bytes:
    return key.to_bytes(8, "big", signed=True)


def _text(error: BaseException) -> str:
    """What went wrong, in one line."""
    cause = error.args[0] if error.args else error
    return cause.str() if isinstance(cause, KafkaError) else str(cause)
