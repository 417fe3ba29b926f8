"""One conformance class for every backend of the outbox."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pocketrank.device.clock import DeviceClock, wall_clock
from pocketrank.device.codec import to_msgpack
from pocketrank.device.offline.outbox import MemoryOutbox, Outbox, OutboxConfig
from pocketrank.device.offline.store import DeviceStore, DeviceStoreConfig
from tests.device.worlds import PhoneClock, make_event

YEAR_MS = 365 * 86_400_000


def ids(outbox: Outbox, events_max: int | None = None) -> list[int]:
    """What `take` gives, as item ids."""
    return [event.item_id for event in outbox.take(events_max)]


class Conformance(ABC):
    @abstractmethod
    @contextmanager
    def opened(self, config: OutboxConfig, clock: DeviceClock = wall_clock) -> Iterator[Outbox]:
        """A new outbox."""

    @pytest.fixture
    def make(self) -> Iterator[Callable[..., Outbox]]:
        with ExitStack() as stack:
            yield lambda **keys: stack.enter_context(self.opened(OutboxConfig(**keys)))

    def test_an_id_is_taken_once_also_after_it_was_sent(self, make: Callable[..., Outbox]) -> None:
        outbox = make()
        event = make_event(1, like=True, volume=0.5, page_id="p")
        assert outbox.add(event)
        assert not outbox.add(event)
        assert outbox.take() == (event,)
        assert not outbox.add(event)
        outbox.acknowledge([event])
        assert not outbox.add(event)
        assert len(outbox) == 0
        assert outbox.take() == ()

    def test_events_in_flight_are_not_taken_twice(self, make: Callable[..., Outbox]) -> None:
        outbox = make()
        for item in range(5):
            outbox.add(make_event(item))
        first = outbox.take(2)
        assert [event.item_id for event in first] == [0, 1]
        assert len(outbox) == 3
        assert ids(outbox) == [2, 3, 4]
        outbox.put_back(first)
        assert ids(outbox) == [0, 1]

    def test_events_put_back_precede_later_ones_in_any_order_of_batches(self, make: Callable[..., Outbox]) -> None:
        outbox = make()
        for item in range(4):
            outbox.add(make_event(item))
        first, second = outbox.take(2), outbox.take(2)
        outbox.add(make_event(4))
        outbox.put_back(first)
        outbox.put_back(second)
        outbox.put_back(second)  # they are not in flight any more
        assert ids(outbox) == [0, 1, 2, 3, 4]

    def test_the_cloud_may_know_what_still_waits(self, make: Callable[..., Outbox]) -> None:
        outbox = make()
        for item in range(200):
            outbox.add(make_event(item))
        events = outbox.take()
        outbox.put_back(events)
        outbox.acknowledge([*events[:150], make_event(999)])
        assert ids(outbox) == list(range(150, 200))
        assert outbox.dropped == 0

    def test_a_batch_is_bounded_by_bytes_and_never_empty(self, make: Callable[..., Outbox]) -> None:
        outbox, size = make(), len(to_msgpack(make_event(1)))
        for item in (1, 2, 3):
            outbox.add(make_event(item))
        assert len(outbox.take(bytes_max=2 * size)) == 2
        assert len(outbox.take(bytes_max=1)) == 1

    def test_old_ids_are_forgotten_once_their_events_have_left(self, make: Callable[..., Outbox]) -> None:
        outbox = make(ids_max=2)
        for item in (1, 2, 3):
            outbox.add(make_event(item))
        assert not outbox.add(make_event(1))
        outbox.acknowledge(outbox.take())
        assert not outbox.add(make_event(3))
        assert outbox.add(make_event(1))

    def test_bytes_are_bounded_and_a_huge_event_does_not_push_out_the_others(self, make: Callable[..., Outbox]) -> None:
        size = len(to_msgpack(make_event(1)))
        outbox = make(bytes_max=3 * size, event_bytes_max=2 * size)
        for item in range(1, 5):
            outbox.add(make_event(item))
        assert (len(outbox), outbox.dropped) == (3, 1)
        assert outbox.add(make_event(9, session_id="s" * 2 * size))
        assert (ids(outbox), outbox.dropped) == ([2, 3, 4], 2)

    def test_an_event_grows_older_while_it_waits_whatever_the_clock_is_set_to(self) -> None:
        clock = PhoneClock()
        with self.opened(OutboxConfig(), clock) as outbox:
            outbox.add(make_event(1, age_ms=500))
            outbox.add(make_event(2))
            for step_ms in (3 * YEAR_MS, -9 * YEAR_MS):
                clock.true_ms += 1_000
                clock.off_ms += step_ms
                events = outbox.take()
                outbox.put_back(events)
            assert events == (make_event(1, age_ms=2_500), make_event(2))

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.differing_executors])  # one run a backend
    @given(st.lists(st.sampled_from(["add", "take", "lose", "send"]), max_size=60), st.integers(1, 5))
    def test_in_order_bounded_and_nothing_twice(self, steps: list[str], most: int) -> None:
        with self.opened(OutboxConfig(waiting_max=most, ids_max=1000)) as outbox:
            sent, made = [], 0
            for step in steps:
                if step == "add":
                    made += 1
                    assert outbox.add(make_event(made))
                    continue
                events = outbox.take(2 if step == "take" else None)
                if step == "send":
                    outbox.acknowledge(events)
                    sent += [event.item_id for event in events]
                else:
                    outbox.put_back(events)
                assert len(outbox) <= most
            sent += ids(outbox)
            assert sent == sorted(set(sent))
            assert len(sent) + outbox.dropped == made


class TestMemoryOutbox(Conformance):
    @contextmanager
    def opened(self, config: OutboxConfig, clock: DeviceClock = wall_clock) -> Iterator[Outbox]:
        yield MemoryOutbox(config, clock)


class TestStoredOutbox(Conformance):
    @contextmanager
    def opened(self, config: OutboxConfig, clock: DeviceClock = wall_clock) -> Iterator[Outbox]:
        bounds = DeviceStoreConfig(outbox=config)
        with TemporaryDirectory() as folder, DeviceStore(Path(folder) / "store.db", bounds, clock=clock) as store:
            yield store.outbox
