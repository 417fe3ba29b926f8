"""Runs many phones at the same time: every user's sessions under every policy.

Phones are threads, because a phone mostly waits: one process of phones keeps a server on one core busy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock

import numpy as np

from pocketrank.device import CloudClient
from pocketrank.sdk_demo.emulator.logged import LoggedUser, LoggedUsers
from pocketrank.sdk_demo.emulator.phone import Phone
from pocketrank.sdk_demo.emulator.policies import Policy
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.world import UserSession, World

__all__ = ["Visit", "plan", "run_fleet"]

PATIENCE_S = 30.0
"""Timeout of a page. It is long because phones and server share a machine, whose stalls should not change the figures."""

_DAY_MS = 86_400_000
_ROUND_SEEDS = 1_000_003  # a prime, so that rounds of emulations with nearby seeds have different seeds


@dataclass(frozen=True)
class Visit:
    """A user and the number of their sessions, on consecutive evenings."""

    user_id: int
    sessions: int


def plan(users: int, sessions: int, seed: int) -> list[Visit]:
    """Return visits of users in random order, with `sessions` sessions in all and nearly equal numbers of each user."""
    order = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, 0xF1EE7]))).permutation(users) + 1
    rounds, rest = divmod(sessions, users)
    return [Visit(int(user), rounds + (place < rest)) for place, user in enumerate(order) if rounds or place < rest]


def run_fleet(
    server: str,
    users: World | LoggedUsers,
    visits: Sequence[Visit],
    policies: Sequence[Policy],
    *,
    clients: int,
    seed: int,
    run_id: str,
    feedback_delay_ms: int = 0,
    traces: Path | None = None,
    progress: Callable[[float], None] | None = None,
) -> list[SessionRecord]:
    """Run all visits under all policies, at most `clients` at the same time, and return records by `policies`, then `visits`.

    `run_id` separates the feedback of this run from that of others at the server; for `feedback_delay_ms` and `traces` see
    `phone`. Raises what the first phone raises; the others then stop at their next swipe.
    """
    turn, stop = Lock(), Event()

    def visit(policy: Policy, one: Visit) -> list[SessionRecord]:
        if stop.is_set():
            return []
        experiment = f"{run_id}/{policy.name}"
        with CloudClient(server, timeout_s=PATIENCE_S) as client:
            phone = Phone(client, policy, experiment=experiment, turn=turn, feedback_delay_ms=feedback_delay_ms, traces=traces)
            return [
                phone(_session(users, one.user_id, number, seed), f"{experiment}/{one.user_id}.{number}", stop)
                for number in range(one.sessions)
            ]

    total, done = len(policies) * sum(one.sessions for one in visits), 0
    with ThreadPoolExecutor(clients, thread_name_prefix="phone") as pool:
        # A user's sessions under all policies follow one another, so that all policies meet the server in the same state.
        jobs = {(p, v): pool.submit(visit, policy, one) for v, one in enumerate(visits) for p, policy in enumerate(policies)}
        try:
            for job in as_completed(jobs.values()):
                done += len(job.result())
                if progress:
                    progress(done / total)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return [record for key in sorted(jobs) for record in jobs[key].result()]


def _session(users: World | LoggedUsers, user_id: int, number: int, seed: int) -> UserSession | LoggedUser:
    """Return a user's session on evening `number` after the log."""
    of_round = seed + number * _ROUND_SEEDS
    session = users.session(user_id, seed=of_round)
    return users.session(user_id, seed=of_round, start_ms=session.now_ms + number * _DAY_MS) if number else session
