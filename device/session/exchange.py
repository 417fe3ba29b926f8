"""What a session sends to the cloud: feedback from the queue and telemetry, as far as they may leave the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from pocketrank.device.contract import NO_FEEDBACK, FeedbackEvent, Page, PageRequest, TelemetryReport
from pocketrank.device.feedback.privacy import PrivacyPolicy
from pocketrank.device.offline.outbox import Outbox
from pocketrank.device.reports.telemetry import Telemetry

if TYPE_CHECKING:
    from pocketrank.device.network.client import CloudClient

__all__ = ["Exchange", "Flushed"]

_PENDING_MAX = 8
"""Maximum number of requests without an answer that are remembered; an app has one."""
_BYTES_MAX = 256 << 10  # of feedback in a call; the server takes 1 MiB


class Flushed(NamedTuple):
    """Result of `Exchange.flush`, in events."""

    acknowledged: int
    refused: int


class Exchange:
    """Feedback and telemetry of one session, and what of them went along with which request.

    `add`, `take` and `flush` are as thread-safe as the outbox. The others are for one thread at a time.
    """

    def __init__(
        self,
        outbox: Outbox,
        privacy: PrivacyPolicy,
        telemetry: Telemetry,
        totals: Callable[[], Mapping[str, int]],
        events_max: int,
    ) -> None:
        """`totals` returns counters that only grow; each report has what they grew by. A call carries at most `events_max`."""
        self.outbox, self.privacy, self.telemetry, self._totals = outbox, privacy, telemetry, totals
        self._events_max = self._limit = events_max  # the limit shrinks while the cloud refuses what goes along
        self._pending: dict[str, PageRequest] = {}  # by id, as they were before `privacy` changed them

    def add(self, event: FeedbackEvent) -> bool:
        """Queue what may leave of `event`; False when its id is already known."""
        return self.outbox.add(self.privacy.event(event))

    def take(self) -> tuple[FeedbackEvent, ...]:
        """Take as much feedback from the queue as one call carries."""
        return self.outbox.take(self._limit, _BYTES_MAX)

    def ask(self, request: PageRequest, feedback: tuple[FeedbackEvent, ...], *, bare: bool = False) -> PageRequest:
        """Return `request` with the feedback that was taken for it, and a telemetry report unless it is `bare`."""
        sent = replace(request, feedback=feedback, telemetry=None if bare else self.report(request.now_ms))
        self._pending[request.request_id] = sent
        if len(self._pending) > _PENDING_MAX:  # an app that neither takes a page nor reports that the request failed
            self.failed(next(iter(self._pending)), ())
        return self.privacy.request(sent)

    def report(self, now_ms: int) -> TelemetryReport | None:
        """Return the telemetry since the last report; None when there is nothing, or nothing may leave."""
        if not (self.privacy.telemetry and self.telemetry.sampled):
            return None
        self.telemetry.merge(self._totals())
        return self.telemetry.report(now_ms)

    def arrived(self, page: Page) -> bool:
        """Acknowledge what went along with the page's request, unless the page says that the cloud could not keep it.

        False when other requests are under way, and not this one. What went along with those is queued again, because such a
        page may have come in place of their answers.
        """
        if (sent := self._pending.pop(page.request_id, None)) is None:
            for other in self._pending.values():
                self.outbox.put_back(other.feedback)
            return not self._pending
        if NO_FEEDBACK in page.degraded:
            self.outbox.put_back(sent.feedback)
        elif sent.feedback:
            self.outbox.acknowledge(sent.feedback)
            self._limit = min(2 * self._limit, self._events_max)
        return True

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Queue events again that were not sent. An answer to their request no longer acknowledges them."""
        events = tuple(events)
        ids = {event.event_id for event in events}
        for request_id, sent in self._pending.items():
            self._pending[request_id] = replace(sent, feedback=tuple(e for e in sent.feedback if e.event_id not in ids))
        self.outbox.put_back(events)

    def failed(self, request_id: str, feedback: Iterable[FeedbackEvent], *, refused: bool = False) -> int:
        """Queue again what went along with a request that got no answer; `feedback` when the request is not known.

        `refused`: the cloud took the request without it. Then the telemetry is dropped, or else half as many events go along
        the next time. Returns the number of events that were dropped: one that was refused alone.
        """
        sent = self._pending.pop(request_id, None)
        events, report = (tuple(feedback), None) if sent is None else (sent.feedback, sent.telemetry)
        if not refused:
            self.telemetry.put_back(report)
        elif report is not None:
            self.telemetry.count("reports_dropped")
        elif len(events) == 1:
            self.outbox.acknowledge(events)
            return 1
        else:
            self._limit = max(1, len(events) // 2)
        self.outbox.put_back(events)
        return 0

    def flush(self, client: CloudClient, report: TelemetryReport | None) -> Flushed:
        """Upload `report` and all feedback in the queue. What the cloud refuses is sent again in halves, and dropped alone.

        Raises `ClientError`: the rest is queued again.
        """
        from pocketrank.device.network.errors import BadAnswerError, BadStatusError

        acknowledged = refused = 0
        limit = self._events_max
        while (events := self.outbox.take(limit, _BYTES_MAX)) or report is not None:
            try:
                receipt = client.send_feedback(events, report)
                if not receipt.settles(events):
                    raise BadAnswerError("POST /v1/feedback", f"a receipt for {len(events)} events", repr(receipt))
            except BaseException as error:
                if not (isinstance(error, BadStatusError) and error.refuses_body):
                    self.outbox.put_back(events)
                    self.telemetry.put_back(report)
                    raise
                if report is not None:
                    self.telemetry.count("reports_dropped")
                    report = None
                elif len(events) == 1:
                    self.outbox.acknowledge(events)
                    refused += 1
                    continue
                else:
                    limit = len(events) // 2
                self.outbox.put_back(events)
                continue
            self.outbox.acknowledge(events)
            acknowledged, report = acknowledged + len(events), None
        return Flushed(acknowledged, refused)
