"""What goes from a session to the cloud: feedback that waits, what the device tells of itself, and what of both may leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from pocketrank.device.contract import FeedbackEvent, PageRequest, TelemetryReport
from pocketrank.device.feedback.privacy import PrivacyPolicy
from pocketrank.device.offline.outbox import Outbox
from pocketrank.device.reports.telemetry import Telemetry

if TYPE_CHECKING:
    from pocketrank.device.network.client import CloudClient

__all__ = ["Exchange"]

_ASKED_MAX = 8
"""Requests under way that are remembered; an app has one."""
_BYTES_MAX = 256 << 10  # of feedback in a call; the server takes 1 MiB


class _Sent(NamedTuple):
    feedback: tuple[FeedbackEvent, ...]
    telemetry: TelemetryReport | None


class Exchange:
    """Thread-safe as its outbox is; `telemetry` is told under the session's lock."""

    def __init__(
        self,
        outbox: Outbox,
        privacy: PrivacyPolicy,
        telemetry: Telemetry,
        totals: Callable[[], Mapping[str, int]],
        events_max: int,
    ) -> None:
        """`totals` are counters that only grow; what they grew by goes along with each report. A call takes `events_max`."""
        self.outbox, self.privacy, self.telemetry, self._totals = outbox, privacy, telemetry, totals
        self._events_max = events_max
        self._asked: dict[str, _Sent] = {}

    def add(self, event: FeedbackEvent) -> bool:
        """Queue what of `event` may leave; False when its id is known."""
        return self.outbox.add(self.privacy.event(event))

    def take(self) -> tuple[FeedbackEvent, ...]:
        """Feedback that waits, as much as a call takes."""
        return self.outbox.take(self._events_max, _BYTES_MAX)

    def ask(self, request: PageRequest, feedback: tuple[FeedbackEvent, ...]) -> PageRequest:
        """`request` with the feedback that was taken for it, and the device's report of itself."""
        sent = _Sent(feedback, self.report(request.now_ms))
        self._asked[request.request_id] = sent
        if len(self._asked) > _ASKED_MAX:  # an app that neither takes a page nor says that none came
            oldest = next(iter(self._asked))
            self.failed(oldest, ())
        return self.privacy.request(msgspec.structs.replace(request, feedback=sent.feedback, telemetry=sent.telemetry))

    def report(self, now_ms: int) -> TelemetryReport | None:
        """What the device tells of itself since the last time."""
        if not (self.privacy.telemetry and self.telemetry.sampled):
            return None
        self.telemetry.merge(self._totals())
        return self.telemetry.report(now_ms)

    def arrived(self, request_id: str) -> None:
        """The cloud answered: what went along with the request is there."""
        if (sent := self._asked.pop(request_id, None)) is not None:
            self.outbox.acknowledge(sent.feedback)

    def put_back(self, events: Iterable[FeedbackEvent]) -> None:
        """These were not sent, and wait again: an answer to the request that they were taken for says nothing of them."""
        events = tuple(events)
        ids = {event.event_id for event in events}
        for request_id, sent in self._asked.items():
            self._asked[request_id] = sent._replace(feedback=tuple(e for e in sent.feedback if e.event_id not in ids))
        self.outbox.put_back(events)

    def failed(self, request_id: str, feedback: Iterable[FeedbackEvent]) -> None:
        """The cloud did not answer: what went along waits again."""
        sent = self._asked.pop(request_id, None)
        self.outbox.put_back(feedback if sent is None else sent.feedback)
        if sent is not None:
            self.telemetry.put_back(sent.telemetry)

    def flush(self, client: CloudClient, report: TelemetryReport | None) -> int:
        """Upload all that waits and `report`; the number of events that the cloud now has. Raises `ClientError`: the rest waits
        again.
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
