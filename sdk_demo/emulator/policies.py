"""Who decides what a phone shows next. All see the same pages of the same cloud and ask for the next by the same rule.

`cloud_order` is the floor: the page as it came. `on_device` is the product. `oracle` is the ceiling of a reordering that looks
one item ahead: it knows the user's hidden state.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from device import FeedSession, Ranker
from sdk_demo.world import UserSession

__all__ = ["POLICIES", "CloudOrder", "OnDevice", "Oracle", "Policy"]


class Policy(ABC):
    """The seam. Keeps nothing of a session, since many share a policy."""

    name: ClassVar[str]

    def __init__(self, ranker: Ranker | None) -> None:
        """`ranker` holds the bundle's models; a policy that does not use them leaves them alone."""
        self.ranker: Ranker | None = None
        """What the phone's `FeedSession` gets."""

    @abstractmethod
    def pick(self, feed: FeedSession, user: UserSession) -> int | None:
        """The item to show now, None when the feed holds nothing."""


class CloudOrder(Policy):
    """The page as the cloud sent it."""

    name = "cloud_order"

    def pick(self, feed: FeedSession, user: UserSession) -> int | None:
        """See `Policy`."""
        return feed.next()


class OnDevice(Policy):
    """The device model, run after each swipe on what is left of the page."""

    name = "on_device"

    def __init__(self, ranker: Ranker | None) -> None:
        super().__init__(ranker)
        self.ranker = ranker

    def pick(self, feed: FeedSession, user: UserSession) -> int | None:
        """See `Policy`."""
        return feed.next()


class Oracle(Policy):
    """What has, of all that is left of the page, the highest true probability of an effective view now.

    The feed hears of its choice when the feedback comes, as of an item that the app showed by itself.
    """

    name = "oracle"

    def pick(self, feed: FeedSession, user: UserSession) -> int | None:
        """See `Policy`."""
        left = feed.remaining
        return int(left[user.probabilities(left)["effective_view"].argmax()]) if len(left) else None


POLICIES: dict[str, type[Policy]] = {policy.name: policy for policy in (CloudOrder, OnDevice, Oracle)}
"""Every policy by its name."""
