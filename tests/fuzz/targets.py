"""Every decoder of the device, as something that is given bytes: only the errors that it may raise come out.

A target is a line of `TARGETS`: its name, what is run, the errors allowed, and bytes to begin from.
"""

import hashlib
import json
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np
from nacl.signing import SigningKey

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import GOLDEN, MANIFEST, SPEC, BundleError, decode_json
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.codec import from_block, from_json, from_msgpack, read_page, to_block, to_json, to_msgpack
from pocketrank.device.contract import (
    Block,
    BundleRef,
    ContractError,
    FeedbackEvent,
    FileEntry,
    FloatFeature,
    Form,
    Golden,
    GoldenCase,
    GoldenTolerance,
    Page,
    PersonalConfig,
    Release,
    Signature,
    Signed,
    TaskPrior,
    TelemetryReport,
    Timing,
    key_id,
    signed_bytes,
)
from pocketrank.device.contract.wire import Versioned
from pocketrank.device.feedback.privacy import PrivacyPolicy
from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.personal import PersonalError, PersonalLayer
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.offline.database import DatabaseError
from pocketrank.device.offline.store import DeviceStore
from pocketrank.device.paging import PageDecision
from pocketrank.device.ranking.ranker import Moment, Ranker
from pocketrank.device.reports.trace import MAGIC, TraceError, Tracer, read_trace
from pocketrank.device.session.session import FeedSession
from pocketrank.device.updates.probe import ProbeConfig, probe
from pocketrank.device.updates.store import BundleStore, StoreState
from pocketrank.device.updates.updates import Updates
from tests.device import worlds
from tests.vectors.generate import FOLDER, valid

__all__ = ["TARGETS", "Target"]

S = TypeVar("S", bound=msgspec.Struct)
Decode = Callable[[bytes, type[msgspec.Struct]], msgspec.Struct]


class Target(NamedTuple):
    """One decoder."""

    name: str
    run: Callable[[bytes], object]
    allowed: tuple[type[Exception], ...]
    seeds: tuple[bytes, ...]


def _vectors(pattern: str) -> tuple[bytes, ...]:
    """Committed vectors, good and bad, whose path fits."""
    return tuple(path.read_bytes() for path in sorted(FOLDER.glob(pattern)))


# --------------------------------------------------------------------------------------------------------------- structs


def _kinds(base: type[msgspec.Struct] = Versioned) -> Iterable[type[msgspec.Struct]]:
    """Every struct of the contract that says its version: a new one is a target by itself."""
    for kind in base.__subclasses__():
        if kind.__module__.startswith("pocketrank.device.contract."):
            yield kind
        yield from _kinds(kind)


_KINDS = tuple(_kinds())


def _structs(decode: Decode) -> Callable[[bytes], None]:
    def run(data: bytes) -> None:
        for kind in _KINDS:
            with suppress(ContractError):
                struct = decode(data, kind)
                to_json(struct)
                assert from_msgpack(to_msgpack(struct), kind) is not None

    return run


_REPORT = TelemetryReport(
    report_id="t",
    since_ms=0,
    until_ms=9,
    counters={"swipes": 3},
    timings={"rerank": Timing(count=1, sum_us=5, max_us=5, buckets=(0, 0, 1))},
)


def _decoded(data: bytes, kind: type[S]) -> S | None:
    with suppress(ContractError):
        return from_msgpack(data, kind)
    return None


def _blocks() -> tuple[bytes, ...]:
    blocks = json.loads((FOLDER / "blocks.json").read_text())
    return tuple(
        to_msgpack(Block(dtype=b["dtype"], shape=tuple(b["shape"]), data=data))
        for b in blocks
        for data in (bytes.fromhex(b["hex"]), [0, 1.5, None])
    )


# ----------------------------------------------------------------------------------------------- what a session is given


@cache
def _folder(name: str) -> Path:
    """A bundle of real models, made once."""
    folder = Path(tempfile.mkdtemp()) / name
    worlds.make_bundle(folder)
    return folder


@cache
def _ranker() -> Ranker:
    return Ranker.open(Bundle.open(_folder("ranker")))


def _feed() -> FeedSession:
    return FeedSession(_ranker(), user_id=7, session_id="s", clock=worlds.Clock())


_WHOLE = worlds.make_page([1, 2, 3])
_BUILDER = FeatureBuilder(worlds.SPEC)


def _page(data: bytes) -> None:
    page = from_msgpack(data, Page)
    with suppress(ContractError):
        read_page(page)
    _BUILDER.page(page)


def _session(data: bytes) -> None:
    """A page that decodes is taken or refused, and swipes go on."""
    if (page := _decoded(data, Page)) is None:
        return
    feed = _feed()
    feed.take(page)
    for _ in range(3):
        if (item := feed.next()) is not None:
            feed.feedback(worlds.make_event(item, feed.position))
    feed.take(_WHOLE)
    to_msgpack(feed.request(5))
    feed.next()


