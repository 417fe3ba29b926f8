from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device import FeedbackEvent
from pocketrank.sdk_demo.emulator.phone import due

steps = st.lists(st.tuples(st.integers(0, 60_000), st.integers(0, 5_000)), max_size=20)


@given(steps, st.integers(0, 10**6))
def test_what_ended_by_then_is_due_and_nothing_after_it(watched: list[tuple[int, int]], until_ms: int) -> None:
    events, ends, now_ms = [], [], 0
    for position, (watch_ms, gap_ms) in enumerate(watched):
        events.append(
            FeedbackEvent(
                event_id=str(position),
                user_id=1,
                session_id="s",
                item_id=1,
                position=position,
                impression_ms=now_ms,
                watch_ms=watch_ms,
            )
        )
        ends.append(now_ms + watch_ms)
        now_ms += watch_ms + gap_ms
    first = due(tuple(events), until_ms)
    assert first == tuple(events[: sum(end <= until_ms for end in ends)])
    assert due(tuple(events), now_ms) == tuple(events), "without a delay all of it goes"
