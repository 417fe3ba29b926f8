"""Trace of a session: each decision and its inputs, written to the device's disk for developers (`pocketrank inspect`).

A trace holds what the user was shown and what they did, in the clear. It is off unless the app makes a `Tracer`, stays on the
device's disk, and nothing here sends it anywhere. Leave it out of the app that customers run, or ask them for consent.

Format. A file MUST begin with `MAGIC`. Frames follow: the payload's length and its CRC-32, both unsigned 32 bits and
little-endian, then the payload, a `TracedDecision` in MessagePack whose arrays are blocks. Frames are only ever appended, each
by one write, so a process that is killed leaves whole frames and at most the beginning of one. A reader MUST refuse a payload
longer than `FRAME_MAX` before it reads it, and a payload with another CRC-32.

Errors::

    TraceError                 a trace that cannot be written or read; says expected, got, and where
    ├── TracePlaceError        the file exists already, or cannot be made
    ├── NotATraceError         the file is something else
    ├── CutTraceError          the file ends within a frame; all frames before it are good
    └── CorruptTraceError      a frame was changed, or no session writes such a frame; all frames before it are good
"""

from __future__ import annotations

import struct
import zlib
from bisect import insort
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.blocks import from_block, to_block
from pocketrank.device.contract import WIRE_VERSION, Block, Dtype, FeatureSpec, Form, MismatchError
from pocketrank.device.contract.wire import Versioned
from pocketrank.device.model.features import check_spec
from pocketrank.device.paging import PageDecision
from pocketrank.device.ranking.ranker import Moment, Ranker
from pocketrank.device.runtimes import INPUT_NAMES

__all__ = [
    "BYTES_MAX",
    "FRAME_MAX",
    "MAGIC",
    "CorruptTraceError",
    "CutTraceError",
    "TracedDecision",
    "NotATraceError",
    "TraceError",
    "TracePlaceError",
    "Tracer",
    "read_trace",
    "whole_inputs",
]

MAGIC = b"prtrace1"
"""The first bytes of a trace."""
BYTES_MAX = 64 << 20
"""Default size limit of a trace. A decision of the demo's model among 30 candidates after 50 events takes 15 kB, so this is
four thousand of them: hours of swiping."""
FRAME_MAX = 16 << 20
"""Maximum payload of a frame, hundreds of times a usual one."""

_HEAD = struct.Struct("<II")
_EVENTS_MAX = 10_000  # the maximum of any spec
_CODES: dict[str, Dtype] = {"float32": "f4", "float16": "f2", "int32": "i4", "int64": "i8"}

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class TraceError(MismatchError, ValueError):
    """A trace cannot be written or read. `where` is its path; `expected` and `got` say why."""


class TracePlaceError(TraceError):
    """The file exists already, or cannot be made."""


class NotATraceError(TraceError):
    """The file is not a trace."""


class CutTraceError(TraceError):
    """The file ends within a frame, as a full disk or an empty battery leaves it. All frames before it are good."""


class CorruptTraceError(TraceError):
    """A frame was changed, or no session writes such a frame. All frames before it are good."""


class TracedDecision(Versioned, frozen=True, kw_only=True, eq=False):
    """One choice of what to show, with everything it was made from: n candidates held, T events, K tasks."""

    now_ms: int
    """time when the order was made, which the gaps to the events are counted from"""
    position: int
    """number of impressions before this one"""
    held: Array
    """i8 [n] item ids in cloud order"""
    order: Array
    """i4 [n] indices into `held`, best first"""
    shown: int
    """the item that was chosen"""
    inputs: dict[str, Array]
    """inputs of the whole model by the contract's names (`whole_inputs`); empty without a model"""
    event_items: Array
    """i8 [T] item of each event; 0 for events from before the trace began"""
    page_id: str | None = None
    bundle: str | None = None
    """`name/serial`"""
    split_version: str | None = None
    """split version of the bundle"""
    form: Form | None = None
    """form of the model for this page; None for cloud order"""
    fallback: str | None = None
    """why the form is not the one wanted, as the name of a counter (`pocketrank.device.session.counters`), or why the model did
    not make the order (`pocketrank.device.session.ordering.Why`)"""
    spec: FeatureSpec | None = None
    """meaning of the model's inputs and outputs; None without a model"""
    scores: Array | None = None
    """f4 [m, K] scores of the first m of `held`, which the order was made from; None when no model made it"""
    personal: bool = False
    """whether a personal layer changed the model's scores into `scores`"""
    strategies: tuple[str, ...] = ()
    """what strategies changed, and which rules could not hold, in words"""
    paging: PageDecision | None = None
    """last decision of the paging policy"""
    spent_ms: float = 0.0
    """time that the SDK took for the decision"""

    @property
    def total(self) -> NDArray[np.float32] | None:
        """[m] weighted sums of the scores, which the order is made by; None without scores."""
        if self.scores is None or self.spec is None:
            return None
        weights = [self.spec.task_weights.get(task, 0.0) for task in self.spec.tasks]
        return cast("NDArray[np.float32]", self.scores @ np.array(weights, np.float32))


