"""The run that a server serves, and the thread that replaces it when another one becomes active.

The next run is opened in the background while pages are made from the one before. Pages are made one at a time in the event
loop, and the switch is one call there, between two pages: so every page is made from one run, and no page waits for more than
that call. At most two runs are open at a time.

Errors::

    RunError
    └── RunRefusedError        the active run cannot be served; the one before still is
"""

from __future__ import annotations

import asyncio
import gc
import logging
import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from threading import Event, Thread
from time import monotonic
from typing import TypeVar

from pocketrank.cloud.pages.engine import PageEngine, fill_stores, open_engine
from pocketrank.cloud.published.published import Published, PublishedError
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.serving.in_loop import StoppedError, call_in_loop
from pocketrank.cloud.training.errors import RunError
from pocketrank.cloud.training.registry import ActiveRun, RegistryError, RunRegistry
from pocketrank.cloud.training.run import Run

__all__ = ["CurrentRun", "RunFollower", "RunRefusedError", "ServedRun", "fill_first", "open_first"]

_RETRY_S = 60.0
"""Pause before a run that was refused is tried again: somebody may have repaired it."""
_STOP_S = 5.0
"""Longest wait at a stop for a run that is just being opened."""
_WRITER_WAIT_S = 3600.0
"""Longest wait for another process that puts the vectors of the next run in place."""

_logger = logging.getLogger(__name__)

T = TypeVar("T")


class RunRefusedError(RunError):
    """The active run cannot be served; the one before still is."""


class ServedRun:
    """A run that is open for serving, under its `name`. Raises what `open_engine` does."""

    def __init__(
        self, name: str, run: Run, config: ServingConfig, former: Sequence[Run] = (), *, threads: int | None = None
    ) -> None:
        """`former` runs are those whose split versions are served as well."""
        self.name, self.run = name, run
        self._stack = ExitStack()
        self.engine: PageEngine = self._stack.enter_context(open_engine(run, config, former, threads=threads))

    def close(self) -> None:
        """Close the engine. No page may be made from it any more. A second call does nothing."""
        self._stack.close()

    def free(self) -> None:
        """Free the memory of a closed run, which is not used any more."""
        catalogue = weakref.ref(self.engine.catalogue)
        del self.engine
        if catalogue() is not None:
            # A user's own stage refers to itself, or still runs. This stops everything for a tenth of a second or so.
            gc.unfreeze()
            gc.collect()
            gc.freeze()


class CurrentRun:
    """Holder of the run that is served now."""

    def __init__(self, run: ServedRun) -> None:
        self.run = run
        """The run, which is replaced in the event loop only."""

    @property
    def engine(self) -> PageEngine:
        """Everything that pages are made from now."""
        return self.run.engine

    def check(self, check: Callable[[PageEngine], object]) -> Callable[[], None]:
        """Return a function that calls `check` with the engine, and again if that was replaced meanwhile and failed."""

        def checked() -> None:
            engine = self.engine
            try:
                check(engine)
            except Exception:
                if engine is self.engine:
                    raise
                check(self.engine)

        return checked

    def close(self) -> None:
        """Close the run."""
        self.run.close()


def open_first(registry: RunRegistry, config: ServingConfig) -> ServedRun:
    """Open the active run or, if that cannot be served, the last one before it that can.

    Raises `RegistryError` without an active run, and the error of the active run when none can be served.
    """
    return _first(registry, partial(_open, registry, config=config))


def fill_first(registry: RunRegistry, config: ServingConfig) -> None:
    """Put the vectors in place that `open_first` needs. Raises likewise."""
    _first(registry, lambda name, active: fill_stores(registry.open(name), config, _former(registry, name, active, config)))


def _first(registry: RunRegistry, work: Callable[[str, ActiveRun], T]) -> T:
    active = registry.active()
    if active is None:
        raise RegistryError(f"Expected an active run, got none - at {registry}. `pocketrank runs activate RUN` chooses one.")
    first: Exception | None = None
    for name in (active.run, *active.former):
        try:
            return work(name, active)
        except Exception as error:  # a damaged run may raise anything
            _logger.error("the run %s cannot be served: %s", name, error)
            first = first or error
    assert first is not None
    raise first


