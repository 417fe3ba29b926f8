"""The channels that candidates come from: nearest to the user's vector, popular, fresh.

A channel of your own is a subclass of `Channel`, named by its dotted name in a `[[stage.channel]]` of the pipeline file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.cloud.pipeline.filters import AllowedOrder
from pocketrank.cloud.pipeline.stage import Query, Resources
from pocketrank.cloud.published.catalogue import Catalogue
from pocketrank.cloud.vectors.index import RetrievalError

__all__ = ["Channel", "ChannelConfig", "Fresh", "Popular", "TwoTower", "TwoTowerConfig"]

Int = NDArray[np.int64]

_WAIT_SHARE = 0.7
"""Share of the time that is left for which a page waits for an index on another machine: the rest is for the other channels and
for ranking."""


class ChannelConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base class for the table of a channel in the pipeline file."""

    quota: int = 0
    """Number of candidates that the channel adds. It adds more where the other channels leave room."""
    quota_cold: int | None = None
    """Number of candidates that it adds for a cold user; None: the same as `quota`."""

    def __post_init__(self) -> None:
        if self.quota < 0 or (self.quota_cold or 0) < 0:
            raise ValueError(f"Expected quotas of 0 or more, got {self.quota} and {self.quota_cold}")


class Channel(ABC):
    """Source of candidates. Raises `ValueError` for a config that does not fit."""

    Config: ClassVar[type[ChannelConfig]] = ChannelConfig

    def __init__(self, config: Any, resources: Resources) -> None:
        """`config` is an instance of `Config`."""
        self.config, self.resources = config, resources

    @abstractmethod
    def __call__(self, query: Query, k: int) -> Int:
        """Return up to `k` positions, best first, none of which is in `query.exclude` or filtered out."""


class TwoTowerConfig(ChannelConfig, frozen=True, kw_only=True):
    """The index that is searched."""

    index: str = "items"
    """`NAME` of an `[index.NAME]`."""


class TwoTower(Channel):
    """The items whose vectors have the largest inner product with the user's (Yi et al., RecSys 2019)."""

    Config = TwoTowerConfig

    def __init__(self, config: TwoTowerConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        if config.index not in resources.indexes:
            known = ", ".join(resources.indexes) or "none"
            raise ValueError(f"Expected the name of an index ({known}), got {config.index}")
        self._index = resources.indexes[config.index]

    def __call__(self, query: Query, k: int) -> Int:
        """See `Channel`. Returns no positions when the user's vector or the index is unavailable; the page is then degraded."""
        if query.vector is None:
            return np.zeros(0, np.int64)
        where, wait_s = self.resources.filters.where, _WAIT_SHARE * query.deadline.left()
        try:
            return self._index.search(query.vector, k, where=where, exclude=query.exclude, deadline_s=wait_s).ids
        except RetrievalError:
            query.degraded.append(f"index_{self.config.index}")
            return np.zeros(0, np.int64)


class _Ordered(Channel):
    """Channel of a fixed order of items."""

    def __init__(self, config: ChannelConfig, resources: Resources) -> None:
        super().__init__(config, resources)
        self._allowed = AllowedOrder(resources.filters, partial(self.order, resources.catalogue))

    @staticmethod
    @abstractmethod
    def order(catalogue: Catalogue) -> Int:
        """Return positions of items, best first."""

    def __call__(self, query: Query, k: int) -> Int:
        """See `Channel`."""
        return self._allowed(query.exclude, k)


class Popular(_Ordered):
    """The items with the highest smoothed rate of the first task."""

    @staticmethod
    def order(catalogue: Catalogue) -> Int:
        """See `Catalogue.by_popularity`."""
        return catalogue.by_popularity


class Fresh(_Ordered):
    """The items that were uploaded last, without those of unknown age."""

    @staticmethod
    def order(catalogue: Catalogue) -> Int:
        """See `Catalogue.by_freshness`."""
        return catalogue.by_freshness