def _event(data: bytes) -> None:
    """An event that decodes is learned from, of an item that is held, and may leave."""
    if (event := _decoded(data, FeedbackEvent)) is None:
        return
    feed = _feed()
    feed.take(worlds.make_page([event.item_id, 11, 12]))
    feed.feedback(event)
    feed.next()
    to_msgpack(PrivacyPolicy.for_spec(worlds.SPEC).request(feed.request(5)))


# --------------------------------------------------------------------------------------------------------------- bundles


def _manifest(data: bytes) -> None:
    folder = _folder("manifest")
    (folder / MANIFEST).write_bytes(data)
    Bundle.open(folder, now_ms=worlds.T0)


def _spec(data: bytes) -> None:
    """A spec that its manifest vouches for, and that a device then follows."""
    folder = _folder("spec")
    manifest = json.loads((_folder("ranker") / MANIFEST).read_text())
    (entry,) = (file for file in manifest["files"] if file["path"] == SPEC)
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / MANIFEST).write_text(json.dumps(manifest))
    (folder / SPEC).write_bytes(data)
    builder = FeatureBuilder(Bundle.open(folder, now_ms=worlds.T0).spec)
    builder.page(_WHOLE)
    full = valid()["event_full"]
    assert isinstance(full, FeedbackEvent)
    builder.feedback(full, np.zeros(len(builder.spec.feedback_floats), np.float32))
    builder.context(3, worlds.T0, np.zeros(len(builder.spec.context_floats), np.float32))


def _named_specs() -> Iterable[bytes]:
    """A spec for each field of an event, as if all were features."""
    for name in FeedbackEvent.__struct_fields__:
        feature = FloatFeature(name=name, min=0, max=1)
        yield to_json(msgspec.structs.replace(worlds.SPEC, feedback_floats=(feature,)))


def _text(name: str) -> tuple[bytes, ...]:
    """A file of a real bundle."""
    return ((_folder("ranker") / name).read_bytes(),)


# ---------------------------------------------------------------------------------------------------------- a user's own

_TASKS = ("long_view", "like")
_PERSONAL = PersonalConfig(tasks={"like": TaskPrior(user=0.3, category=0.5)}, buckets=4)


def _personal(data: bytes) -> None:
    """Bytes as they are, and behind a checksum that is right; a layer that restores goes on learning."""
    for state in (data, zlib.crc32(data).to_bytes(4, "little") + data):
        with suppress(PersonalError):
            layer = PersonalLayer.restore(state, _TASKS, bundle="b/1", user_id=7, config=_PERSONAL)
            shipped = np.array([[0.5, 0.25], [0.0, 1.0]], np.float32)
            adjusted = layer.adjust(shipped, np.array([0, 3]))
            assert ((adjusted >= 0) & (adjusted <= 1)).all()
            layer.learn(shipped[0], np.array([1, 0], np.float32), 3)
            layer.state()


def _states() -> tuple[bytes, ...]:
    layer = PersonalLayer(_TASKS, bundle="b/1", user_id=7, config=_PERSONAL)
    fresh = layer.state()[4:]
    layer.learn(np.array([0.5, 0.25], np.float32), np.array([1, 0], np.float32), 3)
    return fresh, layer.state()[4:], layer.state()


# ------------------------------------------------------------------------------------------------- releases and updates

_KEY = SigningKey(b"\1" * 32)
_PUBLIC = bytes(_KEY.verify_key)
_KEYS = TrustedKeys.one(_PUBLIC.hex())
_RELEASE = to_json(
    Release(serial=2, created_ms=1, expires_ms=9, bundle=BundleRef(serial=1, manifest_bytes=3, manifest_sha256="ab" * 32))
)


def _signed(payload: bytes) -> bytes:
    signature = _KEY.sign(signed_bytes("release", payload)).signature
    return to_json(Signed(payload=payload, signatures=(Signature(key_id=key_id(_PUBLIC), signature=signature),)))


def _release(data: bytes) -> None:
    """A release that is signed, or bytes for one."""
    for text in (data, _signed(data)):
        with suppress(BundleError):
            decode_json(_KEYS.open("release", text, "release"), Release, "release")


@cache
def _vouched() -> Bundle:
    """A bundle that lists a golden file."""
    bundle = Bundle.open(_folder("ranker"))
    files = (*bundle.manifest.files, FileEntry(path=GOLDEN, bytes=0, sha256=""))
    return replace(bundle, manifest=msgspec.structs.replace(bundle.manifest, files=files))


def _golden(data: bytes) -> None:
    """Known scores that a bundle's models are held to."""
    (_vouched().folder / GOLDEN).write_bytes(data)
    probe(_vouched(), _ranker(), config=ProbeConfig(codes_max=1))


