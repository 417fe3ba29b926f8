from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Semaphore

import pytest

from cloud.streams.together import Together


def _double(pieces: Sequence[int]) -> list[int]:
    if 13 in pieces:
        raise ValueError("not 13")
    if 99 in pieces:
        raise TimeoutError("too late")
    return [2 * piece for piece in pieces]


def test_each_caller_gets_its_own_result() -> None:
    double = Together(_double, 3, TimeoutError)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(double, range(14, 90))) == [2 * i for i in range(14, 90)]


@pytest.mark.parametrize("most", [2, 64])
def test_those_that_wait_are_done_at_once_at_most_so_many(most: int) -> None:
    begun, go_on, arrived = Event(), Event(), Semaphore(0)
    done: list[list[int]] = []

    def work(pieces: Sequence[int]) -> list[int]:
        begun.set()
        assert go_on.wait(30)
        done.append(sorted(pieces))
        return list(pieces)

    class Counted(Together[int, int]):
        def __call__(self, piece: int) -> int:
            arrived.release()
            return super().__call__(piece)

    together = Counted(work, most, TimeoutError)
    with ThreadPoolExecutor(5) as pool:
        first = pool.submit(together, 0)
        assert begun.wait(30)
        rest = [pool.submit(together, i) for i in range(1, 5)]
        for _ in range(5):
            assert arrived.acquire(timeout=30)
        go_on.set()
        assert [job.result(30) for job in (first, *rest)] == [0, 1, 2, 3, 4]
    assert done[0] == [0]
    assert sorted(i for pieces in done for i in pieces) == [0, 1, 2, 3, 4]
    assert max(map(len, done)) <= most


def test_a_piece_that_cannot_be_done_fails_alone_and_an_error_of_all_is_not_tried_again() -> None:
    calls: list[list[int]] = []

    def work(pieces: Sequence[int]) -> list[int]:
        calls.append(list(pieces))
        return _double(pieces)

    double = Together(work, 64, TimeoutError)
    with ThreadPoolExecutor(8) as pool:
        jobs = [pool.submit(double, i) for i in (1, 13, 2, 3)]
        assert [job.result(30) for job in (jobs[0], *jobs[2:])] == [2, 4, 6]
        with pytest.raises(ValueError, match="not 13"):
            jobs[1].result(30)
    calls.clear()
    with pytest.raises(TimeoutError):
        double(99)
    assert calls == [[99]]
