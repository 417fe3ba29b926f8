"""What a session sends to the cloud: feedback from the queue and telemetry, as far as they may leave the device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

from msgspec.structs import replace

from pocketrank.device.contract import NO_FEEDBACK, FeedbackEvent, FeedbackReceipt, Page, PageRequest, TelemetryReport
from pocketrank.device.feedback.privacy import PrivacyPolicy
from pocketrank.device.offline.outbox import Outbox
from pocketrank.device.reports.telemetry import Telemetry

if TYPE_CHECKING:
    from pocketrank.device.network.client import CloudClient

__all__ = ["Exchange", "Flushed"]

_PENDING_MAX = 8
"""Maximum number of requests without an answer that are remembered; an app has one."""
_BYTES_MAX = 256 << 10  # of feedback in a call; the server takes 1 MiB
_SHRINK = 4
"""Divisor of the number of events that go along, after a call that failed because of them or took too long."""
_FEW = 16
"""Events that any network takes in one call: some 6 kB."""
_DOUBT = 2
"""Failures in a row after which every other page request carries nothing."""
_PROOFS = 8
"""Times that a request is answered without an event, and fails with that event alone, before the event is dropped; likewise for
telemetry."""


class Flushed(NamedTuple):
    """Result of `Exchange.flush`, in events."""

    acknowledged: int
    refused: int


class Exchange:
    """Feedback and telemetry of one session, and what of them went along with which request.

    A page request must not depend on what goes along, whatever the cloud or a network has against it. So after two failures in
    a row every other request carries nothing. When such a request is answered, the one before is taken to have failed because
    of what it carried: telemetry goes along again after some feedback has arrived, and fewer events go along from then on.

    `add`, `take` and `flush` are as thread-safe as the outbox. The others are for one thread at a time.
    """

    def __init__(
        self,
        outbox: Outbox,
        privacy: PrivacyPolicy,
        telemetry: Telemetry,
        totals: Callable[[], Mapping[str, int]],
        events_max: int,
        user_id: int,
    ) -> None:
        """`totals` returns counters that only grow; each report has what they grew by. A call carries at most `events_max`, all
        of the user's."""
        self.outbox, self.privacy, self.telemetry, self._totals = outbox, privacy, telemetry, totals
        self._user_id = user_id
        self._events_max = self._limit = events_max  # the limit shrinks while what goes along makes calls fail
        self._pending: dict[str, PageRequest] = {}  # by id, as they were before `privacy` changed them
        self._failures = self._proofs = 0  # since a request was answered together with what it carried
        self._reports_suspected = 0  # since one was with telemetry
        self._suspect: PageRequest | None = None  # the last one that failed, if the next one is to carry nothing

    def add(self, event: FeedbackEvent) -> bool:
        """Queue what may leave of `event`; False when its id is already known."""
        return self.outbox.add(self.privacy.event(event))

    @property
    def bare(self) -> bool:
        """Whether the next request is to carry nothing."""
        return self._suspect is not None

    def take(self) -> tuple[FeedbackEvent, ...]:
        """Take as much feedback from the queue as one call carries."""
        return self.outbox.take(self._limit, _BYTES_MAX, self._user_id)

    def ask(self, request: PageRequest, feedback: tuple[FeedbackEvent, ...], *, bare: bool = False) -> PageRequest:
        """Return `request` with the feedback that was taken for it, and a telemetry report unless it is `bare`.

        After failures feedback goes first, and alone.
        """
        bare = bare or self._failures >= _DOUBT
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
        if not _carries(sent):
            self._blame()
            return True
        if NO_FEEDBACK in page.degraded:
            self.outbox.put_back(sent.feedback)
        elif sent.feedback:
            self.outbox.acknowledge(sent.feedback)
            self._limit = min(2 * self._limit, self._events_max)
        self._failures, self._proofs, self._suspect = 0, 0, None
        if sent.telemetry is not None:
            self._reports_suspected = 0
        return True

    def _blame(self) -> None:
        """Let less go along with the next requests, after one that carried nothing was answered."""
        suspect, self._suspect = self._suspect, None
        if suspect is None:
            return
        if suspect.telemetry is None:
            self._limit = max(1, len(suspect.feedback) // _SHRINK)
            self._proofs += len(suspect.feedback) == 1
        elif self._reports_suspected < _PROOFS:  # the next request is without telemetry
            self._reports_suspected += 1
        else:
            self.telemetry.discard(suspect.telemetry)

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
        the next time. Returns the number of events that were dropped: one that was refused alone, or failed alone too often.
        """
        sent = self._pending.pop(request_id, None)
        events, report = (tuple(feedback), None) if sent is None else (sent.feedback, sent.telemetry)
        if not refused:
            self.telemetry.put_back(report)
            self._suspect = None
            if sent is not None and _carries(sent):
                if self._proofs >= _PROOFS and len(events) == 1:
                    self._failures = self._proofs = 0
                    self.outbox.acknowledge(events)
                    return 1
                self._failures += 1
                self._suspect = sent if self._failures >= _DOUBT else None
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

        A network may refuse whatever is sent. So nothing counts as refused before a batch was taken, be it an empty one. Raises
        `ClientError`: the rest is queued again.
        """
        from pocketrank.device.network.errors import BadStatusError

        acknowledged = refused = 0
        takes = False  # whether a batch was taken
        while (events := self.take()) or report is not None:
            try:
                receipt = _send(client, events, report)
            except BaseException as error:
                try:
                    if not (isinstance(error, BadStatusError) and error.refuses_body):
                        raise
                    if not takes:
                        _send(client, (), None)
                except BaseException:
                    self._limit = max(len(events) // _SHRINK, min(len(events), _FEW))  # it may have taken too long
                    self.outbox.put_back(events)
                    self.telemetry.put_back(report)
                    raise
                takes = True
                if report is not None:
                    self.telemetry.count("reports_dropped")
                    report = None
                elif len(events) == 1:
                    self.outbox.acknowledge(events)
                    refused += 1
                    continue
                else:
                    self._limit = len(events) // 2
                self.outbox.put_back(events)
                continue
            self.outbox.acknowledge(events)
            self._limit = min(2 * self._limit, self._events_max)
            takes, report = True, None
            acknowledged += len(events) - len(receipt.refused)
            refused += len(receipt.refused)
        return Flushed(acknowledged, refused)


def _carries(request: PageRequest) -> bool:
    return bool(request.feedback) or request.telemetry is not None


def _send(client: CloudClient, events: tuple[FeedbackEvent, ...], report: TelemetryReport | None) -> FeedbackReceipt:
    """Return the receipt for a batch. Raises `ClientError`."""
    from pocketrank.device.network.errors import BadAnswerError

    receipt = client.send_feedback(events, report)
    if not receipt.settles(events):
        raise BadAnswerError("POST /v1/feedback", f"a receipt for {len(events)} events", repr(receipt))
    return receipt