def whole_inputs(form: Form, moment: Moment, candidates_max: int) -> dict[str, NDArray[Any]]:
    """Return the inputs that the whole model of `form` would have now, also when a ranker works in stages.

    They are views without padding, of at most the first `candidates_max` candidates. An empty history is one masked row.
    """
    held, history, context, now_ms, position = moment
    rows = slice(min(held.count, candidates_max))
    inputs: dict[str, NDArray[Any] | None] = {
        "candidate_float": held.floats[:, rows],
        "candidate_category": held.categories[:, rows],
        "candidate_vector": None if held.vector is None else held.vector[:, rows],
        "candidate_mask": np.ones((1, rows.stop), np.float32),
        **history.inputs(max(1, history.count), now_ms, position),
        "context": context,
        "user_vector": held.page.user_vector,
    }
    return {name: value for name in INPUT_NAMES[form] if (value := inputs[name]) is not None}


class Tracer:
    """Writer of one session's decisions to a new file. Not for use from several threads at once.

    Once the file is open nothing is raised: decisions that cannot be written are counted in `missed`, and `stopped` says why.
    """

    def __init__(self, path: Path, bytes_max: int = BYTES_MAX) -> None:
        """Raises `TracePlaceError`."""
        self.bytes_max = bytes_max
        self.written = self.missed = 0
        """number of decisions"""
        self.stopped: str | None = None
        """why no more decisions are written; None while they are"""
        self._events: list[tuple[int, int]] = []  # (impression_ms, item id), in the order of an `EventHistory`
        try:
            self._file = path.open("xb", buffering=0)
            self._bytes = self._file.write(MAGIC) or 0
        except OSError as err:
            raise TracePlaceError(str(path), "a new file", err.strerror or type(err).__name__) from err

    def feedback(self, item_id: int, shown_ms: int) -> None:
        """Remember an event that the session's history has taken in."""
        insort(self._events, (shown_ms, item_id), key=lambda known: known[0])
        del self._events[:-_EVENTS_MAX]

    def decision(
        self, ranker: Ranker | None, form: Form | None, moment: Moment, order: NDArray[np.integer], **fields: Any
    ) -> None:
        """Write what is shown next, before it is taken from what remains. `fields` are the others of a `TracedDecision`."""
        if self.stopped is not None:
            self.missed += 1
            return
        inputs, held, count = {}, moment.remaining, moment.history.count
        if ranker is not None and form is not None:
            views = whole_inputs(form, moment, ranker.spec.candidates_max)
            # Vectors arrived over the wire as f16, so nothing is lost.
            inputs = {k: v.astype(np.float16) if k.endswith("_vector") else v for k, v in views.items()}
        items = [item for _, item in self._events[-count:]] if count else []
        decision = TracedDecision(
            now_ms=moment.now_ms,
            position=moment.position,
            held=held.item_id[: held.count],
            order=order.astype(np.int32),
            split_version=None if ranker is None else ranker.split_version,
            form=form,
            spec=None if ranker is None else ranker.spec,
            inputs=inputs,
            event_items=np.array([0] * (count - len(items)) + items, np.int64),
            **fields,
        )
        try:
            self._write(_ENCODER.encode(decision))
        except (OSError, OverflowError, TypeError, ValueError) as err:
            self._stop(str(err))

    def _write(self, payload: bytes) -> None:
        frame = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        if self._bytes + len(frame) > self.bytes_max or len(payload) > FRAME_MAX:
            self._stop(f"a frame of {len(frame)} bytes beyond the limit")
        elif (done := self._file.write(frame)) != len(frame):
            self._file.truncate(self._bytes)
            self._stop(f"{done} of {len(frame)} bytes were taken")
        else:
            self._bytes += len(frame)
            self.written += 1

    def _stop(self, why: str) -> None:
        self.stopped = why
        self.missed += 1

    def close(self) -> None:
        """Close the file. Decisions after this are missed."""
        self.stopped = self.stopped or "closed"
        self._file.close()

    def __enter__(self) -> Tracer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_trace(path: Path) -> Iterator[TracedDecision]:
    """Yield the decisions of a trace, oldest first. Vectors are f32 again.

    Raises `TraceError`, after all decisions before the damage.
    """
    where = str(path)
    try:
        with path.open("rb") as file:
            if (start := file.read(len(MAGIC))) != MAGIC:
                raise NotATraceError(where, f"a file that begins with {MAGIC!r}", repr(start))
            while head := file.read(_HEAD.size):
                at = f"{where}, byte {file.tell() - len(head)}"
                if len(head) < _HEAD.size:
                    raise CutTraceError(at, f"the {_HEAD.size} bytes before a frame", str(len(head)))
                length, crc = _HEAD.unpack(head)
                if length > FRAME_MAX:
                    raise CorruptTraceError(at, f"a frame of at most {FRAME_MAX} bytes", f"{length}")
                if len(payload := file.read(length)) < length:
                    raise CutTraceError(at, f"a frame of {length} bytes", str(len(payload)))
                if zlib.crc32(payload) != crc:
                    raise CorruptTraceError(at, "a frame as it was written", "another")
                yield _decode(payload, at)
    except OSError as err:
        raise NotATraceError(where, "a readable file", err.strerror or type(err).__name__) from err


