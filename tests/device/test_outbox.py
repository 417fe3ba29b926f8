from hypothesis import given
from hypothesis import strategies as st

from device.outbox import MemoryOutbox as Outbox
from tests.device.worlds import make_event


def _ids(outbox: Outbox) -> list[int]:
    return [event.item_id for event in outbox.take()]


def test_an_id_is_taken_once_also_after_it_was_sent() -> None:
    outbox = Outbox(10, 10)
    assert outbox.add(make_event(1))
    assert not outbox.add(make_event(1))
    assert _ids(outbox) == [1]
    assert not outbox.add(make_event(1))
    assert len(outbox) == 0


def test_events_put_back_come_before_later_ones() -> None:
    outbox = Outbox(10, 10)
    outbox.add(make_event(1))
    outbox.add(make_event(2))
    sent = outbox.take()
    outbox.add(make_event(3))
    outbox.put_back(sent)
    assert _ids(outbox) == [1, 2, 3]


@given(st.lists(st.sampled_from(["add", "drain", "lose"]), max_size=80), st.integers(1, 5))
def test_in_order_bounded_and_nothing_twice(steps: list[str], most: int) -> None:
    outbox, sent, made = Outbox(most, 1000), [], 0
    for step in steps:
        if step == "add":
            made += 1
            assert outbox.add(make_event(made))
        else:
            events = outbox.take()
            if step == "lose":
                outbox.put_back(events)
            else:
                sent += [event.item_id for event in events]
        assert len(outbox) <= most
    sent += _ids(outbox)
    assert sent == sorted(set(sent))
    assert len(sent) + outbox.dropped == made


def test_old_ids_are_forgotten() -> None:
    outbox = Outbox(10, 2)
    for item in (1, 2, 3):
        outbox.add(make_event(item))
    assert outbox.add(make_event(1))
    assert not outbox.add(make_event(3))
