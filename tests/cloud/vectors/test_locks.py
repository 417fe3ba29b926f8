import threading
from collections.abc import Callable

import pytest

from pocketrank.cloud.vectors.locks import ReadWriteLock

BOUND_S = 30


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_readers_are_together_and_a_waiting_writer_goes_before_those_that_come_later() -> None:
    lock, order, both = ReadWriteLock(), list[str](), threading.Barrier(2)
    leave, wants = threading.Event(), threading.Event()

    def read_first() -> None:
        with lock.read():
            both.wait(BOUND_S)  # only passes when two are in at once
            leave.wait(BOUND_S)
            order.append("first")

    def write() -> None:
        wants.set()
        with lock.write():
            order.append("writer")

    def read_later() -> None:
        with lock.read():
            order.append("later")

    first = [started(read_first) for _ in range(2)]
    writer = started(write)
    assert wants.wait(BOUND_S)
    while not lock.writer_waits:
        assert writer.is_alive()
    later = started(read_later)
    leave.set()
    for thread in (*first, writer, later):
        thread.join(BOUND_S)
    assert order == ["first", "first", "writer", "later"]


def test_one_that_fails_lets_go() -> None:
    lock = ReadWriteLock()
    with pytest.raises(KeyError), lock.read():
        raise KeyError
    with pytest.raises(KeyError), lock.write():
        raise KeyError
    with lock.write():
        assert lock.writer_waits
    with lock.read():
        assert not lock.writer_waits
