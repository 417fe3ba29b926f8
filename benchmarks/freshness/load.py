"""Users of a server, as a process: `python -m benchmarks.freshness.load PORT TOKEN EVENTS_PER_S SECONDS USERS`.

Each user gets a page and does with its items what the ranker says that users do, as chance has it, until the session is over:
so what is predicted is what is observed. Prints what was sent as JSON.
"""

from __future__ import annotations

import random
import sys
from time import monotonic, sleep
from uuid import uuid4

import msgspec

from benchmarks.errors import BenchmarkError
from benchmarks.freshness.caller import Caller
from pocketrank.device.contract import Ended, FeedbackEvent, Page

__all__ = ["events_of", "main"]

_EVENTS_MAX = 20


def main(port: int, token: str, events_per_s: float, seconds: float, users: int) -> None:
    """Send for so many seconds."""
    rng, caller, began = random.Random(0), Caller(port, token), monotonic()
    pages = sent = late = refused = 0
    while (now := monotonic() - began) < seconds:
        due = sent / events_per_s
        if due > now:
            sleep(due - now)
        late += now - due > 1.0
        user, session = 1 + min(int(rng.expovariate(3 / users)), users - 1), uuid4().hex
        try:
            page = caller.page(user, 30, session_id=session)
            events = events_of(rng, page, user, session)
            caller.feedback(events)
        except BenchmarkError:  # too many wait, and a phone comes back later
            refused += 1
            sleep(0.05)
            continue
        pages, sent = pages + 1, sent + len(events)
    took = monotonic() - began
    report = {"pages": pages, "events_per_s": sent / took, "late_share": late / max(1, pages), "refused": refused}
    print(msgspec.json.encode(report).decode())


def events_of(rng: random.Random, page: Page, user: int, session: str) -> tuple[FeedbackEvent, ...]:
    """Return what a user does with a page, as the ranker says that users do."""
    names = [name.removeprefix("pxtr_") for name in page.candidates.floats.names if name.startswith("pxtr_")]
    events = list[FeedbackEvent]()
    for place, (item, scores) in enumerate(Caller.scores(page).items()):
        does = {name: rng.random() < score for name, score in zip(names, scores.tolist(), strict=True)}
        watch_ms = rng.randint(60_000, 90_000) if does.get("effective_view") else rng.randint(100, 900)
        leaves = not does.get("has_next", True)
        actions = {name: does.get(name, False) for name in ("like", "follow")}
        ended = Ended.EXIT if leaves else Ended.SWIPE
        events.append(Caller.event(page, item, user, place, session_id=session, watch_ms=watch_ms, ended=ended, **actions))
        if leaves or len(events) == _EVENTS_MAX:
            break
    return tuple(events)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5]))
