from collections.abc import Iterator
from threading import Event, current_thread

import pytest

from pocketrank.cloud.pipeline.watchdog import HungError, Watchdog
from tests.cloud.serving.live import until

_WAIT_S = 30.0


@pytest.fixture
def watchdog() -> Iterator[Watchdog]:
    made = Watchdog("stage mine")
    yield made
    made.close()


def test_what_ends_in_time_is_returned_or_raised(watchdog: Watchdog) -> None:
    assert watchdog(lambda: current_thread().name, _WAIT_S) == "pocketrank-stage mine"
    for error in (ValueError, TimeoutError, StopIteration, SystemExit):

        def fails(error: type[BaseException] = error) -> None:
            raise error("a mistake")

        with pytest.raises(error, match="a mistake"):
            watchdog(fails, _WAIT_S)
    assert watchdog(lambda: 1, _WAIT_S) == 1


def test_what_hangs_is_given_up_on_until_it_ends(watchdog: Watchdog, caplog: pytest.LogCaptureFixture) -> None:
    may, calls = Event(), list[int]()
    with pytest.raises(HungError):
        watchdog(lambda: may.wait(_WAIT_S), 0.01)
    for _ in range(3):
        with pytest.raises(HungError):
            watchdog(lambda: calls.append(1), _WAIT_S)  # returns at once, though there is time
    assert watchdog.hung_s > 0.01
    assert not calls
    may.set()
    until(lambda: not watchdog.hung_s, "the call ends")
    assert watchdog(lambda: 1, _WAIT_S) == 1
    assert [record.message for record in caplog.records] == [
        "stage mine did not end within 10 ms; pages are made without it until it does"
    ]
