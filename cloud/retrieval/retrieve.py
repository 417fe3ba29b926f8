"""The stage that finds what is worth ranking: channels side by side, merged by quotas, without repeats."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.plugin import Plugins
from pocketrank.cloud.pipeline.stage import Query, Resources, Stage, StageConfig
from pocketrank.cloud.retrieval.channels import Channel

__all__ = ["Retrieve", "RetrieveConfig", "merged"]

_CHANNELS = Plugins(
    "channel",
    Channel,
    {
        "two_tower": "pocketrank.cloud.retrieval.channels.TwoTower",
        "popular": "pocketrank.cloud.retrieval.channels.Popular",
        "fresh": "pocketrank.cloud.retrieval.channels.Fresh",
    },
)
_DEFAULT = ({"use": "popular", "quota_cold": 250}, {"use": "two_tower", "quota": 500})


class RetrieveConfig(StageConfig, frozen=True, kw_only=True):
    """How many candidates, and from where."""

    candidates: int = 500
    """At most so many."""
    cold_events: int = 5
    """A user with fewer known events is cold."""
    channel: tuple[dict[str, Any], ...] = msgspec.field(default=_DEFAULT)
    """One table a channel: `use` names it, the rest is its config. The order is that of the candidates."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.cold_events < 0 or not self.channel:
            raise ValueError("expected candidates of 1 or more, cold_events of 0 or more and a channel")


class Retrieve(Stage):
    """Merges the channels.

    Each channel gives what its quota says, in the order of the file; an item goes to the first that has it. Room that is left,
    because a channel failed or its items were given already, is filled up by the others, in the same order.
    """

    Config = RetrieveConfig

    def __init__(self, config: RetrieveConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self._channels: list[Channel] = [
            _CHANNELS.made(table, f"channel[{i}]", resources) for i, table in enumerate(config.channel)
        ]

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """Candidates in the order of the channels, before any ranking."""
        wanted, cold = self.config.candidates, len(query.history.item) < self.config.cold_events
        found: list[NDArray[np.int64]] = []
        for channel in self._channels:
            quota = channel.config.quota
            if cold and channel.config.quota_cold is not None:
                quota = channel.config.quota_cold
            found.append(channel(query, min(quota, wanted)) if quota else np.zeros(0, np.int64))
        item = merged(found, wanted)
        if len(item) < wanted:
            item = self._filled(query, item, wanted)
        return CandidateSet(item)

    def _filled(self, query: Query, item: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
        for channel in self._channels:
            item = merged([item, channel(query, wanted)], wanted)
            if len(item) == wanted:
                break
        return item


def merged(found: Sequence[NDArray[np.int64]], wanted: int) -> NDArray[np.int64]:
    """The first `wanted` of `found` one after the other, each once."""
    some = [one for one in found if len(one)]
    if len(some) <= 1:
        return some[0][:wanted] if some else np.zeros(0, np.int64)
    item = np.concatenate(some)
    _, first = np.unique(item, return_index=True)
    return item[np.sort(first)][:wanted]
