"""Users of a server, as a process: `python -m benchmarks.freshness.load PORT TOKEN EVENTS_PER_S SECONDS USERS`.

Each user gets a page and answers with events on ten of its items. Prints what was sent as JSON.
"""

from __future__ import annotations

import random
import sys
from time import monotonic, sleep
from uuid import uuid4

import msgspec

from benchmarks.freshness.caller import Caller
from pocketrank.device.contract import Ended

__all__ = ["main"]

_EVENTS = 10


def main(port: int, token: str, events_per_s: float, seconds: float, users: int) -> None:
    """Send for so many seconds."""
    rng, caller, began = random.Random(0), Caller(port, token), monotonic()
    pages = late = 0
    while (now := monotonic() - began) < seconds:
        due = pages * _EVENTS / events_per_s
        if due > now:
            sleep(due - now)
        late += now - due > 1.0
        user, session = 1 + min(int(rng.expovariate(3 / users)), users - 1), uuid4().hex
        page = caller.page(user, 30, session_id=session)
        items = Caller.items(page)[:_EVENTS].tolist()
        caller.feedback(
            tuple(
                Caller.event(
                    page, item, user, place, session_id=session,
                    watch_ms=int(rng.expovariate(1 / 12_000)), like=rng.random() < 0.05,
                    ended=Ended.EXIT if place == len(items) - 1 else Ended.SWIPE,
                )
                for place, item in enumerate(items)
            )
        )  # fmt: skip
        pages += 1
    took = monotonic() - began
    print(
        msgspec.json.encode(
            {"pages": pages, "events_per_s": pages * _EVENTS / took, "late_share": late / max(1, pages)}
        ).decode()
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
