"""Liveness and readiness, which are two questions.

::

    GET /livez                 whether the process answers; one that does not should be killed
    GET /readyz                whether requests may be sent here: 200 ready or degraded, 503 not ready or draining

A check of something that pages need makes the server unready when it fails. A check of anything else makes it degraded, and it
stays in service. The answers contain only the names of the checks; the log has the reason of a failure.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from typing import Literal

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

__all__ = ["Alive", "Health", "HealthConfig", "Readiness", "health_router"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HealthConfig:
    """How often checks run, and how long they may take."""

    cache_s: float = 5.0
    """How long the result of a check is reused: several systems send probes, and a check may write to the disk."""
    timeout_s: float = 1.0
    """A check that takes longer has failed. It does not run again before it has ended."""


class Alive(BaseModel):
    """Body of `GET /livez`."""

    status: Literal["ok"] = "ok"
    """The process answers."""


class Readiness(BaseModel):
    """Body of `GET /readyz`."""

    status: Literal["ready", "degraded", "not_ready", "draining"]
    """The first two are answered with 200, the others with 503."""
    checks: dict[str, Literal["ok", "failed"]]
    """Results by the name of the check."""


class _Check:
    def __init__(self, name: str, check: Callable[[], object], required: bool) -> None:
        self.name, self.check, self.required = name, check, required
        self.ok = True
        self.until = float("-inf")
        self.running: asyncio.Future[object] | None = None


class Health:
    """State of a server. It is not ready before `loaded`, and never again after `draining`."""

    def __init__(self, config: HealthConfig | None = None, clock: Callable[[], float] = monotonic) -> None:
        """`clock` returns seconds."""
        self._config, self._clock = config or HealthConfig(), clock
        self._checks: list[_Check] = []
        self._loaded = self._draining = False

    def add(self, name: str, check: Callable[[], object], *, required: bool) -> None:
        """Add a check, which runs in a thread and fails by raising. Pages need what a `required` check looks at."""
        self._checks.append(_Check(name, check, required))

    def loaded(self) -> None:
        """Report ready from now on."""
        self._loaded = True

    def draining(self) -> None:
        """Report draining from now on. Safe to call from a signal handler or another thread."""
        self._draining = True

    async def ready(self) -> Readiness:
        """Return the current state, from results that are at most `cache_s` old."""
        if self._draining or not self._loaded:
            return Readiness(status="draining" if self._draining else "not_ready", checks={})
        await asyncio.gather(*(self._run(check) for check in self._checks))
        failed = [check for check in self._checks if not check.ok]
        status: Literal["ready", "degraded", "not_ready"] = "degraded" if failed else "ready"
        if any(check.required for check in failed):
            status = "not_ready"
        return Readiness(status=status, checks={check.name: "ok" if check.ok else "failed" for check in self._checks})

    async def _run(self, check: _Check) -> None:
        if self._clock() < check.until:
            return
        if check.running is None or check.running.done():
            check.running = asyncio.ensure_future(asyncio.to_thread(check.check))
            check.running.add_done_callback(lambda future: future.cancelled() or future.exception())  # perhaps nobody awaits it
        error: BaseException | None = None
        try:
            await asyncio.wait_for(asyncio.shield(check.running), self._config.timeout_s)
        except Exception as caught:
            error = caught
        if check.ok != (error is None):
            if error is None:
                _logger.info("check %s succeeds again", check.name)
            else:
                got = f"no answer within {self._config.timeout_s:g} s" if isinstance(error, TimeoutError) else error
                _logger.warning("check %s failed: %s", check.name, got)
        check.ok, check.until = error is None, self._clock() + self._config.cache_s


def health_router(health: Health) -> APIRouter:
    """Return the routes `/livez` and `/readyz`."""
    router = APIRouter(tags=["health"])

    @router.get("/livez")
    async def livez() -> Alive:
        """Report that the process answers."""
        return Alive()

    @router.get("/readyz", responses={503: {"model": Readiness, "description": "Send requests elsewhere."}})
    async def readyz(response: Response) -> Readiness:
        """Report whether requests may be sent here."""
        readiness = await health.ready()
        response.status_code = 200 if readiness.status in ("ready", "degraded") else 503
        response.headers["Cache-Control"] = "no-store"
        return readiness

    return router
