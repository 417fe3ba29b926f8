"""Small signed bundles with a real ONNX model, their releases, and a server of them that can misbehave."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from nacl.signing import SigningKey
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from benchmarks.reliability.loopback import LoopbackHandler, serve_loopback
from pocketrank.device.bundle.files import GOLDEN, MANIFEST, RELEASE, SIGNATURES
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.codec import to_block, to_json, to_msgpack
from pocketrank.device.contract import (
    BundleManifest,
    BundleRef,
    CategoryFeature,
    FeatureSpec,
    FileEntry,
    FloatFeature,
    Golden,
    GoldenCase,
    GoldenTolerance,
    ModelEntry,
    Release,
    ScoreRange,
    Signed,
)
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes.base import RuntimeRunError
from pocketrank.export.signing import public_key, sign

__all__ = [
    "BUNDLE_KEY",
    "KEYS",
    "KEYS_OF_TWO",
    "MODEL",
    "NOW_MS",
    "RELEASE_KEY",
    "SECOND_KEY",
    "SPEC",
    "Answer",
    "Server",
    "golden",
    "make_bundle",
    "make_files",
    "model",
    "release_of",
    "serve",
    "signed_release",
    "use",
    "weights",
]

NOW_MS = 1_800_000_000_000
"""Time on every device here."""
BUNDLE_KEY, RELEASE_KEY = SigningKey(b"b" * 32), SigningKey(b"r" * 32)
"""The keys that devices trust; the first for manifests, the second for releases."""
SECOND_KEY = SigningKey(b"2" * 32)
"""A key that signs everything too."""
KEYS = TrustedKeys((public_key(BUNDLE_KEY),), (public_key(RELEASE_KEY),))
"""Keys of devices that require one signature."""
_SECOND = (public_key(SECOND_KEY),)
KEYS_OF_TWO = TrustedKeys(KEYS.manifest + _SECOND, KEYS.release + _SECOND, 2, 2)
"""Keys of devices that require two signatures."""
PIECE = 512
"""Bytes that a server sends at a time."""
MODEL = "models/self_contained.onnx"
"""The path of the model."""

SPEC = FeatureSpec(
    tasks=("like", "long_view"),
    task_weights={"like": 1.0, "long_view": 1.0},
    candidates_max=8,
    events_max=4,
    vector_width=0,
    list_sizes=(),
    candidate_floats=(FloatFeature(name="pxtr_like", min=0, max=1), FloatFeature(name="age", min=-5, max=5)),
    candidate_categories=(CategoryFeature(name="category", size=40),),
    feedback_floats=(FloatFeature(name="watch_ms", min=0, max=100, scale=1e-3),),
    context_floats=(FloatFeature(name="hour", min=0, max=24),),
)
"""Feature spec of the model."""

Weights = dict[str, NDArray[np.float32]]


def weights(seed: int = 0) -> Weights:
    """Of the model: a matrix [width, tasks] for each input, and a table of the categories' own."""
    rng = np.random.default_rng(seed)
    shapes = {"candidate_float": (2, 2), "table": (40, 2), "event_feedback": (1, 2), "context": (1, 2)}
    return {name: rng.normal(0, 0.05, shape).astype(np.float32) for name, shape in shapes.items()}


def model(given: Weights, *, last: str = "Sigmoid", output: str = "scores", extra: str | None = None) -> bytes:
    """sigmoid(floats + table[category] + sum of masked feedback + context), each a linear map. `last` is its last operation,
    `extra` the name of an input that is added and not used.
    """
    graph = f"""
<ir_version: 10, opset_import: ["": 18]>
small (
  float[1, N, {len(given["candidate_float"])}] candidate_float, int32[1, N, 1] candidate_category,
  float[1, T, {len(given["event_feedback"])}] event_feedback, float[1, T] event_mask, float[1, {len(given["context"])}] context
  {f", float[1, N] {extra}" if extra else ""}
) => (float {output}) {{
  of_floats = MatMul (candidate_float, w_candidate_float)
  codes = Squeeze (candidate_category, last_axis)
  of_category = Gather (w_table, codes)
  mask = Unsqueeze (event_mask, last_axis)
  seen = Mul (event_feedback, mask)
  of_each = MatMul (seen, w_event_feedback)
  of_events = ReduceSum <keepdims = 1> (of_each, one)
  of_context = MatMul (context, w_context)
  moment = Unsqueeze (of_context, one)
  total = Sum (of_floats, of_category, of_events, moment)
  {output} = {last} (total)
}}
"""
    built = parser.parse_model(graph)
    constants = {f"w_{name}": value for name, value in given.items()} | {"last_axis": np.array([-1]), "one": np.array([1])}
    built.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return bytes(built.SerializeToString())


