"""The join of all records at once, as `pocketrank.cloud.streams.join` specifies it, and random records to compare by."""

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

import numpy as np

from pocketrank.cloud.streams.event_log import Record, Topic
from pocketrank.cloud.streams.feedback_log import LoggedEvent
from pocketrank.cloud.streams.join_state import Durations, JoinConfig, actions_of, is_negative, labels_of
from pocketrank.cloud.streams.messages import Sample, ServedInputs, ServedPage
from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import Ended

TASKS, STATISTICS = 3, 2
HOUR_MS, BASE_MS = 3_600_000, 1_700_000_000_000


class Joined(NamedTuple):
    """Last revision of a sample."""

    labels: dict[str, bool]
    watch_ms: int
    shown: bool


@dataclass
class _Page:
    page: ServedPage
    user: int
    ms: int
    items: list[int]


@dataclass
class _Event:
    event: LoggedEvent
    user: int
    ms: int

    @property
    def key(self) -> tuple[int, int]:
        return self.event.position, self.event.impression_ms + self.event.correction_ms

    @property
    def session(self) -> tuple[int, str]:
        return self.user, self.event.session_id


def served(page_id: str, user_id: int, session_id: str, items: Sequence[int], served_ms: int, seed: int = 0) -> ServedPage:
    """Return a page with random numbers."""
    rng, n = np.random.default_rng(seed), len(items)
    return ServedPage(
        page_id=page_id,
        session_id=session_id,
        served_ms=served_ms,
        run="run",
        inputs=ServedInputs(user_id=user_id, scene=0, hour=3, history_item=b"", history_feedback=b""),
        item_id=np.array(items, "<i8").tobytes(),
        pxtr=rng.random((n, TASKS), np.float32).tobytes(),
        score=rng.random(n, np.float32).tobytes(),
        statistics=rng.random((n, STATISTICS), np.float32).tobytes(),
    )


def batch_join(
    records: Sequence[tuple[Topic, Record]], config: JoinConfig, durations: Durations, now_ms: int
) -> dict[tuple[str, int], Joined]:
    """Return the last revision of each sample, by page and item, of all records, which are in the order of their time."""
    pages, events = dict[str, _Page](), list[_Event]()
    activity = defaultdict[tuple[int, str], list[int]](list)
    for topic, record in records:
        if topic == "pages":
            page = from_msgpack(record.value, ServedPage)
            items = np.frombuffer(page.item_id, "<i8").tolist()
            pages.setdefault(page.page_id, _Page(page, record.key, record.appended_ms, items))
            activity[record.key, page.session_id].append(record.appended_ms)
        else:
            event = from_msgpack(record.value, LoggedEvent)
            events.append(_Event(event, record.key, record.appended_ms))
            activity[record.key, event.session_id].append(record.appended_ms)

    def ends(session: tuple[int, str], since: int, page: _Page) -> bool:
        """Return whether a session was over by time, after `since` and while a page took events."""
        times = [*activity[session], now_ms]
        over = [a + config.session_ms for a, b in itertools.pairwise(times) if a >= since and b - a >= config.session_ms]
        return any(at < page.ms + config.late_ms for at in over)

    shown = defaultdict[tuple[str, int], list[_Event]](list)
    for one in events:
        found = pages.get(one.event.page_id or "")
        if found is None or found.user != one.user or one.event.item_id not in found.items:
            continue
        in_time = one.ms - found.ms < config.late_ms if one.ms >= found.ms else found.ms - one.ms < config.wait_ms
        same = shown[found.page.page_id, one.event.item_id]
        if in_time and one.event.event_id not in [other.event.event_id for other in same]:
            same.append(one)

    joined = dict[tuple[str, int], Joined]()
    for (page_id, item_id), own in shown.items():
        if not own:
            continue
        page = pages[page_id]
        watch_ms = max(one.event.watch_ms for one in own)
        actions = {name for one in own for name in actions_of(one.event)}
        labels = labels_of(watch_ms, actions, durations(item_id), config.actions)
        followed = any(
            other.session == one.session
            and other.key > one.key
            and (other.event.page_id, other.event.item_id) != (page_id, item_id)
            and other.ms < page.ms + config.late_ms
            for one in own
            for other in events
        )
        left = any(one.event.ended in (Ended.EXIT, Ended.BACKGROUND) for one in own)
        over = any(ends(one.session, one.ms, page) for one in own)
        if config.has_next and (followed or left or over):
            labels["has_next"] = followed
        if not config.wait_for_next or "has_next" in labels:
            joined[page_id, item_id] = Joined(labels, watch_ms, True)
    for page in pages.values():
        this = page.page
        places = sorted(page.items.index(item) for (page_id, item), own in shown.items() if page_id == this.page_id and own)
        later = any(
            (other.user, other.page.session_id) == (page.user, this.session_id)
            and (other.page.served_ms, other.page.page_id) > (this.served_ms, this.page_id)
            and other.ms < page.ms + config.late_ms
            for other in pages.values()
        )
        closed = later or ends((page.user, this.session_id), page.ms, page)
        passed = places[-config.exposures] if len(places) >= config.exposures else 0
        for item in dict.fromkeys(page.items):
            place = page.items.index(item)
            if place not in places and (closed or place < passed) and is_negative(this.page_id, item, config.negatives):
                joined[this.page_id, item] = Joined({}, 0, False)
    return joined