def _open(registry: RunRegistry, name: str, active: ActiveRun, config: ServingConfig, threads: int | None = None) -> ServedRun:
    run, former = registry.open(name), _former(registry, name, active, config)
    fill_stores(run, config, former, wait_s=_WRITER_WAIT_S)
    return ServedRun(name, run, config, former, threads=threads)


def _former(registry: RunRegistry, name: str, active: ActiveRun, config: ServingConfig) -> list[Run]:
    """Return the other runs whose split versions are served with the run `name`. One that is damaged or gone is left out."""
    found = list[Run]()
    for other in (active.run, *active.former):
        if other != name and len(found) < config.former_runs:
            try:
                run = registry.open(other)
                Published.open(run.published)
            except (RunError, PublishedError) as error:
                _logger.warning("the split version of the former run %s is not served: %s", other, error)
            else:
                found.append(run)
    return found


class RunFollower:
    """Thread that makes a server serve the active run of `registry`. Call `start` in the event loop.

    A run that cannot be served is refused with one line in the log: `check` raises then, and what is served stays. It is tried
    again once a minute.
    """

    def __init__(
        self,
        registry: RunRegistry,
        config: ServingConfig,
        current: CurrentRun,
        prepare: Callable[[ServedRun, Callable[[], bool]], Callable[[], None]],
    ) -> None:
        """`prepare` makes another run ready to be served instead of the `current` one, in this thread, as long as its second
        argument returns that it is wanted. It returns what is to be called in the event loop at the switch.
        """
        self._registry, self._config, self._current, self._prepare = registry, config, current, prepare
        self._closed = Event()
        self._done = 0
        """Number of the activation that was looked at last."""
        self._refused = ""
        self._retry_at = float("inf")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = Thread(target=self._run, name="pocketrank-runs", daemon=True)

    def start(self) -> None:
        """Follow the registry from now on."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def check(self) -> None:
        """Raise `RunRefusedError` while another run is served than the active one, because that one cannot be."""
        if refused := self._refused:
            raise RunRefusedError(refused)

    def close(self) -> None:
        """Stop. The event loop must go on meanwhile."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._closed.wait(self._config.registry_check_s):
            try:
                self._look()
            except Exception as error:
                if self._closed.is_set():
                    return
                if str(error) != self._refused:  # the same reason is logged once, and not at each attempt
                    _logger.error("%s", error, exc_info=None if isinstance(error, RunError) else error)
                self._refused = str(error)  # the error itself holds what it was raised from
                if not isinstance(error, RunRefusedError):  # the registry cannot be read
                    self._done = 0

    def _look(self) -> None:
        """Serve the active run if it is another one. Raises `RunError`."""
        active = self._registry.active()
        if active is None or (active.number == self._done and monotonic() < self._retry_at):
            return
        self._done, self._retry_at = active.number, monotonic() + _RETRY_S
        try:
            self._serve(active)
        except Exception as error:
            what = f"Expected an active run that can be served, got: {error} - at {active.run} in {self._registry}"
            raise RunRefusedError(f"{what}. {self._current.run.name} is served as before.") from error
        self._refused, self._retry_at = "", float("inf")

    def _serve(self, active: ActiveRun) -> None:
        before, began = self._current.run, monotonic()
        if active.run == before.name and self._registry.open(active.run).record == before.run.record:
            return
        threads = before.engine.ranker.threads  # measured when the server was idle
        served = _open(self._registry, active.run, active, self._config, threads)
        try:
            self._in_loop(served, self._prepare(served, lambda: not self._closed.is_set()))
        finally:
            unused = before if self._current.run is served else served
            unused.close()
            unused.free()
        _logger.info("the run %s is served instead of %s, after %.1f s", served.name, before.name, monotonic() - began)

    def _in_loop(self, served: ServedRun, switch: Callable[[], None]) -> None:
        """Serve another run, between two pages. Raises what `switch` does, and `RunRefusedError` when the server stops."""
        assert self._loop is not None

        def call() -> None:
            switch()
            self._current.run = served

        try:
            call_in_loop(self._loop, call, self._closed)
        except StoppedError:
            raise RunRefusedError("Expected a server that goes on, got one that stops") from None
