import math
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketrank.device.codec import from_msgpack, to_msgpack
from pocketrank.device.contract import FeedbackBatch, FeedbackEvent, PageRequest, TelemetryReport
from pocketrank.device.feedback.privacy import ACTIONS, ALWAYS, PrivacyError, PrivacyPolicy
from pocketrank.device.network.client import CloudClient
from pocketrank.device.session import FeedSession, SessionConfig
from tests.device.network.test_client import Cloud, serving
from tests.device.tap import requests, tapped
from tests.device.worlds import SPEC, T0, Clock, make_event, make_page
from tests.vectors.generate import valid

FULL: Any = msgspec.structs.replace(
    valid()["event_full"], muted=True, backgrounded=True, age_ms=9_000, actions=("purchase", "add_to_cart")
)
"""An event in which no optional field has its default."""
UNREPORTED = {f.name: f.default for f in msgspec.structs.fields(FeedbackEvent)} | {"version": None}
NAMES = sorted(UNREPORTED.keys() - ALWAYS)
STEPS = {"volume": 0.1, "volume_change": 0.25, "watch_ms": 1000, "impression_ms": 60_000, "scroll_speed": 0.3}
policies = st.builds(
    PrivacyPolicy,
    fields=st.frozensets(st.sampled_from(NAMES)),
    steps=st.sets(st.sampled_from(sorted(STEPS))).map(lambda names: {name: STEPS[name] for name in names}),
    exclude=st.booleans(),
    telemetry=st.booleans(),
)
whole = st.integers(-(2**63), 2**63 - 1)
events = st.builds(
    make_event,
    whole,
    volume=st.none() | st.floats(),
    volume_change=st.none() | st.floats(),
    scroll_speed=st.none() | st.floats(),
    watch_ms=whole,
    impression_ms=whole,
    like=st.booleans(),
    muted=st.none() | st.booleans(),
)


def reported(event: FeedbackEvent | dict[str, Any]) -> set[str]:
    """Return the fields that do not have their defaults."""
    fields = event if isinstance(event, dict) else msgspec.structs.asdict(event)
    return {name for name, value in fields.items() if value != UNREPORTED.get(name, ...)}


def test_the_full_event_is_full() -> None:
    assert reported(FULL) == UNREPORTED.keys()


def test_without_a_bundle_only_actions_and_watch_time_leave() -> None:
    assert reported(PrivacyPolicy().event(FULL)) == ALWAYS | ACTIONS | {"page_id"}


def test_with_a_bundle_what_its_model_is_trained_on_leaves_too() -> None:
    trained = {f.name for f in SPEC.feedback_floats}
    assert trained == {"watch_ms", "like", "volume", "network", "ended"}
    assert reported(PrivacyPolicy.for_spec(SPEC).event(FULL)) == ALWAYS | ACTIONS | {"page_id"} | trained


def test_allow_and_withhold_add_and_remove_fields() -> None:
    policy = PrivacyPolicy().allow("muted", "seeks").withhold("page_id", "share")
    assert reported(policy.event(FULL)) == (ALWAYS | ACTIONS | {"muted", "seeks"}) - {"share"}
    assert policy.event(FULL).share is False


def test_an_event_of_which_everything_may_leave_is_not_copied() -> None:
    assert PrivacyPolicy(frozenset(NAMES)).event(FULL) is FULL


def test_steps() -> None:
    policy = PrivacyPolicy(
        frozenset({"volume", "volume_change", "scroll_speed"}),
        {"volume": 0.1, "volume_change": 0.1, "watch_ms": 1000, "impression_ms": 1000, "scroll_speed": 0.5, "buffering_ms": 9},
    )
    event = policy.event(
        make_event(1, watch_ms=1999, impression_ms=-1999, volume=0.34, volume_change=-0.26, scroll_speed=None, buffering_ms=8)
    )
    assert (event.watch_ms, event.impression_ms) == (1000, -1000)
    assert (event.volume, event.volume_change, event.scroll_speed) == (0.3, -0.3, None)
    assert event.buffering_ms is None  # withheld, step or not


@pytest.mark.parametrize("age_ms", [0, 5_000])
def test_a_rounded_date_is_not_given_away_by_the_age(age_ms: int) -> None:
    policy = PrivacyPolicy(steps={"impression_ms": 60_000})
    event = policy.event(make_event(1, impression_ms=T0 + 45_678, age_ms=age_ms))
    assert event.impression_ms % 60_000 == 0
    assert event.impression_ms + event.age_ms == T0 + 45_678 + age_ms  # when it was sent, which the cloud knows
    assert policy.event(event) == event


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf, 1e308, 5e-324])
def test_steps_accept_every_float(strange: float) -> None:
    policy = PrivacyPolicy(frozenset({"volume"}), {"volume": 0.1})
    assert to_msgpack(policy.event(make_event(1, volume=strange)))


