"""Summaries of an open loop's answers: by status, by degradation, by time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.reliability.open_loop import DROPPED, MALFORMED, UNSENT, OpenResult

__all__ = ["answers", "pages", "unexpected"]

_NAMES = {UNSENT: "unsent", DROPPED: "dropped", MALFORMED: "malformed"}


def answers(result: OpenResult, among: NDArray[np.bool_]) -> dict[str, int]:
    """Count the requests `among` [n] by outcome: a status, `unsent`, `dropped` or `malformed`."""
    status, count = np.unique(result.status[among], return_counts=True)
    return {_NAMES.get(s, str(s)): n for s, n in zip(status.tolist(), count.tolist(), strict=True)}


def unexpected(result: OpenResult) -> dict[str, int]:
    """Count what no server should answer. `unexpected_5xx` is the sum of statuses 5xx, dropped and malformed answers.

    `other` counts the remaining statuses except 200 and 429, and `mute` the answers 429 without `Retry-After`.
    """
    status = result.status
    found = {
        "status_5xx": int((status >= 500).sum()),
        "dropped": int((status == DROPPED).sum()),
        "malformed": int((status == MALFORMED).sum()),
    }
    other = (status > MALFORMED) & (status < 500) & (status != 200) & (status != 429)
    mute = (status == 429) & (result.retry_after == 0)
    return {"unexpected_5xx": sum(found.values()), **found, "other": int(other.sum()), "mute": int(mute.sum())}


def pages(result: OpenResult, among: NDArray[np.bool_]) -> dict[str, Any]:
    """Summarise the pages `among` [n]: their number, times and price, and the share of them that each reason degraded."""
    page = among & (result.status == 200)
    count = int(page.sum())
    if not count:
        return {"pages": 0}
    p50, p99 = (float(q) for q in np.percentile(result.ms[page], (50, 99)))
    reasons = [
        (reason, int((result.reason[page] == place).sum()))
        for place, together in enumerate(result.reasons)
        for reason in together
    ]
    degraded = {name: sum(n for reason, n in reasons if reason == name) / count for name in sorted({r for r, _ in reasons})}
    return {
        "pages": count,
        "p50_ms": p50,
        "p99_ms": p99,
        "whole_share": float(result.whole[page].mean()),
        "degraded_share": {name: share for name, share in degraded.items() if share},
        "without_vectors": int((result.vectors[page] == 0).sum()),
        "price": float(result.price[page].mean()),
    }
