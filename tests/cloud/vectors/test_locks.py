import threading
from collections.abc import Callable
from time import monotonic

import pytest

from pocketrank.cloud.vectors.locks import ReadWriteLock

BOUND_S = 30


def started(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def done(work: Callable[[], None]) -> bool:
    """Whether `work` ends in a thread of its own."""
    thread = started(work)
    thread.join(BOUND_S)
    return not thread.is_alive()


def test_several_read_at_once() -> None:
    lock, both = ReadWriteLock(), threading.Barrier(2)

    def read() -> None:
        with lock.read():
            both.wait(BOUND_S)  # only passes when two are in at once

    readers = [started(read) for _ in range(2)]
    for reader in readers:
        reader.join(BOUND_S)
    assert not both.broken


def test_nobody_reads_or_writes_while_one_writes() -> None:
    lock, inside, most = ReadWriteLock(), [0], [0]

    def write() -> None:
        for _ in range(500):
            with lock.write():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                inside[0] -= 1

    def read() -> None:
        for _ in range(500):
            with lock.read():
                most[0] = max(most[0], 1 + inside[0])

    threads = [started(work) for work in (write, read, write, read)]
    for thread in threads:
        thread.join(BOUND_S)
    assert not any(thread.is_alive() for thread in threads)
    assert most == [1]


def test_a_writer_gets_its_turn_although_somebody_reads_all_the_time() -> None:
    """Each reader stays until the next one reads too, unless that one must wait, as it must once a writer waits."""
    lock, written = ReadWriteLock(), threading.Event()

    def read(inside: threading.Event, next_inside: threading.Event) -> None:
        with lock.read():
            inside.set()
            next_inside.wait(1.0)

    def write() -> None:
        with lock.write():
            written.set()

    inside, until = threading.Event(), monotonic() + BOUND_S
    threads = []
    while not written.is_set() and monotonic() < until:
        next_inside = threading.Event()
        threads.append(started(lambda inside=inside, after=next_inside: read(inside, after)))  # type: ignore[misc]
        inside.wait(BOUND_S)
        if len(threads) == 3:
            threads.append(started(write))
        inside = next_inside
    assert written.is_set()
    inside.set()
    for thread in threads:
        thread.join(BOUND_S)


def test_the_lock_is_free_again_after_an_error() -> None:
    lock = ReadWriteLock()

    def read() -> None:
        with lock.read():
            pass

    def write() -> None:
        with lock.write():
            pass

    with pytest.raises(KeyError), lock.read():
        raise KeyError
    assert done(write)
    with pytest.raises(KeyError), lock.write():
        raise KeyError
    assert done(read)
    assert done(write)
