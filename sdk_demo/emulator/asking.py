"""Policies that differ in when they request a page and of what size. All run the device model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pocketrank.cloud.training.paging import UpliftLog
from pocketrank.device import Bundle, PageDecision, Paging, PagingState
from pocketrank.device.paging import FEATURES, features, must_ask
from pocketrank.sdk_demo.emulator.logged import LoggedUser
from pocketrank.sdk_demo.emulator.policies import OnDevice
from pocketrank.sdk_demo.emulator.records import RandomDecision, SessionRecord
from pocketrank.sdk_demo.world import UserSession

__all__ = ["OnDeviceWithPaging", "RandomAsking", "RandomConfig", "RandomPaging", "uplift_log"]


class OnDeviceWithPaging(OnDevice):
    """The product with a paging policy of its own."""

    def __init__(self, bundle: Bundle | None, name: str, paging: Paging) -> None:
        super().__init__(bundle)
        self.name, self.paging = name, paging


@dataclass(frozen=True)
class RandomConfig:
    """Random page requests, from which the effect of a request can be learned."""

    rates: tuple[float, ...] = (0.02, 0.06, 0.2)
    """Probabilities of a request before a swipe. Each session has one of them, so that pages are used to every depth."""
    sizes: tuple[int, ...] = (6, 9, 15, 30, 60, 100)
    """Page sizes; each is equally likely at every request."""


class RandomPaging(Paging):
    """Requests pages at random for one session, and records states and decisions in `decisions`."""

    uses_values = True

    def __init__(self, rng: np.random.Generator, config: RandomConfig) -> None:
        self._rng, self._sizes = rng, config.sizes
        self._rate = float(rng.choice(config.rates))
        self.decisions: list[RandomDecision] = []

    def __call__(self, state: PagingState) -> PageDecision:
        """See `Paging`."""
        forced = must_ask(state)
        asked = bool(self._rng.random() < self._rate) or forced is not None
        size = int(self._rng.choice(self._sizes))
        self.decisions.append(RandomDecision(state, asked, size, self._rate if forced is None else 1.0))
        return PageDecision(asked, size, forced or ("random" if asked else "continue"))


class RandomAsking(OnDevice):
    """The product with random page requests: its sessions train a paging model."""

    name = "random_asking"

    def __init__(self, bundle: Bundle | None, config: RandomConfig = RandomConfig()) -> None:
        super().__init__(bundle)
        self._config = config

    def paging_for(self, user: UserSession | LoggedUser) -> RandomPaging:
        """See `Policy`. The seed differs between sessions: users return, but not at the same time."""
        return RandomPaging(np.random.Generator(np.random.PCG64([user.user_id, user.now_ms])), self._config)


def uplift_log(records: Sequence[SessionRecord]) -> UpliftLog:
    """Return the training log of sessions of `RandomAsking`: their impressions, each with the decision before it."""
    unknown = (math.nan,) * len(FEATURES)
    rows: list[tuple[tuple[float, ...], int, bool, float, int, int, bool]] = []
    for number, record in enumerate(records):
        size = depth = 0
        for decision, effective in zip(record.decisions, record.effective, strict=False):
            size, depth = (decision.size, 0) if decision.asked else (size, depth + 1)
            x = features(decision.state) or unknown
            rows.append((x, number, decision.asked, decision.probability, size, depth, effective))
    x, session, asked, probability, sizes, depths, effective_views = zip(*rows, strict=True)
    return UpliftLog(
        names=FEATURES,
        x=np.array(x),
        session=np.array(session),
        asked=np.array(asked),
        probability=np.array(probability),
        size=np.array(sizes),
        depth=np.array(depths),
        effective=np.array(effective_views),
        simulated=True,
    )
