from collections.abc import Callable, Iterator
from itertools import count
from threading import Event, current_thread
from typing import NamedTuple

import pytest

from pocketrank.cloud.pipeline import watchdog as module
from pocketrank.cloud.pipeline.watchdog import HungError, Watchdog
from tests.cloud.serving.live import until

_WAIT_S = 30.0


class Plugin(NamedTuple):
    number: int
    closed: Event

    def close(self) -> None:
        self.closed.set()


class Plugins:
    """A watchdog and all plugins that it had made."""

    def __init__(self) -> None:
        self.made: list[Plugin] = []
        self.watchdog = Watchdog("stage mine", self.make(), self.make)
        self.may = Event()

    def make(self) -> Plugin:
        self.made.append(Plugin(len(self.made), Event()))
        return self.made[-1]

    def hang(self) -> None:
        with pytest.raises(HungError):
            self.watchdog(lambda plugin: self.may.wait(_WAIT_S), 0.01)


@pytest.fixture
def plugins() -> Iterator[Plugins]:
    made = Plugins()
    yield made
    made.may.set()
    made.watchdog.close()


def test_what_ends_in_time_is_returned_or_raised(plugins: Plugins) -> None:
    assert plugins.watchdog(lambda plugin: current_thread().name, _WAIT_S) == "pocketrank-stage mine"
    for error in (ValueError, TimeoutError, StopIteration, SystemExit):

        def fails(plugin: Plugin, error: type[BaseException] = error) -> None:
            raise error("a mistake")

        with pytest.raises(error, match="a mistake"):
            plugins.watchdog(fails, _WAIT_S)
    assert plugins.watchdog(lambda plugin: plugin.number, _WAIT_S) == 0


def test_what_hangs_is_given_up_on_until_it_ends(plugins: Plugins, caplog: pytest.LogCaptureFixture) -> None:
    watchdog, calls = plugins.watchdog, list[int]()
    plugins.hang()
    for _ in range(3):
        with pytest.raises(HungError):
            watchdog(lambda plugin: calls.append(1), _WAIT_S)  # returns at once, though there is time
    assert watchdog.hung_s > 0.01
    assert not calls
    plugins.may.set()
    until(lambda: not watchdog.hung_s, "the call ends")
    assert watchdog(lambda plugin: plugin.number, _WAIT_S) == 0
    assert [record.message for record in caplog.records] == [
        "stage mine did not end within 10 ms; pages are made without it until it does"
    ]
    watchdog.close()
    assert plugins.made[0].closed.wait(_WAIT_S)


def _answers(watchdog: Watchdog[Plugin]) -> Callable[[], bool]:
    def answers() -> bool:
        try:
            watchdog(lambda plugin: None, _WAIT_S)
        except HungError:
            return False
        return True

    return answers


def test_another_instance_takes_over_from_one_that_hangs(plugins: Plugins) -> None:
    plugins.hang()
    until(_answers(plugins.watchdog), "another instance")
    assert plugins.watchdog(lambda plugin: plugin.number, _WAIT_S) == 1 == plugins.watchdog.plugin.number
    assert not plugins.watchdog.hung_s
    assert not plugins.made[0].closed.is_set()
    plugins.may.set()
    assert plugins.made[0].closed.wait(_WAIT_S), "the first is closed when its call has ended"


def test_instances_are_bounded(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_INSTANCES_MAX", 1)
    monkeypatch.setattr(module, "HUNG_S", 0.0)
    plugins.hang()
    until(_answers(plugins.watchdog), "another instance")
    plugins.hang()
    for _ in range(100):
        assert not _answers(plugins.watchdog)()
    assert len(plugins.made) == 2


def test_an_instance_that_cannot_be_made_leaves_the_first(plugins: Plugins, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HUNG_S", 0.0)
    tries = count()

    def fails() -> Plugin:
        next(tries)
        raise OSError("no file")

    watchdog = Watchdog("stage mine", plugins.make(), fails)
    with pytest.raises(HungError):
        watchdog(lambda plugin: plugins.may.wait(_WAIT_S), 0.01)
    for _ in range(100):
        assert not _answers(watchdog)()
    plugins.may.set()
    until(_answers(watchdog), "the call ends")
    assert next(tries) == 1
