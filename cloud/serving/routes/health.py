"""Liveness and readiness apart.

::

    GET /livez                 this process answers; a server that does not is to be killed
    GET /readyz                requests may be sent here: 200 ready or degraded, 503 not ready or draining

A failed check of what pages cannot do without makes a server unready; one of what they can do without makes it degraded, and
it stays in service. Neither tells a passer-by more than the names of the checks; why one failed is in the log.
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
    """How often checks are made, and how long they may take."""

    cache_s: float = 5.0
    """How long the result of a check is good for: probes come from several sides, and a check may write to the disk."""
    timeout_s: float = 1.0
    """A check that takes longer has failed; it is not made again before it has ended."""


class Alive(BaseModel):
    """Body of `GET /livez`."""

    status: Literal["ok"] = "ok"
    """The process answers."""


class Readiness(BaseModel):
    """Body of `GET /readyz`."""

    status: Literal["ready", "degraded", "not_ready", "draining"]
    """The first two with 200, the others with 503."""
    checks: dict[str, Literal["ok", "failed"]]
    """By name."""


class _Check:
    def __init__(self, name: str, check: Callable[[], object], required: bool) -> None:
        self.name, self.check, self.required = name, check, required
        self.ok = True
        self.until = float("-inf")
        self.running: asyncio.Future[object] | None = None


class Health:
    """What a server knows of its own state. Not ready until `loaded`; never again after `draining`."""

    def __init__(self, config: HealthConfig | None = None, clock: Callable[[], float] = monotonic) -> None:
        """`clock` tells seconds."""
        self._config, self._clock = config or HealthConfig(), clock
        self._checks: list[_Check] = []
        self._loaded = self._draining = False

    def add(self, name: str, check: Callable[[], object], *, required: bool) -> None:
        """Make `check`, in a thread, part of readiness; it has failed when it raises. Without a `required` one, pages stop."""
        self._checks.append(_Check(name, check, required))

    def loaded(self) -> None:
        """Requests can be answered from now on."""
        self._loaded = True

    def draining(self) -> None:
        """No requests should come any more. Safe to call from a signal handler or another thread."""
        self._draining = True

    async def ready(self) -> Readiness:
        """The state of now, from checks that are at most `cache_s` old."""
        if self._draining:
            return Readiness(status="draining", checks={})
        if not self._loaded:
            return Readiness(status="not_ready", checks={})
        await asyncio.gather(*(self._look(check) for check in self._checks))
        failed = [check for check in self._checks if not check.ok]
        status: Literal["ready", "degraded", "not_ready"] = "degraded" if failed else "ready"
        if any(check.required for check in failed):
            status = "not_ready"
        return Readiness(status=status, checks={check.name: "ok" if check.ok else "failed" for check in self._checks})

    async def _look(self, check: _Check) -> None:
        if self._clock() < check.until:
            return
        if check.running is None or check.running.done():
            check.running = asyncio.ensure_future(asyncio.to_thread(check.check))
            check.running.add_done_callback(lambda future: future.cancelled() or future.exception())  # it may be told to nobody
        error: BaseException | None = None
        try:
            await asyncio.wait_for(asyncio.shield(check.running), self._config.timeout_s)
        except Exception as caught:
            error = caught
        if check.ok != (error is None):
            if error is None:
                _logger.info("check %s is well again", check.name)
            else:
                got = f"no answer within {self._config.timeout_s:g} s" if isinstance(error, TimeoutError) else error
                _logger.warning("check %s failed: %s", check.name, got)
        check.ok, check.until = error is None, self._clock() + self._config.cache_s


def health_router(health: Health) -> APIRouter:
    """The routes `/livez` and `/readyz`."""
    router = APIRouter(tags=["health"])

    @router.get("/livez")
    async def livez() -> Alive:
        """Answers as long as the process does."""
        return Alive()

    @router.get("/readyz", responses={503: {"model": Readiness, "description": "Send requests elsewhere."}})
    async def readyz(response: Response) -> Readiness:
        """Tells whether requests may be sent here."""
        told = await health.ready()
        response.status_code = 200 if told.status in ("ready", "degraded") else 503
        response.headers["Cache-Control"] = "no-store"
        return told

    return router