def _decode(payload: bytes, at: str) -> TracedDecision:
    try:
        decision = _DECODER.decode(payload)
        if decision.spec is not None:
            check_spec(decision.spec)
    except (ValueError, RecursionError) as err:  # msgspec's own errors are ValueErrors; so are ours and bad UTF-8
        raise CorruptTraceError(at, "a decision", str(err)) from err
    held, order, spec, scores = decision.held, decision.order, decision.spec, decision.scores
    kinds = [(array.dtype.name, array.ndim) for array in (held, order, decision.event_items)]
    if decision.version != WIRE_VERSION or kinds != [("int64", 1), ("int32", 1), ("int64", 1)]:
        raise CorruptTraceError(at, f"version {WIRE_VERSION}, and items and places in lists", f"{decision.version}, {kinds}")
    if not np.array_equal(np.sort(order), np.arange(len(held))):
        raise CorruptTraceError(at, f"an order of {len(held)} items", f"one of {len(order)}")
    if scores is not None and (spec is None or scores.shape[1:] != (len(spec.tasks),) or len(scores) > len(held)):
        raise CorruptTraceError(at, "scores of the spec's tasks", str(list(scores.shape)))
    if decision.inputs and not (spec and decision.form and _plausible(decision, spec, decision.form)):
        raise CorruptTraceError(at, "a model's inputs", str({name: x.shape for name, x in decision.inputs.items()}))
    return decision


def _plausible(decision: TracedDecision, spec: FeatureSpec, form: Form) -> bool:
    """Return whether each input has an array, with the axes and the rows that it must have."""
    rows = {"candidate": min(len(decision.held), spec.candidates_max), "event": max(1, len(decision.event_items))}

    def expected(name: str) -> tuple[int, ...]:
        kind = name.partition("_")[0]
        return (1, rows[kind]) if kind in rows else (1,)

    return tuple(decision.inputs) == INPUT_NAMES[form] and all(
        x.shape[:-1] == expected(name) if not name.endswith("_mask") else x.shape == expected(name)
        for name, x in decision.inputs.items()
    )


def _to_wire(array: object) -> Block:
    if not isinstance(array, np.ndarray) or str(array.dtype) not in _CODES:
        raise TypeError(f"expected an array of {', '.join(_CODES)}, got {type(array).__name__}")
    return to_block(array, _CODES[str(array.dtype)])


def _from_wire(_: type, value: Any) -> NDArray[Any]:
    array = from_block(msgspec.convert(value, Block))
    return array.astype(np.float32) if array.dtype.kind == "f" else array


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_to_wire)
_DECODER = msgspec.msgpack.Decoder(TracedDecision, dec_hook=_from_wire)
