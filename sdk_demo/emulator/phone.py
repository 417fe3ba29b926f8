"""One session on one phone: the real SDK between a live server and a simulated user.

A phone may delay its feedback: an impression is sent to the cloud no sooner than `feedback_delay_ms` of the user's time after
its end. The session on the phone knows each impression at once, the cloud only after the delay. Delayed feedback that is left
when the session ends is sent then, hours before the user's next session.
"""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from threading import Event, Lock
from time import perf_counter

from msgspec.structs import replace

from pocketrank.device import ClientError, CloudClient, FeedbackEvent, FeedSession, SessionConfig, Tracer
from pocketrank.sdk_demo.emulator.asking import RandomPaging
from pocketrank.sdk_demo.emulator.logged import LoggedUser
from pocketrank.sdk_demo.emulator.policies import Policy
from pocketrank.sdk_demo.emulator.records import SessionRecord
from pocketrank.sdk_demo.world import UserSession

__all__ = ["Phone", "due"]


class Phone:
    """Runs sessions under one policy. `experiment` is the name under which the server keeps their feedback.

    Phones of a process share the lock `turn`: one swipes at a time, so that waiting for Python's own lock does not count as the
    SDK's time. Waiting for the network is outside of it. Each session writes a trace of its decisions into the folder `traces`.
    """

    def __init__(
        self,
        client: CloudClient,
        policy: Policy,
        *,
        experiment: str,
        turn: Lock,
        feedback_delay_ms: int = 0,
        traces: Path | None = None,
    ) -> None:
        self._client, self._policy, self._experiment, self._turn = client, policy, experiment, turn
        self._feedback_delay_ms, self._traces = feedback_delay_ms, traces

    def __call__(self, user: UserSession | LoggedUser, session_id: str, stop: Event) -> SessionRecord:
        """Swipe until the user leaves, or `stop` is set.

        Raises `ClientError` when a page request fails and nothing is left to show, `TracePlaceError` when a trace of that
        session exists already.
        """
        if self._traces is None:
            return self._run(user, session_id, stop, None)
        with Tracer(self._traces / f"{self._policy.name}-{session_id.rpartition('/')[2]}.trace") as tracer:
            return self._run(user, session_id, stop, tracer)

    def _run(self, user: UserSession | LoggedUser, session_id: str, stop: Event, tracer: Tracer | None) -> SessionRecord:
        record = SessionRecord(self._policy.name, user.user_id)
        paging = self._policy.paging_for(user)
        feed = FeedSession(
            self._policy.ranker,
            user_id=user.user_id,
            session_id=session_id,
            config=SessionConfig(experiment=self._experiment, expects_model=self._policy.uses_models),
            paging=paging,
            clock=lambda: user.now_ms,
            tracer=tracer,
        )
        while user.alive and not stop.is_set():
            decision = feed.wants_page()
            if decision.request:
                self._request_page(feed, decision.size, record)
            with self._turn:
                if not self._swipe(feed, user, record):
                    record.starved = True
                    break
        self._upload(feed, record)
        record.counters = feed.counters
        record.decisions = paging.decisions if isinstance(paging, RandomPaging) else []
        return record

    def _request_page(self, feed: FeedSession, size: int, record: SessionRecord) -> None:
        request = feed.request(size)
        sent = due(request.feedback, request.now_ms - self._feedback_delay_ms)
        feed.put_back(request.feedback[len(sent) :])
        request = replace(request, feedback=sent)
        record.requests += 1
        started = perf_counter()
        try:
            page = self._client.page(request)
        except ClientError:
            feed.put_back(request.feedback)
            if not len(feed.remaining):
                raise
            record.pages_missing += 1
            return
        record.page_ms.append((perf_counter() - started) * 1e3)
        record.candidates += page.candidates.item_id.shape[0]
        feed.take(page)

    def _swipe(self, feed: FeedSession, user: UserSession | LoggedUser, record: SessionRecord) -> bool:
        """Show one item and return True, or return False when there is none."""
        reranks, started = feed.counters.reranks, perf_counter()
        item = self._policy.pick(feed, user)
        spent = perf_counter() - started
        if item is None:
            return False
        if feed.counters.reranks > reranks:
            record.rerank_ms.append(spent * 1e3)
        outcome = user.watch(item)
        event = outcome.event(
            event_id=f"{feed.session_id}/{outcome.position}", session_id=feed.session_id, page_id=feed.page_id
        )  # fmt: skip
        feed.feedback(event)
        record.effective.append(outcome.effective_view)
        record.likes += outcome.like
        record.follows += outcome.follow
        record.watch_ms += outcome.watch_ms
        return True

    def _upload(self, feed: FeedSession, record: SessionRecord) -> None:
        events = feed.drain_feedback()
        if not events:
            return
        try:
            self._client.send_feedback(events)
        except ClientError:
            feed.put_back(events)
            record.uploads_missing += 1


def due(events: tuple[FeedbackEvent, ...], until_ms: int) -> tuple[FeedbackEvent, ...]:
    """Return the first of `events`, which are in order of time, whose impressions ended by `until_ms`."""
    return tuple(takewhile(lambda event: event.impression_ms + event.watch_ms <= until_ms, events))
