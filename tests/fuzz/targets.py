"""Every decoder of the device, as something that is given bytes: only the errors that it may raise come out.

A target is a line of `TARGETS`: its name, what is run, the errors allowed, and bytes to begin from.
"""

import hashlib
import json
import tempfile
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec
import numpy as np

from device.bundle import MANIFEST, SPEC, Bundle, BundleError
from device.codec import from_block, from_json, from_msgpack, read_page, to_json, to_msgpack
from device.contract import Block, ContractError, FeedbackEvent, Page, PersonalConfig, TaskPrior, TelemetryReport, Timing
from device.contract.wire import Versioned
from device.features import FeatureBuilder
from device.personal import PersonalError, PersonalLayer
from device.privacy import PrivacyPolicy
from device.ranker import Ranker
from device.session import FeedSession
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
        if kind.__module__.startswith("device.contract."):
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


TARGETS = (
    Target("msgpack", _structs(from_msgpack), (), (*_vectors("*/*.msgpack"), to_msgpack(_REPORT))),
    Target("json", _structs(from_json), (), (*_vectors("*/*.json"), to_json(_REPORT))),
    Target("block", lambda data: from_block(from_msgpack(data, Block)), (ContractError,), _blocks()),
    Target("page", _page, (ContractError,), (*_vectors("*/page*.msgpack"), to_msgpack(_WHOLE))),
    Target("session", _session, (), (*_vectors("*/page*.msgpack"), to_msgpack(_WHOLE))),
    Target("event", _event, (), (*_vectors("*/event*.msgpack"), to_msgpack(worlds.make_event(3)))),
    Target("manifest", _manifest, (BundleError,), (*_vectors("*/manifest*.json"), *_text(MANIFEST))),
    Target("spec", _spec, (BundleError,), (*_vectors("*/spec*.json"), *_text(SPEC))),
    Target("personal", _personal, (), _states()),
)
