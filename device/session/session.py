"""One user's session: holds a page, shows its best item next, learns from each swipe, and decides when to ask for more.

Bad data never raises here. Each kind has its fallback, and a counter (`Counters`) of how often it was taken:

- a page whose item ids cannot be read, or without an item that is new, is refused, and what was held stays;
- a page whose features cannot be read is shown in cloud order;
- vectors that are absent, malformed or of another split version leave the self-contained form, else cloud order;
- without a model, or without one for the page's form, the page is shown in cloud order, and a warning says why;
- a model that fails or answers NaN leaves cloud order for this swipe;
- a model that does not answer in time leaves cloud order for this swipe (`pocketrank.device.ranking.watchdog`);
- feedback that the contract does not allow is dropped; for an unknown item it is uploaded and not shown to the model;
- a cloud that does not answer leaves what is held, and the feedback stays in the queue.

With a `PersonalLayer` the order is by the user's own probabilities. An item's first feedback teaches the layer, from what the
shipped model predicted when the item was shown. Items shown without a model (in cloud order, or as the last of a page) do not.

A swipe never waits for the network, and never for a page that another thread is taking: pages are read and encoded outside of
the lock that swipes take.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import asdict
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from msgspec import UNSET
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank import __version__
from pocketrank.device.backoff import Backoff
from pocketrank.device.clock import DeviceClock, SteadyClock, wall_clock
from pocketrank.device.codec import from_block, from_msgpack, to_msgpack
from pocketrank.device.contract import (
    ContractError,
    FeedbackEvent,
    Form,
    Page,
    PageRequest,
    as_code,
    check_event,
    check_experiment,
)
from pocketrank.device.model.personal import PersonalLayer
from pocketrank.device.offline.outbox import MemoryOutbox
from pocketrank.device.paging import PageDecision, Paging
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.reports.telemetry import Telemetry, TelemetryConfig
from pocketrank.device.session.config import SessionConfig
from pocketrank.device.session.counters import Counters
from pocketrank.device.session.exchange import Exchange
from pocketrank.device.session.feed import Feed
from pocketrank.device.session.held_page import read_page
from pocketrank.device.session.next_models import NextModels

if TYPE_CHECKING:
    from pocketrank.device.network.client import CloudClient
    from pocketrank.device.network.errors import ClientError
    from pocketrank.device.offline.store import DeviceStore
    from pocketrank.device.reports.trace import Tracer
    from pocketrank.device.strategies import Arranger
    from pocketrank.device.updates import Updates

__all__ = ["FeedSession", "Refill"]

_SESSION_ID_MAX = 1024  # characters; each event carries it


class Refill(NamedTuple):
    """Result of a call of `FeedSession.refill`."""

    decision: PageDecision
    """whether to ask, and why"""
    taken: bool = False
    """whether a page arrived and is held now"""
    error: ClientError | None = None
    """why the request failed; its feedback is queued again"""


class FeedSession:
    """The device's feed. Any number of sessions may share a `Ranker`.

    Thread-safe: one thread may swipe (`next`, `feedback`) while another asks the cloud (`refill`, or `request` and `take`).
    """

    def __init__(
        self,
        ranker: Ranker | None,
        *,
        user_id: int | str,
        session_id: str,
        config: SessionConfig | None = None,
        paging: Paging | None = None,
        personal: PersonalLayer | None = None,
        strategies: Arranger | None = None,
        store: DeviceStore | None = None,
        updates: Updates | None = None,
        tracer: Tracer | None = None,
        clock: Callable[[], int] = wall_clock,
        rng: random.Random | None = None,
    ) -> None:
        """Begin a session. Without a `ranker`, and without `updates` that have one, the feed keeps cloud order.

        `user_id` may be a team's own text; the session's `user_id` is then its code (`pocketrank.device.contract.ids`).

        `updates` is asked for models between two pages, in place of `ranker`. `paging` decides when to ask for a page; without
        it the bundle does (`export --paging`), or else fixed counts. `personal` is the user's own layer. The app keeps what it
        learns (`PersonalLayer.state`), and gives it to the user's sessions one after the other; it is dropped when `updates`
        changes the models, since it was learned over the old ones. `strategies` are the rules and preferences of an order.
        `store` keeps feedback and pages beyond the end of the process, and the session goes on with what it holds. `tracer`
        writes down each choice, for developers. `clock` returns ms since the epoch, UTC, and may be set at any time: time that
        passes is measured by a `SteadyClock` beside it. `rng` is the randomness of the backoff.

        Raises ValueError for a layer of another user or over other tasks than the ranker's, and for what no page request can
        hold (`ContractError`): a user id beyond 64 bits, or a text of no or of more than 256 characters; a session id of more
        than 1,024 characters, or with half of a surrogate pair; an experiment whose name is empty or longer than
        `EXPERIMENT_MAX`.
        """
        user_id = as_code(user_id, "$.user_id")
        _check_request(user_id, session_id, None if config is None else config.experiment)
        self.user_id, self.session_id = user_id, session_id
        self.counters = Counters()
        self._config = config = config or SessionConfig()
        self._clock, self._store = clock, store
        self._next_models = NextModels(
            ranker, personal, updates, user_id=user_id, session_id=session_id, expected=config.expects_model
        )
        models = self._next_models.models
        # What is sent to the cloud.
        reporting = config.telemetry or TelemetryConfig(rate=0)
        tier = None if config.tier is None else config.tier.name
        # An app may start again with the same session id, and an answer to an older start is not one to this.
        self._start, self._requests = f"{(rng or random.SystemRandom()).getrandbits(64):016x}", 0
        self._telemetry = Telemetry(
            session_id, clock(), reporting, sdk=__version__, bundle=models.name, tier=tier, start=self._start
        )
        device_clock = clock if isinstance(clock, DeviceClock) else wall_clock
        outbox = MemoryOutbox(config.outbox, device_clock) if store is None else store.outbox
        privacy = config.privacy or models.privacy
        self._exchange = Exchange(outbox, privacy, self._telemetry, self._totals, config.request_events_max, user_id)
        self._steady = SteadyClock(clock)
        self._backoff, self._retry_ms = Backoff(config.refill.backoff_ms, config.refill.backoff_max_ms, rng), 0
        # What is shown.
        self._feed = Feed(
            models, config, self.counters, self._telemetry, self._steady,
            paging=paging, strategies=strategies, tracer=tracer,
            shown_before=() if store is None else store.shown_items(user_id),
        )  # fmt: skip
        # `_arrival` serializes pages and `_swipe` guards the feed. Whoever holds both took `_arrival` first.
        self._swipe, self._arrival = threading.RLock(), threading.Lock()

    def __enter__(self) -> FeedSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Release the page that is held. Feedback that waits for its upload stays in its queue."""
        with self._swipe:
            self._feed.held = None

    @property
    def position(self) -> int:
        """Number of impressions so far, which is the position in the session of what `next` will show."""
        return self._feed.position

    @property
    def page_id(self) -> str | None:
        """Id of the page that is held."""
        held = self._feed.held
        return None if held is None else held.page.page_id

    @property
    def form(self) -> Form | None:
        """Form of the model that orders the page that is held; None for cloud order."""
        held = self._feed.held
        return None if held is None else held.form

    @property
    def remaining(self) -> NDArray[np.int64]:
        """Item ids of what was not shown yet, in the current order, best first."""
        with self._swipe:
            return self._feed.remaining

    # ------------------------------------------------------------------------------------------------------------- pages

    def use(self, ranker: Ranker | None, personal: PersonalLayer | None = None) -> None:
        """Order with other models from the next page on. They are given what was shown and how it was watched.

        Pages that were requested before have the old models' split version: request one after this. Raises ValueError as a
        new session does.
        """
        self._next_models.use(ranker, personal)

    def take(self, page: Page) -> bool:
        """Hold `page` in place of what was not shown yet. False when it is refused; the module says what stays then.

        The feedback that was sent along with its request is acknowledged as far as the page's receipt speaks of it, whatever
        the page is like. While requests are under way, a page that answers none of them is somebody else's, and is refused.
        """
        with self._swipe:
            if not self._exchange.arrived(page):
                self.counters.pages_refused += 1
                return False
        with self._arrival:
            taken_ms = self._clock()
            if not self._take(page, 0):
                return False
        if self._store is not None:
            self._store.save_page(self.user_id, page, taken_ms)
        return True

    def restore(self) -> bool:
        """Go on with the newest page in the store that is not stale and has items left; False when there is none.

        For a start without network: what was watched before is not shown again.
        """
        if self._store is None:
            return False
        with self._arrival:
            return any(self._take(kept.page, kept.age_ms) for kept in self._store.pages(self.user_id, self._clock()))

    def _take(self, page: Page, age_ms: int) -> bool:
        models = self._next_models.models
        held = read_page(page, models, self.counters, self._known)
        if held is None:
            return False
        if "no_model" in held.fallbacks:
            self._next_models.warn(models, held.fallbacks)
        with self._swipe:
            if models is not self._feed.models:
                # What was counted until now is reported with the old bundle's name.
                self._telemetry.merge(self._totals())
                self._telemetry.use_bundle(models.name, self._clock())
                self._exchange.privacy = self._config.privacy or models.privacy
                self._feed.use(models)
            self._feed.hold(held, age_ms)
        return True

    def _known(self) -> Set[int]:
        with self._swipe:
            return self._feed.shown.known

    # ------------------------------------------------------------------------------------------------------------ swipes

    def next(self) -> int | None:
        """Return the item to show now, which then counts as shown; None when nothing is held."""
        with self._swipe:
            return self._feed.next()

    def feedback(self, event: FeedbackEvent) -> bool:
        """Learn from a finished impression and queue it for upload. The next order takes it into account.

        False when the event is dropped, because its id is already known or the contract does not allow it.
        """
        count = self.counters
        try:
            event = from_msgpack(to_msgpack(event), FeedbackEvent)  # field types are not checked when a struct is made
            check_event(event)
        except ContractError:
            count.events_bad += 1
            return False
        if self._config.experiment is not None:
            event = replace(event, experiment=self._config.experiment)
        with self._swipe:
            if not self._exchange.add(event):
                count.events_duplicate += 1
                return False
            count.events += 1
            if event.user_id == self.user_id:
                self._feed.learn(event)
            else:  # of another account, as after a switch; it waits for that user's session or an uploader
                count.events_unknown_item += 1
            return True

    def own_id(self, item_id: int) -> str | None:
        """Return the team's own id of an item that is held or was shown; None where its page does not have it.

        Pages have own ids when `SessionConfig.own_ids` asks for them.
        """
        with self._swipe:
            held, shown = self._feed.held, self._feed.shown.get(item_id)
            for page in (*(() if held is None else (held.page,)), *(() if shown is None else (shown.page,))):
                keys: tuple[str, ...] = page.candidates.item_key or ()
                ids: list[int] = from_block(page.candidates.item_id).tolist()
                if len(keys) == len(ids) and item_id in ids:
                    return keys[ids.index(item_id)]
        return None

    def buffered(self, items: Mapping[int, int]) -> None:
        """Set what the player has on screen or loaded, in its order: item id → bytes.

        The strategy `KeepBuffered` shows these next, and those that a new page discards are counted.
        """
        with self._swipe:
            self._feed.buffered(items)

    # --------------------------------------------------------------------------------------------------------- the cloud

    def wants_page(self) -> PageDecision:
        """Return whether to ask the cloud for a page now, and for how many candidates."""
        with self._swipe:
            return self._feed.wants_page()

    def request(self, size: int, scene: int = 0, *, bare: bool = False) -> PageRequest:
        """Return the request for the next page, with feedback from the queue and telemetry unless it is `bare`.

        If it gets no answer, call `request_failed`. After two requests in a row without an answer every other one is `bare`, in
        case that it is the feedback that keeps the answer away.
        """
        self._next_models.refresh()
        bare = bare or self._exchange.bare
        feedback = () if bare else self._exchange.take()  # outside of the lock: a thousand events take milliseconds to read
        with self._swipe:
            self._requests += 1
            asked = PageRequest(
                request_id=f"{self._start}/{self._requests}",
                user_id=self.user_id,
                session_id=self.session_id,
                now_ms=self._clock(),
                size=size,
                scene=scene,
                split_version=self._next_models.models.split_version,
                experiment=self._config.experiment,
                exclude=self._feed.shown.exclude,
                own_ids=self._config.own_ids or UNSET,
            )
            return self._exchange.ask(asked, feedback, bare=bare)

    def request_failed(self, request: PageRequest, *, refused: bool = False) -> None:
        """Queue again what went along with a request that got no answer.

        `refused` says that the cloud took the request without its feedback and telemetry. Then the next one has half as many
        events, and an event that is refused alone is dropped and counted. So is one with which alone eight requests have failed
        while those without it were answered.
        """
        with self._swipe:
            self.counters.events_refused += self._exchange.failed(request.request_id, request.feedback, refused=refused)

    def refill(self, client: CloudClient, scene: int = 0) -> Refill:
        """Ask for a page if it is time to, and take it. Waits for the network, so do not call it on the thread that swipes.

        Never raises what the client raises: what was held stays, the feedback waits for the next call, and the cloud is asked
        again after a backoff.
        """
        from pocketrank.device.network.errors import BadStatusError, ClientError

        decision = self.wants_page()
        if not decision.request or self._steady() < self._retry_ms:
            return Refill(decision)
        try:
            page = self._ask(client, decision.size, scene)
        except ClientError as error:
            self.counters.pages_missing += 1
            self._wait(error.retry_after_s if isinstance(error, BadStatusError) else None)
            return Refill(decision, error=error)
        taken = self.take(page)
        if taken and page.ttl_ms >= self._config.refill.backoff_ms:
            self._backoff.succeeded()
            self._retry_ms = 0
        else:  # an answer that brings nothing to show, or nothing for long, would be asked for again at each swipe
            self._wait(None)
        return Refill(decision, taken)

    def _wait(self, asked_s: float | None) -> None:
        """Ask for no page until a backoff is over, after the time that the cloud asks for, as far as a backoff may last."""
        asked_ms = min(1e3 * (asked_s or 0.0), self._config.refill.backoff_max_ms)
        self._retry_ms = self._steady() + int(asked_ms + self._backoff.failed())

    def _ask(self, client: CloudClient, size: int, scene: int, *, bare: bool = False) -> Page:
        """Return the answer to a new request. When the cloud refuses what goes along, it is asked again without that."""
        from pocketrank.device.network.errors import BadAnswerError, BadStatusError

        request = self.request(size, scene, bare=bare)
        try:
            page = client.page(request)
            if page.request_id != request.request_id:  # as from a cache that confuses its clients
                raise BadAnswerError("POST /v1/page", f"the page of request {request.request_id}", f"{page.request_id!r:.100}")
            return page
        except BaseException as error:
            carries = bool(request.feedback) or request.telemetry is not None
            if not (carries and isinstance(error, BadStatusError) and error.refuses_body):
                self.request_failed(request)
                raise
        # Is it what goes along that the cloud refuses, or the request itself?
        try:
            page = self._ask(client, size, scene, bare=True)
        except BaseException:
            self.request_failed(request)
            raise
        self.request_failed(request, refused=True)
        return page

    def flush(self, client: CloudClient) -> int:
        """Upload all feedback in the queue and return the number of events that were acknowledged. For the end of a session.

        Raises `ClientError`: what was not acknowledged is queued again.
        """
        with self._swipe:
            report = self._exchange.report(self._clock())
        sent = self._exchange.flush(client, report)
        with self._swipe:
            self.counters.events_refused += sent.refused
        return sent.acknowledged

    def drain_feedback(self) -> tuple[FeedbackEvent, ...]:
        """Return the events in the queue, oldest first. The caller sends them, then calls `acknowledge` or `put_back`."""
        return self._exchange.outbox.take(user_id=self.user_id)

    def acknowledge(self, events: Iterable[FeedbackEvent]) -> None:
        """Forget these events, which the cloud has."""
        self._exchange.outbox.acknowledge(events)

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Queue events again that could not be sent."""
        with self._swipe:
            self._exchange.put_back(events)

    def _totals(self) -> dict[str, int]:
        """All counters of the session and its parts."""
        return asdict(self.counters) | self._feed.totals() | {"events_dropped": self._exchange.outbox.dropped}


def _check_request(user_id: int, session_id: str, experiment: str | None) -> None:
    """Raise `ContractError` for what would make every page request of a session fail."""
    asked = PageRequest(request_id="", user_id=user_id, session_id=session_id, now_ms=0, size=1, experiment=experiment)
    from_msgpack(to_msgpack(asked), PageRequest)
    check_experiment(experiment, "$.experiment")
    if len(session_id) > _SESSION_ID_MAX:
        raise ContractError("$.session_id", f"at most {_SESSION_ID_MAX} characters", f"{len(session_id)} characters")