def golden(given: Weights, seed: int = 0) -> Golden:
    """A case of the model, computed in numpy."""
    rng = np.random.default_rng(seed)
    inputs: dict[str, NDArray[Any]] = {
        "candidate_float": rng.random((8, 2)).astype(np.float32),
        "candidate_category": rng.integers(0, 40, (8, 1)).astype(np.int32),
        "event_float": rng.random((4, 2)).astype(np.float32),
        "event_category": rng.integers(0, 40, (4, 1)).astype(np.int32),
        "event_feedback": rng.random((4, 1)).astype(np.float32),
        "event_gap": np.array([[40, 4], [30, 3], [20, 2], [10, 1]], np.float32),
        "context": np.array([[12]], np.float32),
    }
    total = inputs["candidate_float"] @ given["candidate_float"] + given["table"][inputs["candidate_category"][:, 0]]
    total = total + (inputs["event_feedback"] @ given["event_feedback"]).sum(0) + inputs["context"] @ given["context"]
    scores = 1 / (1 + np.exp(-total))
    return Golden(
        cases=(
            GoldenCase(
                form="self_contained",
                inputs={k: to_block(v, "i4" if k.endswith("category") else "f4") for k, v in inputs.items()},
                scores=to_block(scores, "f4"),
            ),
        ),
        tolerances=(GoldenTolerance(form="self_contained", format="onnx", precision="fp32", max_diff=1e-4),),
        ranges=(ScoreRange(form="self_contained", mean=(0.5, 0.5), std=(0.2, 0.2)),),
    )


def make_files(
    serial: int, *, seed: int = 0, files: Mapping[str, bytes] = {}, spec: FeatureSpec = SPEC, **changes: Any
) -> dict[str, bytes]:
    """What a server sends of a rightly signed bundle, by path. `files` replace its own, `changes` fields of its
    manifest.
    """
    given = weights(seed)
    own = {"spec.json": to_json(spec), MODEL: model(given), GOLDEN: to_msgpack(golden(given)), **files}
    entries = tuple(FileEntry(path=p, bytes=len(d), sha256=hashlib.sha256(d).hexdigest()) for p, d in own.items())
    whole = ModelEntry(form="self_contained", format="onnx", precision="fp32", path=MODEL, bytes=len(own[MODEL]))
    fields = {"name": "small", "created_ms": NOW_MS, "split_version": "none", "spec": "spec.json", "models": (whole,)}
    text = to_json(BundleManifest(**{**fields, "serial": serial, "files": entries, **changes}))
    signatures = to_json(Signed(signatures=sign("manifest", text, [BUNDLE_KEY, SECOND_KEY])))
    return {MANIFEST: text, SIGNATURES: signatures, **{f"files/{path}": data for path, data in own.items()}}


