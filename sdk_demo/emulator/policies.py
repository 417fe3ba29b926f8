"""Policies: they decide which item a phone shows next and when it requests a page. All have the same cloud.

`cloud_order`, the lower bound, shows each page as the cloud ranked it. `refreshed` is what a cloud alone can do: it requests a
page more often. `on_device` is the product with its defaults, `greedy` and `beam` are its model with one list search or the
other. `oracle`, the upper bound of a reordering that looks one item ahead, knows the user's hidden state. `informed` is an
upper bound in between: it knows the catalogue and the users, and which items of the session were watched. All but `refreshed`
request pages by the SDK's default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pocketrank.device import Bundle, FeedSession, FixedPaging, Paging, Ranker
from pocketrank.device.contract import SearchSpec
from pocketrank.device.model.search import GREEDY
from pocketrank.sdk_demo.emulator.errors import PolicyError
from pocketrank.sdk_demo.emulator.logged import LoggedUser
from pocketrank.sdk_demo.world import UserSession

__all__ = [
    "DEFAULT_POLICIES",
    "POLICIES",
    "Beam",
    "CloudOrder",
    "Greedy",
    "PerfectCloud",
    "OnDevice",
    "Oracle",
    "Policy",
    "Refreshed",
]


class Policy(ABC):
    """Base class of policies. It keeps no state of a session, since many sessions share one policy."""

    name: str
    uses_models: ClassVar[bool] = False
    """Whether its phones use the models of a bundle."""
    paging: Paging | None = None
    """Paging of its phones; None is the SDK's default."""

    def __init__(self, bundle: Bundle | None) -> None:
        """Take the installed `bundle`, whose models only some policies use.

        Raises `BundleError` and `RuntimeLoadError` for models that cannot be used, `PolicyError` for those that do not suit it.
        """
        self.ranker: Ranker | None = None
        """Ranker of the phone's `FeedSession`."""

    def paging_for(self, user: UserSession | LoggedUser) -> Paging | None:
        """Return the paging of one session."""
        return self.paging

    @abstractmethod
    def pick(self, feed: FeedSession, user: UserSession | LoggedUser) -> int | None:
        """Return the item to show now, None when the feed holds no items."""


class CloudOrder(Policy):
    """The page in the cloud's order."""

    name = "cloud_order"

    def pick(self, feed: FeedSession, user: UserSession | LoggedUser) -> int | None:
        """See `Policy`."""
        return feed.next()


class Refreshed(CloudOrder):
    """Cloud order with a new page after every 6 items, as in the published system (Gong et al. 2022, arXiv 2208.09577).

    The cloud ranks again, with the feedback of the request.
    """

    name = "refreshed"
    paging = FixedPaging(consume=6, size=30)


class OnDevice(Policy):
    """The device model, run after each swipe on the rest of the page, with the search of the bundle's spec.

    Without a search in the spec it is greedy.
    """

    name = "on_device"
    uses_models = True

    def __init__(self, bundle: Bundle | None) -> None:
        super().__init__(bundle)
        if bundle is not None:
            self.ranker = Ranker.open(bundle, search=self.search(bundle))

    def search(self, bundle: Bundle) -> SearchSpec | None:
        """Return the search of its phones; None is that of the bundle."""
        return None

    def pick(self, feed: FeedSession, user: UserSession | LoggedUser) -> int | None:
        """See `Policy`."""
        return feed.next()


class Greedy(OnDevice):
    """The device model, which shows the item with the highest score next."""

    name = "greedy"

    def search(self, bundle: Bundle) -> SearchSpec:
        """See `OnDevice`."""
        return GREEDY


class Beam(OnDevice):
    """The device model with the beam search of the bundle's spec, or the published one if the spec has none."""

    name = "beam"

    def search(self, bundle: Bundle) -> SearchSpec:
        """See `OnDevice`. Raises `PolicyError` for models that only score the next item, with which it would be greedy."""
        stages = {stage for form in bundle.forms("onnx", "fp32") for stage in bundle.stages(form, "onnx")}
        if not stages & {"choose", "search"}:
            raise PolicyError("beam", "a bundle with a model for lists", f"one with {', '.join(sorted(stages)) or 'none'}")
        return bundle.spec.search or SearchSpec()


class PerfectCloud(Policy):
    """The best item for a device whose cloud knows items and users perfectly (`pocketrank.sdk_demo.world.belief`)."""

    name = "informed"

    def pick(self, feed: FeedSession, user: UserSession | LoggedUser) -> int | None:
        """See `Policy`."""
        assert isinstance(user, UserSession)  # it knows the simulated world
        left = feed.remaining
        return int(left[user.expected(left).argmax()]) if len(left) else None


class Oracle(Policy):
    """The item with the highest true probability of an effective view now, of the rest of the page.

    The feed learns of the choice from the feedback, as for an item that the app itself chose.
    """

    name = "oracle"

    def pick(self, feed: FeedSession, user: UserSession | LoggedUser) -> int | None:
        """See `Policy`."""
        assert isinstance(user, UserSession)  # it knows the simulated world
        left = feed.remaining
        return int(left[user.probabilities(left)["effective_view"].argmax()]) if len(left) else None


POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (CloudOrder, Refreshed, Greedy, Beam, OnDevice, PerfectCloud, Oracle)
}  # fmt: skip
"""Every policy by its name."""
DEFAULT_POLICIES = (CloudOrder.name, OnDevice.name, Oracle.name)
"""The default: lower bound, product and upper bound."""
