"""What a session sends to the cloud: feedback from the queue and telemetry, as far as they may leave the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from msgspec.structs import replace

from pocketrank.device.contract import FeedbackEvent, PageRequest, TelemetryReport
from pocketrank.device.feedback.privacy import PrivacyPolicy
from pocketrank.device.offline.outbox import Outbox
from pocketrank.device.reports.telemetry import Telemetry

if TYPE_CHECKING:
    from pocketrank.device.network.client import CloudClient

__all__ = ["Exchange"]

_PENDING_MAX = 8
"""Maximum number of requests without an answer that are remembered; an app has one."""
_BYTES_MAX = 256 << 10  # of feedback in a call; the server takes 1 MiB


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
        self._events_max = events_max
        self._pending: dict[str, PageRequest] = {}  # by id, as they were before `privacy` changed them

    def add(self, event: FeedbackEvent) -> bool:
        """Queue what may leave of `event`; False when its id is already known."""
        return self.outbox.add(self.privacy.event(event))

    def take(self) -> tuple[FeedbackEvent, ...]:
        """Take as much feedback from the queue as one call carries."""
        return self.outbox.take(self._events_max, _BYTES_MAX)

    def ask(self, request: PageRequest, feedback: tuple[FeedbackEvent, ...]) -> PageRequest:
        """Return `request` with the feedback that was taken for it, and a telemetry report."""
        sent = replace(request, feedback=feedback, telemetry=self.report(request.now_ms))
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

    def arrived(self, request_id: str) -> None:
        """Acknowledge what went along with the request, which the cloud has answered."""
        if (sent := self._pending.pop(request_id, None)) is not None:
            self.outbox.acknowledge(sent.feedback)

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """Queue events again that were not sent. An answer to their request no longer acknowledges them."""
        events = tuple(events)
        ids = {event.event_id for event in events}
        for request_id, sent in self._pending.items():
            self._pending[request_id] = replace(sent, feedback=tuple(e for e in sent.feedback if e.event_id not in ids))
        self.outbox.put_back(events)

    def failed(self, request_id: str, feedback: Iterable[FeedbackEvent]) -> None:
        """Queue again what went along with a request that got no answer; `feedback` when the request is not known."""
        sent = self._pending.pop(request_id, None)
        self.outbox.put_back(feedback if sent is None else sent.feedback)
        if sent is not None:
            self.telemetry.put_back(sent.telemetry)

    def flush(self, client: CloudClient, report: TelemetryReport | None) -> int:
        """Upload `report` and all feedback in the queue, and return the number of events that were acknowledged.

        Raises `ClientError`: the rest is queued again.
        """
        done = 0
        while (events := self.take()) or report is not None:
            try:
                client.send_feedback(events, report)
            except BaseException:
                self.outbox.put_back(events)
                self.telemetry.put_back(report)
                raise
            self.outbox.acknowledge(events)
            done, report = done + len(events), None
        return done