def make_bundle(folder: Path, serial: int, **changes: Any) -> Path:
    """That bundle in `folder`."""
    for name, data in make_files(serial, **changes).items():
        path = folder / name.removeprefix("files/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def release_of(manifest: bytes, serial: int, *, number: int = 10, **changes: Any) -> Release:
    """Release `number` of the bundle `serial` with that manifest, for all devices and a week."""
    fields: dict[str, Any] = {"serial": number, "created_ms": NOW_MS, "expires_ms": NOW_MS + 7 * 86_400_000}
    digest = hashlib.sha256(manifest).hexdigest()
    ref = BundleRef(serial=serial, manifest_bytes=len(manifest), manifest_sha256=digest)
    return Release(**{**fields, "bundle": ref, **changes})


def signed_release(release: Release | bytes, *keys: SigningKey) -> dict[str, bytes]:
    """The release as a server sends it, signed by the right keys unless others are given."""
    payload = release if isinstance(release, bytes) else to_json(release)
    return {RELEASE: to_json(Signed(payload=payload, signatures=sign("release", payload, keys or (RELEASE_KEY, SECOND_KEY))))}


@dataclass(frozen=True)
class Answer:
    """Answer of a server that misbehaves."""

    pieces: Iterable[bytes]
    """Of the body, as they are sent; with `raw`, of the whole answer."""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    raw: bool = False
    pause_s: float = 0.0
    """Between two pieces."""

    @classmethod
    def whole(cls, data: bytes, status: int = 200, **headers: str) -> Answer:
        """`data` at once. Names of headers are spelled with `_`; the length is the true one unless given."""
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return cls([data], status, {"Content-Length": str(len(data)), **given})


class Server:
    """Serves `files` (by the path below `/v1/bundle/`) on the loopback interface, in a thread, with ranges."""

    def __init__(self) -> None:
        self.files: dict[str, bytes | Answer] = {}
        self.asked: list[tuple[str, str]] = []
        """Path and range of each request."""
        self.before: Callable[[str], None] = lambda path: None
        """Called with the path of each request before its answer."""
        self.pause_s = 0.0
        """Seconds after each piece of a body."""
        self.url = ""


def use(ranker: Ranker, runs: int, *, fails: bool = False) -> None:
    """Run the ranker's model `runs` times, as swipes would; with `fails`, each run fails."""
    runtime = ranker.runtimes["self_contained"]["whole"]
    rows: dict[str, NDArray[Any]] = {
        "candidate_float": np.random.default_rng(0).random((1, 8, 2)).astype(np.float32),
        "candidate_category": np.arange(8, dtype=np.int32).reshape(1, 8, 1),
        "event_feedback": np.ones((1, 4, 1), np.float32),
        "event_mask": np.ones((1, 4), np.float32),
        "context": np.ones((1, 1), np.float32),
    }
    for _ in range(runs):
        with suppress(RuntimeRunError):
            runtime.run_all({} if fails else rows)


@contextmanager
def serve() -> Iterator[Server]:
    """Serve while the block runs. The value is the running server."""
    state = Server()

    class Handler(LoopbackHandler):
        def do_GET(self) -> None:  # noqa: N802 - the name that http.server calls
            name, wanted = self.path.removeprefix("/v1/bundle/"), self.headers.get("Range", "")
            state.asked.append((name, wanted))
            state.before(name)
            found = state.files.get(name)
            try:
                if isinstance(found, Answer):
                    self.close_connection = True
                    self._send(found)
                elif found is None:
                    self._body(404, b"nothing here", {})
                elif start := re.fullmatch(r"bytes=(\d+)-", wanted):
                    self._range(found, int(start[1]))
                else:
                    self._body(200, found, {})
            except OSError:
                self.close_connection = True  # the device hung up

        def _range(self, data: bytes, start: int) -> None:
            tag = f'"{hashlib.sha256(data).hexdigest()}"'
            if self.headers.get("If-Range", tag) != tag:
                self._body(200, data, {})
            elif start >= len(data):
                self._body(416, b"", {"Content-Range": f"bytes */{len(data)}"})
            else:
                self._body(206, data[start:], {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"})

        def _body(self, status: int, data: bytes, headers: Mapping[str, str]) -> None:
            pieces = (data[start : start + PIECE] for start in range(0, len(data), PIECE))
            self._send(Answer(pieces, status, {**headers, "Content-Length": str(len(data))}, pause_s=state.pause_s))

        def _send(self, answer: Answer) -> None:
            if not answer.raw:
                self.send_response(answer.status)
                for key, value in answer.headers.items():
                    self.send_header(key, value)
                self.end_headers()
            for piece in answer.pieces:
                self.wfile.write(piece)
                time.sleep(answer.pause_s)

    with serve_loopback(Handler) as state.url:
        yield state
