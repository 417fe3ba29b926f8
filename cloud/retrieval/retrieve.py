"""The stage that retrieves candidates for ranking from several channels, merged by quotas and without repeats."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.plugin import Plugins
from pocketrank.cloud.pipeline.stage import Query, Resources, Stage, StageConfig
from pocketrank.cloud.pipeline.watchdog import HungError, Watchdog
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
    """How many candidates are retrieved, and from which channels."""

    candidates: int = 500
    """Maximum number of candidates."""
    cold_events: int = 5
    """A user whose history holds fewer events is cold."""
    channel: tuple[dict[str, Any], ...] = msgspec.field(default=_DEFAULT)
    """One table for each channel: `use` names it, the rest is its config. Candidates are in the order of the channels."""

    def __post_init__(self) -> None:
        if self.candidates < 1 or self.cold_events < 0 or not self.channel:
            raise ValueError("Expected candidates of 1 or more, cold_events of 0 or more and a channel")


class Retrieve(Stage):
    """Merges channels.

    Each channel adds as many items as its quota, in the order of the file; an item that several channels find is added by the
    first. Room that is left, because a channel failed or its items were added already, is filled by the others in the same
    order.
    """

    Config = RetrieveConfig

    def __init__(self, config: RetrieveConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self._channels: list[tuple[Channel, Watchdog[Channel] | None]] = []
        self._names = [str(table["use"]) for table in config.channel]
        for i, table in enumerate(config.channel):
            make = partial(_CHANNELS.make, table, f"channel[{i}]", resources)
            channel = make()
            own = Watchdog(f"channel {table['use']}", channel, make) if _CHANNELS.is_own(table) else None
            self._channels.append((channel, own))

    def __call__(self, query: Query, candidates: CandidateSet) -> CandidateSet:
        """See `Stage`. The candidates are in the order of the channels."""
        wanted, cold = self.config.candidates, len(query.history.item) < self.config.cold_events
        found: list[NDArray[np.int64]] = []
        for channel, watchdog in self._channels:
            quota = channel.config.quota
            if cold and channel.config.quota_cold is not None:
                quota = channel.config.quota_cold
            found.append(_find(channel, watchdog, query, min(quota, wanted)) if quota else np.zeros(0, np.int64))
        query.found = list(zip(self._names, found, strict=True))
        item = merged(found, wanted)
        if len(item) < wanted:
            item = self._fill(query, item, wanted)
        return CandidateSet(item)

    def _fill(self, query: Query, item: NDArray[np.int64], wanted: int) -> NDArray[np.int64]:
        for name, (channel, watchdog) in zip(self._names, self._channels, strict=True):
            more = _find(channel, watchdog, query, wanted)
            query.found.append((name, more))
            item = merged([item, more], wanted)
            if len(item) == wanted:
                break
        return item

    @property
    def hung_s(self) -> float:
        """See `Stage`."""
        return max((watchdog.hung_s for _, watchdog in self._channels if watchdog is not None), default=0.0)

    def close(self) -> None:
        """See `Stage`."""
        for _, watchdog in self._channels:
            if watchdog is not None:
                watchdog.close()


def _find(channel: Channel, watchdog: Watchdog[Channel] | None, query: Query, k: int) -> NDArray[np.int64]:
    """Return what a channel finds: nothing while a user's own one hangs, for which half of the time that is left is enough."""
    if watchdog is None:
        return channel(query, k)
    try:
        return watchdog(lambda channel: channel(query, k), query.deadline.left() / 2)
    except HungError:
        query.degraded.append(f"hung_{type(channel).__name__}")
        return np.zeros(0, np.int64)


def merged(found: Sequence[NDArray[np.int64]], wanted: int) -> NDArray[np.int64]:
    """Return the first `wanted` distinct positions of all arrays in `found`, in their order."""
    found = [positions for positions in found if len(positions)]
    if len(found) <= 1:
        return found[0][:wanted] if found else np.zeros(0, np.int64)
    item = np.concatenate(found)
    _, first = np.unique(item, return_index=True)
    return item[np.sort(first)][:wanted]