def _golden_seeds() -> tuple[bytes, ...]:
    spec = worlds.SPEC
    wide = {"float": len(spec.candidate_floats), "category": len(spec.candidate_categories), "vector": spec.vector_width}
    inputs = {
        f"{of}_{kind}": to_block(np.ones((2, width), np.int32), "i4" if kind == "category" else "f4")
        for of in ("candidate", "event")
        for kind, width in wide.items()
    }
    inputs |= {
        name: to_block(np.ones(shape), "f4")
        for name, shape in {
            "user_vector": (1, spec.vector_width), "event_feedback": (2, len(spec.feedback_floats)), "event_gap": (2, 2),
            "context": (1, len(spec.context_floats)),
        }.items()
    }  # fmt: skip
    scores = to_block(np.full((2, len(spec.tasks)), 0.5), "f4")
    forms: tuple[Form, ...] = ("split", "self_contained")
    cases = tuple(GoldenCase(form=form, inputs=inputs, scores=scores) for form in forms)
    loose = tuple(GoldenTolerance(form=form, format="onnx", precision="fp32", max_diff=2.0) for form in forms)
    return (to_msgpack(Golden(cases=cases, tolerances=loose)),)


def _state(data: bytes) -> None:
    """What a store of bundles remembers, and updates that begin from it."""
    root = Path(tempfile.mkdtemp())
    try:
        (root / "state.json").write_bytes(data)
        updates = Updates(BundleStore(root, _KEYS, clock=worlds.Clock()), device_id="d")
        updates.current()
        updates.close()
    finally:
        shutil.rmtree(root)


# ---------------------------------------------------------------------------------------------------- on the device's disk


def _trace(data: bytes) -> None:
    """A trace of these bytes, and one with a frame of them."""
    path = _folder("ranker") / "trace"
    for text in (data, MAGIC + len(data).to_bytes(4, "little") + zlib.crc32(data).to_bytes(4, "little") + data):
        path.write_bytes(text)
        with suppress(TraceError):
            for decision in read_trace(path):
                assert decision.total is None or len(decision.total) <= len(decision.held)


def _traces() -> tuple[bytes, ...]:
    path = Path(tempfile.mkdtemp()) / "trace"
    held, history = Remaining(_BUILDER.page(_WHOLE), 8), EventHistory(worlds.SPEC)
    context = np.zeros((1, len(worlds.SPEC.context_floats)), np.float32)
    with Tracer(path) as tracer:
        for form in ("split", "self_contained", None):
            tracer.decision(
                _ranker(), form, Moment(held, history, context, worlds.T0, 0), np.arange(3), shown=1,
                scores=None if form is None else np.zeros((3, 2), np.float32), paging=PageDecision(False, 3, "continue"),
            )  # fmt: skip
    text = path.read_bytes()
    return text, text[len(MAGIC) + 8 : len(MAGIC) + 8 + int.from_bytes(text[len(MAGIC) : len(MAGIC) + 4], "little")]


def _store(data: bytes) -> None:
    """A database of these bytes: opened, begun anew, or refused."""
    folder = Path(tempfile.mkdtemp())
    try:
        (folder / "store").write_bytes(data)
        with DeviceStore(folder / "store") as store:
            list(store.pages(7, worlds.T0, stale=True))
            store.shown_items()
            store.state("personal")
            store.outbox.add(worlds.make_event(77))
            store.save_page(7, _WHOLE, worlds.T0)
            store.outbox.tidy()
            assert [event.item_id for event in store.outbox.take()][-1:] == [77]
    finally:
        shutil.rmtree(folder)


def _stores() -> tuple[bytes, ...]:
    folder = Path(tempfile.mkdtemp())
    with DeviceStore(folder / "store") as store:
        store.outbox.add(worlds.make_event(1))
        store.save_page(7, _WHOLE, worlds.T0)
        store.set_state("personal", b"state")
    return ((folder / "store").read_bytes(),)


TARGETS = (
    Target("msgpack", _structs(from_msgpack), (), (*_vectors("*/*.msgpack"), to_msgpack(_REPORT))),
    Target("json", _structs(from_json), (), (*_vectors("*/*.json"), to_json(_REPORT))),
    Target("block", lambda data: from_block(from_msgpack(data, Block)), (ContractError,), _blocks()),
    Target("page", _page, (ContractError,), (*_vectors("*/page*.msgpack"), to_msgpack(_WHOLE))),
    Target("session", _session, (), (*_vectors("*/page*.msgpack"), to_msgpack(_WHOLE))),
    Target("event", _event, (), (*_vectors("*/event*.msgpack"), to_msgpack(worlds.make_event(3)))),
    Target("manifest", _manifest, (BundleError,), (*_vectors("*/manifest*.json"), *_text(MANIFEST))),
    Target("spec", _spec, (BundleError,), (*_vectors("*/spec*.json"), *_text(SPEC), *_named_specs())),
    Target("personal", _personal, (), _states()),
    Target("release", _release, (), (_RELEASE, _signed(_RELEASE))),
    Target("golden", _golden, (BundleError,), _golden_seeds()),
    Target("state", _state, (BundleError,), (to_json(StoreState()), to_json(StoreState(active=3, previous=2, staged=4)))),
    Target("trace", _trace, (), _traces()),
    Target("store", _store, (DatabaseError,), _stores()),
)
