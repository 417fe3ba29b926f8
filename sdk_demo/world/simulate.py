"""Simulation of a log: all users' sessions under the logging policy, many sessions in lock-step.

A user's sessions follow one another, so that round r runs the r-th session of all users at once. `response` computes what users
do, as for a single `UserSession`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Int64

from pocketrank.cloud.data import schema
from pocketrank.cloud.data.schema import ImpressionLog
from pocketrank.sdk_demo.world import luck
from pocketrank.sdk_demo.world.catalogue import DAY_MS, Items
from pocketrank.sdk_demo.world.config import WorldConfig
from pocketrank.sdk_demo.world.policy import LoggingPolicy
from pocketrank.sdk_demo.world.response import Outcomes, ResponseModel
from pocketrank.sdk_demo.world.signals import Signals
from pocketrank.sdk_demo.world.users import Users

__all__ = ["LOG_TAG", "TASK_WEIGHTS", "simulate_log"]

LOG_TAG = 1
"""Part of the random keys of a log's sessions; live sessions have another (`session.SESSION_TAG`)."""

TASK_WEIGHTS = {"effective_view": 1.0, "like": 0.0, "follow": 0.0, "has_next": 0.0}
"""Labels of a log that models predict, with their weights."""

_HOUR_MS = 3_600_000
_BREAK_MS = 600_000  # shortest time between two sessions of a user


def simulate_log(
    config: WorldConfig,
    items: Items,
    users: Users,
    model: ResponseModel,
    *,
    seed: int,
    progress: Callable[[float], None] | None = None,
) -> ImpressionLog:
    """Run all users' sessions of `config.log` and return their log. `progress` is called with the share done, 0..1."""
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([config.seed, seed, 0x106])))
    starts = _plan(config, users, rng)
    policy = LoggingPolicy(config.policy, items, users, seed=config.seed * 1_000_003 + seed)
    total = sum(len(s) for s in starts)
    free_ms = np.zeros(len(users), dtype=np.int64)
    seen = np.zeros((len(users), len(items)), dtype=np.bool_)
    record = _Record(config.policy.page_size)
    done = 0
    for number in range(max(len(s) for s in starts)):
        # All users who have a session with this number start it.
        who = np.array([u for u, s in enumerate(starts) if len(s) > number], dtype=np.int64)
        planned = np.array([starts[u][number] for u in who], dtype=np.int64)
        keys = luck.absorb(luck.keys_from(config.seed, seed, LOG_TAG, number, batch=len(who)), who)
        state = model.path.start(keys, who, np.maximum(planned, free_ms[who]))
        session = done + np.arange(len(who), dtype=np.int64) + 1
        page = np.zeros((len(who), config.policy.page_size), dtype=np.int64)
        page_id = np.zeros(len(who), dtype=np.int64)
        slot = 0
        # One step of all running sessions; a new page when the last one is used up.
        while len(state):
            if slot % config.policy.shown == 0:
                slot = 0
                page = policy.pages(state.user, state.now_ms, seen[state.user])
                page_id = record.add_pages(page)
            outcomes = model.watch(state, page[:, slot])
            seen[outcomes.user, outcomes.item] = True
            free_ms[outcomes.user] = state.now_ms + _BREAK_MS
            record.add_impressions(outcomes, session, page_id)
            stay = outcomes.has_next
            state, session, page, page_id = state.take(stay), session[stay], page[stay], page_id[stay]
            slot += 1
            if progress is not None:
                progress((done + len(who) - len(state)) / total)
        done += len(who)
    return record.log(items, users)


def _plan(config: WorldConfig, users: Users, rng: np.random.Generator) -> list[Int64[np.ndarray, " sessions"]]:
    """Draw the sorted start times of each user's sessions. If nobody has a session, the first user has one."""
    c = config.log
    counts = rng.poisson(c.sessions_per_user * users.activity)
    if not counts.any():
        counts[0] = 1
    days = max(1, int(np.ceil(c.days)))
    plan = []
    for count in counts:
        evening = (rng.normal(c.evening_hour, c.evening_spread, count)) % 24.0
        hour: Float[np.ndarray, " sessions"] = np.where(
            rng.random(count) < c.evening_share, evening, rng.uniform(8.0, 24.0, count)
        )
        offset = rng.integers(0, days, count) * DAY_MS + (hour * _HOUR_MS).astype(np.int64)
        plan.append(np.sort(c.start_ms + np.minimum(offset, int(c.days * DAY_MS) - 1)))
    return plan


class _Record:
    """Columns of a log in the making."""

    def __init__(self, page_size: int) -> None:
        self._page_size = page_size
        self._pages: list[Int64[np.ndarray, "batch page"]] = []
        self._page_count = 0
        self._columns: dict[str, list[np.ndarray]] = {}

    def add_pages(self, pages: Int64[np.ndarray, "batch page"]) -> Int64[np.ndarray, " batch"]:
        """Add pages of item row numbers and return their ids, from 1."""
        first = self._page_count + 1
        self._pages.append(pages + 1)
        self._page_count += len(pages)
        return np.arange(first, first + len(pages), dtype=np.int64)

    def add_impressions(
        self, outcomes: Outcomes, session: Int64[np.ndarray, " batch"], page: Int64[np.ndarray, " batch"]
    ) -> None:
        columns = {f.name: getattr(outcomes, f.name) for f in fields(Outcomes) if f.name not in ("user", "item", "signals")}
        columns |= {f.name: getattr(outcomes.signals, f.name) for f in fields(Signals)}
        columns |= {"user_id": outcomes.user + 1, "item_id": outcomes.item + 1, "session_id": session, "page_id": page}
        for name, values in columns.items():
            self._columns.setdefault(name, []).append(values)

    def log(self, items: Items, users: Users) -> ImpressionLog:
        """Return the log, sorted as the schema requires. Labels that the world does not simulate are null."""
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        order = np.lexsort((columns["item_id"], columns["user_id"], columns["impression_ms"]))
        rows = len(order)
        columns["scene"] = np.zeros(rows, dtype=np.int64)
        arrays = [
            pa.array(columns[f.name][order]).cast(f.type) if f.name in columns else pa.nulls(rows, type=f.type)
            for f in schema.IMPRESSIONS
        ]
        flat = pa.array(np.concatenate(self._pages).ravel())
        ends = np.arange(0, (self._page_count + 1) * self._page_size, self._page_size, dtype=np.int32)
        pages = pa.Table.from_arrays(
            [pa.array(np.arange(1, self._page_count + 1, dtype=np.int64)), pa.ListArray.from_arrays(ends, flat)],
            schema=schema.PAGES,
        )
        return ImpressionLog(
            name="world",
            simulated=True,
            time_zone="UTC",
            tasks=TASK_WEIGHTS,
            impressions=pa.Table.from_arrays(arrays, schema=schema.IMPRESSIONS),
            items=items.table(),
            users=users.table(),
            pages=pages,
        )
