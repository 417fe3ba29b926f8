"""An open loop of page requests from a process of its own: requests arrive whether or not the server has answered earlier ones.

Arrivals are a Poisson process whose rate changes by phase. A request takes a free connection; one that finds none, because the
largest number is under way, is never sent and is counted as unsent. Latencies count from the arrival, so that a server that
stalls cannot hide how long it made requests wait.
`benchmarks.reliability.open_sender` is the process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import OrderedProcess
from pocketrank.device.contract import PageRequest

__all__ = ["DROPPED", "MALFORMED", "UNSENT", "OpenLoad", "OpenOrder", "OpenPhase", "OpenResult"]

UNSENT, DROPPED, MALFORMED = 0, 1, 2
"""In place of a status: never sent, because no connection was free; no whole answer; an answer that cannot be read."""

_NAMES = {UNSENT: "unsent", DROPPED: "dropped", MALFORMED: "malformed"}


class OpenPhase(msgspec.Struct, frozen=True):
    """Time with one rate of arrivals."""

    rps: float
    """Arrivals a second, on average."""
    seconds: float


class OpenOrder(msgspec.Struct, frozen=True, kw_only=True):
    """Order to send requests."""

    port: int
    """On loopback."""
    requests: str
    """File of a MessagePack list of `PageRequest`, sent in turn; feedback has new event ids each time."""
    phases: tuple[OpenPhase, ...]
    """One after the other, without a pause."""
    result: str
    """File for the columns of `OpenResult`."""
    tokens: tuple[str, ...] = ()
    """Token of the sender of each request; none where the server asks for none."""
    connections: int = 512
    """Largest number of requests under way."""
    patience_s: float = 10.0
    """Seconds after which a request without an answer is dropped."""
    stop: str = ""
    """File that ends the arrivals sooner when somebody makes it; requests that were to come later stay unsent."""
    seed: int = 0
    """Seed of the arrivals, and the beginning of event ids."""


@dataclass(frozen=True)
class OpenResult:
    """Outcome of n requests, in the order of their arrival."""

    at: NDArray[np.float64]
    """[n] seconds after the start at which it arrived"""
    status: NDArray[np.int16]
    """[n] of HTTP, or `UNSENT`, `DROPPED`, `MALFORMED`"""
    ms: NDArray[np.float32]
    """[n] from the arrival to the whole answer; NaN where there is none"""
    price: NDArray[np.float32]
    """[n] the page's compute price; NaN where there is no page"""
    reason: NDArray[np.int16]
    """[n] place in `reasons`; -1 where there is no page"""
    vectors: NDArray[np.int8]
    """[n] 1 where the page has vectors"""
    retry_after: NDArray[np.int8]
    """[n] 1 where the answer has `Retry-After`"""
    reasons: Sequence[Sequence[str]]
    """Different values of `degraded` in the pages."""
    first_error: str | None
    """The beginning of the first answer that was neither 200 nor 429."""
    busy: float
    """Share of the time that the process computed: well below 1, or it was the bottleneck."""
    late_p99_ms: float
    """Delay between arrival and sending, 99th percentile."""

    @property
    def whole(self) -> NDArray[np.bool_]:
        """[n] pages that are not degraded."""
        whole = [place for place, reasons in enumerate(self.reasons) if not reasons]
        found: NDArray[np.bool_] = (self.status == 200) & np.isin(self.reason, whole)
        return found

    def between(self, since: float, until: float) -> NDArray[np.bool_]:
        """Return [n] which requests arrived from `since` until before `until`."""
        return (self.at >= since) & (self.at < until)

    def answers(self, among: NDArray[np.bool_]) -> dict[str, int]:
        """Count the requests `among` [n] by outcome: a status, `unsent`, `dropped` or `malformed`."""
        status, count = np.unique(self.status[among], return_counts=True)
        return {_NAMES.get(s, str(s)): n for s, n in zip(status.tolist(), count.tolist(), strict=True)}

    def unexpected(self) -> dict[str, int]:
        """Count what no server should answer. `unexpected_5xx` is the sum of statuses 5xx, dropped and malformed answers.

        `other` counts the remaining statuses except 200 and 429, and `mute` the answers 429 without `Retry-After`.
        """
        status = self.status
        found = {
            "status_5xx": int((status >= 500).sum()),
            "dropped": int((status == DROPPED).sum()),
            "malformed": int((status == MALFORMED).sum()),
        }
        other = (status > MALFORMED) & (status < 500) & (status != 200) & (status != 429)
        mute = (status == 429) & (self.retry_after == 0)
        return {"unexpected_5xx": sum(found.values()), **found, "other": int(other.sum()), "mute": int(mute.sum())}

    def pages(self, among: NDArray[np.bool_]) -> dict[str, Any]:
        """Summarise the pages `among` [n]: their number, times and price, and the share of them that each reason degraded."""
        page = among & (self.status == 200)
        count = int(page.sum())
        if not count:
            return {"pages": 0}
        p50, p99 = (float(q) for q in np.percentile(self.ms[page], (50, 99)))
        reasons = [
            (reason, int((self.reason[page] == place).sum()))
            for place, together in enumerate(self.reasons)
            for reason in together
        ]
        degraded = {name: sum(n for reason, n in reasons if reason == name) / count for name in sorted({r for r, _ in reasons})}
        return {
            "pages": count,
            "p50_ms": p50,
            "p99_ms": p99,
            "whole_share": float(self.whole[page].mean()),
            "degraded_share": {name: share for name, share in degraded.items() if share},
            "without_vectors": int((self.vectors[page] == 0).sum()),
            "price": float(self.price[page].mean()),
        }


class OpenLoad(OrderedProcess):
    """The process that sends. A context. It runs on `core`, or where the system puts it when that is None."""

    def __init__(self, work: Path, core: int | None = None) -> None:
        super().__init__("benchmarks.reliability.open_sender", *([] if core is None else [str(core)]))
        self._work = work

    def begin(self, port: int, requests: Sequence[PageRequest], phases: Sequence[OpenPhase], **more: Any) -> None:
        """Begin to send; `more` has fields of `OpenOrder`. Raises `BenchmarkError` when the process dies."""
        file = self._work / "open-requests.msgpack"
        file.write_bytes(msgspec.msgpack.encode(list(requests)))
        result = str(self._work / "open-result.npz")
        self.send(OpenOrder(port=port, requests=str(file), phases=tuple(phases), result=result, **more))
        self.read_line()  # it has begun

    def wait(self) -> OpenResult:
        """Wait until all phases are over and return the outcome. Raises `BenchmarkError` when the process dies."""
        others = msgspec.json.decode(self.read_line())
        with np.load(self._work / "open-result.npz") as columns:
            return OpenResult(**columns, **others)