@given(policy=policies, event=events)
def test_what_leaves_is_valid_and_stays_the_same_when_applied_again(policy: PrivacyPolicy, event: FeedbackEvent) -> None:
    left = policy.event(event)
    assert reported(left) <= ALWAYS | policy.fields
    assert reported(left) <= reported(event)
    assert to_msgpack(policy.event(left)) == to_msgpack(left)  # as bytes, since NaN is not itself
    from_msgpack(to_msgpack(left), FeedbackEvent)
    for name in policy.fields - policy.steps.keys() - {"actions"}:  # of which these events have none
        assert to_msgpack(getattr(left, name)) == to_msgpack(getattr(event, name))
    for name in policy.steps.keys() & (ALWAYS | policy.fields):
        before, after = getattr(event, name), getattr(left, name)
        if before is not None and math.isfinite(before):
            assert abs(after - before) < STEPS[name] + abs(before) * 1e-9


@given(policy=policies)
def test_requests(policy: PrivacyPolicy) -> None:
    report = TelemetryReport(report_id="t", since_ms=0, until_ms=1)
    request = PageRequest(
        request_id="r", user_id=1, session_id="s", now_ms=2, size=3, scene=4, split_version="v", feedback=(FULL, make_event(1)),
        exclude=(5,), experiment="x", telemetry=report,
    )  # fmt: skip
    left = policy.request(request)
    assert left.feedback == tuple(policy.event(event) for event in request.feedback)
    assert left.exclude == ((5,) if policy.exclude else ())
    assert left.telemetry == (report if policy.telemetry else None)
    same = msgspec.structs.replace(left, feedback=request.feedback, exclude=request.exclude, telemetry=report)
    assert same == request


@pytest.mark.parametrize("name", ["volum", "event_id", "version", ""])
def test_names_that_no_policy_can_have(name: str) -> None:
    for make in (lambda: PrivacyPolicy(frozenset({name})), lambda: PrivacyPolicy().allow(name)):
        with pytest.raises(PrivacyError, match="names among"):
            make()
    with pytest.raises(PrivacyError, match="names among"):
        PrivacyPolicy().withhold(name)


@pytest.mark.parametrize("steps", [{"muted": 1}, {"volume": 0}, {"volume": math.nan}, {"volume": math.inf}, {"watch_ms": 0.5}])
def test_steps_that_no_policy_can_have(steps: dict[str, float]) -> None:
    with pytest.raises(PrivacyError):
        PrivacyPolicy(steps=steps)


# ---------------------------------------------------------------------------------------------------------- on the wire


@pytest.mark.parametrize("policy", [PrivacyPolicy(), PrivacyPolicy.for_spec(SPEC)], ids=["default", "spec"])
def test_nothing_else_leaves(policy: PrivacyPolicy) -> None:
    """Every byte that a client sends for a session, read back: lines, headers, and each key at every level."""
    feed = FeedSession(None, user_id=42, session_id="s-1", clock=Clock(), config=SessionConfig(privacy=policy))
    with serving(Cloud()) as server, tapped(server) as (url, sent), CloudClient(url, token="secret") as client:
        feed.take(make_page([1, 2, FULL.item_id]))
        feed.next()
        feed.feedback(FULL)
        request = feed.request(2)
        client.page(request)
        feed.request_failed(request)
        assert feed.flush(client) == 1
        client.health()
    page, upload, health = (asked for line in sent for asked in requests(bytes(line)))
    assert page.line == "POST /v1/page HTTP/1.1"
    assert upload.line == "POST /v1/feedback HTTP/1.1"
    assert (health.line, health.body) == ("GET /healthz HTTP/1.1", b"")
    always = {
        "Host": url.removeprefix("http://"),
        "Accept-Encoding": "identity",
        "Accept": "application/msgpack",
        "Authorization": "Bearer secret",
    }
    assert health.headers == always
    for asked in (page, upload):
        body = {"Content-Type": "application/msgpack", "Content-Length": str(len(asked.body))}
        assert asked.headers == always | body
    tree = msgspec.msgpack.decode(page.body)
    (event,) = tree.pop("feedback")
    assert tree == {
        "version": 1, "request_id": request.request_id, "user_id": 42, "session_id": "s-1", "now_ms": Clock().ms, "size": 2,
        "scene": 0, "split_version": None, "exclude": [1, FULL.item_id], "experiment": None, "telemetry": None,
    }  # fmt: skip
    batch = msgspec.msgpack.decode(upload.body)
    assert batch["events"][0].pop("age_ms") >= event["age_ms"]
    assert batch == {"version": 1, "events": [{k: v for k, v in event.items() if k != "age_ms"}], "telemetry": None}
    assert event.keys() == UNREPORTED.keys()
    assert reported(event) == ALWAYS | policy.fields
    left = msgspec.to_builtins(policy.event(FULL))
    assert left["age_ms"] <= event["age_ms"] < left["age_ms"] + 60_000  # it grew while it waited
    assert event | {"age_ms": 9_000, "actions": FULL.actions} == left


def test_the_tap_reads_what_a_client_sends() -> None:
    with serving(Cloud()) as server, tapped(server) as (url, sent), CloudClient(url) as client:
        client.send_feedback([FULL])
    (asked,) = requests(bytes(sent[0]))
    assert from_msgpack(asked.body, FeedbackBatch).events == (FULL,)
