"""Who decides what a phone shows next, and when it asks for the next page. All see pages of the same cloud.

`cloud_order` is the floor: the page as it came. `refreshed` is what a cloud alone can do about it: be asked again soon.
`on_device` is the product as it comes, `greedy` and `beam` are its model with one list search or the other. `oracle` is the
ceiling of a reordering that looks one item ahead: it knows the user's hidden state. `informed` is a ceiling in between: it
knows the catalogue and the users, and of the session what was watched. All but `refreshed` ask for pages when the SDK does by
default.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from pocketrank.device import Bundle, FeedSession, FixedPaging, Paging, Ranker
from pocketrank.device.contract import SearchSpec
from pocketrank.device.model.search import GREEDY
from pocketrank.sdk_demo.emulator.errors import PolicyError
from pocketrank.sdk_demo.world import UserSession

__all__ = [
    "DEFAULT_POLICIES",
    "POLICIES",
    "Beam",
    "CloudOrder",
    "Greedy",
    "Informed",
    "OnDevice",
    "Oracle",
    "Policy",
    "Refreshed",
]


class Policy(ABC):
    """The seam. Keeps nothing of a session, since many share a policy."""

    name: str
    uses_models: ClassVar[bool] = False
    """Whether its phones have a bundle's models."""
    paging: Paging | None = None
    """When its phones ask for a page; None is the SDK's default."""

    def __init__(self, bundle: Bundle | None) -> None:
        """`bundle` is what is installed; a policy that does not use its models leaves them alone.

        Raises `BundleError` and `RuntimeLoadError` for models that cannot be used, `PolicyError` for those that do not suit it.
        """
        self.ranker: Ranker | None = None
        """What the phone's `FeedSession` gets."""

    def asks(self, user: UserSession) -> Paging | None:
        """`paging`, or one for this session alone."""
        return self.paging

    @abstractmethod
    def pick(self, feed: FeedSession, user: UserSession) -> int | None:
        """The item to show now, None when the feed holds nothing."""


class CloudOrder(Policy):
    """The page as the cloud sent it."""

    name = "cloud_order"

    def pick(self, feed: FeedSession, user: UserSession) -> int | None:
        """See `Policy`."""
        return feed.next()


class Refreshed(CloudOrder):
    """Cloud order of a fresh page after every 6 shown, as the published system has it (Gong et al. 2022, arXiv 2208.09577).

    The cloud ranks again, with the feedback that came with the request.
    """

    name = "refreshed"
    paging = FixedPaging(consume=6, size=30)


class OnDevice(Policy):
    """The device model, run after each swipe on what is left of the page, with the search that the bundle asks for.

    That is greedy where it asks for none.
    """

    name = "on_device"
    uses_models = True

    def __init__(self, bundle: Bundle | None) -> None:
        super().__init__(bundle)
        if bundle is not None:
            self.ranker = Ranker.open(bundle, search=self.search(bundle))

    def search(self, bundle: Bundle) -> SearchSpec | None:
        """How its phones look for what comes next; None is as the bundle says."""
        return None

    def pick(self, feed: FeedSession, user: UserSession) -> int | None:
        """See `Policy`."""
        return feed.next()


class Greedy(OnDevice):
    """The device model; what it scores highest comes next."""

    name = "greedy"

    def search(self, bundle: Bundle) -> SearchSpec:
        """See `OnDevice`."""
        return GREEDY


class Beam(OnDevice):
    """The device model with the beam search that the bundle asks for, the published one where it asks for none."""

    name = "beam"

    def search(self, bundle: Bundle) -> SearchSpec:
        """See `OnDevice`. Raises `PolicyError` for models that can only score what comes next: that would be greedy again."""
        stages = {stage for form in bundle.forms("onnx", "fp32") for stage in bundle.stages(form, "onnx")}
        if not stages & {"choose", "search"}:
            raise PolicyError("beam", "a bundle with a model for lists", f"one with {', '.join(sorted(stages)) or 'none'}")
        return bundle.spec.search or SearchSpec()


class Informed(Policy):
    """What a device would show next if the cloud's knowledge of items and users were perfect
    (`pocketrank.sdk_demo.world.belief`).
    """

    name = "informed"

    def pick(self, feed: FeedSession, user: UserSession) -> int | None:
        """See `Policy`."""
        left = feed.remaining
        return int(left[user.expected(left).argmax()]) if len(left) else None


class Oracle(Policy):
    """What has, of all that is left of the page, the highest true probability of an effective view now.

    The feed hears of its choice when the feedback comes, as of an item that the app showed by itself.
    """

    name = "oracle"

    def pick(self, feed: FeedSession, user: UserSession) -> int | None:
        """See `Policy`."""
        left = feed.remaining
        return int(left[user.probabilities(left)["effective_view"].argmax()]) if len(left) else None


POLICIES: dict[str, type[Policy]] = {
    policy.name: policy for policy in (CloudOrder, Refreshed, Greedy, Beam, OnDevice, Informed, Oracle)
}  # fmt: skip
"""Every policy by its name."""
DEFAULT_POLICIES = (CloudOrder.name, OnDevice.name, Oracle.name)
"""Who takes part where nobody says: the floor, the product and the ceiling."""