def last_revisions(samples: Sequence[Sample]) -> dict[tuple[str, int], Joined]:
    """Return the last revision of each sample. Asserts that revisions have no gap, and name the labels of before."""
    last = dict[tuple[str, int], Sample]()
    for sample in samples:
        before = last.get((sample.page_id, sample.item_id))
        assert sample.revision == (0 if before is None else before.revision + 1), sample
        assert sample.before == ({} if before is None else before.labels), sample
        last[sample.page_id, sample.item_id] = sample
    return {key: Joined(sample.labels, sample.watch_ms, sample.shown) for key, sample in last.items()}


def random_records(rng: Random, users: int = 4, pages: int = 4) -> list[tuple[Topic, Record]]:
    """Return the records of random sessions in the order of their time: 30 % of the events twice, 20 % up to 24 h late, some
    pages after their events, and devices whose clocks are wrong."""
    made = list[tuple[int, Topic, int, bytes]]()
    for user in range(1, users + 1):
        made += _of_user(rng, user, pages)
    made.sort(key=lambda one: one[:2] + one[3:])
    made.sort(key=lambda one: (one[0], one[1] == "feedback"))
    counts = {"pages": 0, "feedback": 0}
    records = list[tuple[Topic, Record]]()
    for ms, topic, user, value in made:
        counts[topic] += 1
        records.append((topic, Record(user, value, ms, 0, counts[topic])))
    return records


def _of_user(rng: Random, user: int, pages: int) -> Iterator[tuple[int, Topic, int, bytes]]:
    now, wrong_ms = BASE_MS + rng.randrange(HOUR_MS), rng.choice([0, 0, -(10**11), 10**12])
    for session in range(2):
        now += rng.randrange(4 * HOUR_MS)
        position = 0
        for number in range(rng.randrange(1, pages + 1)):
            page_id, session_id = f"{user}-{session}-{number}", f"s{session}"
            items = [rng.randrange(1, 60) for _ in range(rng.randrange(2, 9))]
            page = served(page_id, user, session_id, items, now, seed=rng.randrange(99))
            delay = rng.choice([0, 0, 0, 0, 3000, 500_000, 1_500_000])
            for again in range(1 + (rng.random() < 0.2)):
                yield now + delay + again * rng.randrange(1, 10**6), "pages", user, to_msgpack(page)
            for item in items[: rng.randrange(len(items) + 1)]:
                if rng.random() < 0.3:
                    continue  # not shown
                now += rng.choice([1000, 9000, 20_000, 2_000_000])
                for more in range(1 + (rng.random() < 0.2)):
                    fields: dict[str, Any] = {
                        "event_id": f"{page_id}-{item}-{more}-{rng.randrange(9)}",
                        "user_id": user,
                        "session_id": session_id,
                        "item_id": item if rng.random() < 0.97 else 77,
                        "position": position if rng.random() < 0.9 else 0,
                        "impression_ms": max(0, now + wrong_ms),
                        "correction_ms": rng.choice([0, -wrong_ms, 5]),
                        "watch_ms": rng.choice([0, 500, 7000, 20_000]),
                        "page_id": rng.choice([page_id] * 20 + [None, "gone"]),
                        "ended": rng.choice([Ended.SWIPE] * 6 + [Ended.EXIT, Ended.BACKGROUND]),
                        "like": rng.random() < 0.3,
                        "actions": ("buy",) if rng.random() < 0.2 else (),
                    }
                    value = to_msgpack(LoggedEvent(**fields))
                    at = now + (rng.randrange(24 * HOUR_MS) if rng.random() < 0.2 else rng.randrange(2000))
                    yield at, "feedback", user, value
                    if rng.random() < 0.3:
                        yield at + rng.randrange(10**7), "feedback", user, value
                position += 1
