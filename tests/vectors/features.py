"""Vectors of the inputs that a device builds for a model, for any language. `generate` writes them to `features/`.

`spec.json`, `spec_search.json`   feature specs
`pages/NAME.msgpack`              pages, good and bad
`encodings.json`                  the inputs of each page, feedback event and moment by `spec.json`
`sessions/NAME.json`              whole sessions: see `tests.vectors.feature_sessions`

An array is its shape and flat values; floats are the shortest decimals that round to the f32; null stands for NaN.
"""

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from pocketrank.device.codec import to_block, to_json, to_msgpack
from pocketrank.device.contract import (
    BlockError,
    Candidates,
    CategoryFeature,
    Columns,
    Ended,
    FeatureSpec,
    FeedbackEvent,
    FloatFeature,
    Network,
    Orientation,
    Page,
    SearchSpec,
)
from pocketrank.device.model.features import FeatureBuilder

T0 = 1_700_000_000_000  # 2023-11-14 22:13:20 UTC
SPLIT = "a1b2"
SIZES = (4, 8)

SPEC = FeatureSpec(
    tasks=("long_view", "like", "hate"),
    task_weights={"long_view": 1.0, "like": 2.0, "hate": -0.5},
    candidates_max=8,
    events_max=6,
    vector_width=4,
    list_sizes=SIZES,
    candidate_floats=(
        FloatFeature(name="pxtr_like", min=0, max=1, default=0.5),
        FloatFeature(name="duration_ms", min=0, max=1800, default=15, scale=1e-3),
        FloatFeature(name="age", min=-5, max=5),
        FloatFeature(name="distance", min=-1, max=0, default=-0.25, scale=-0.001),
    ),
    candidate_categories=(CategoryFeature(name="category", size=10), CategoryFeature(name="author", size=100)),
    feedback_floats=(
        FloatFeature(name="watch_ms", min=0, max=1800, scale=1e-3),
        FloatFeature(name="position", min=0, max=1000, scale=0.01),
        *(FloatFeature(name=name, min=0, max=1) for name in (
            "click", "like", "follow", "comment", "share", "profile_enter", "dislike",
        )),
        FloatFeature(name="ended", min=0, max=3),
        FloatFeature(name="volume", min=0, max=1, default=0.5),
        FloatFeature(name="volume_change", min=-1, max=1),
        FloatFeature(name="muted", min=0, max=1, default=0.25),
        FloatFeature(name="orientation", min=0, max=1),
        FloatFeature(name="playback_rate", min=0.25, max=4, default=1),
        FloatFeature(name="pauses", min=0, max=20, scale=0.1),
        FloatFeature(name="seeks", min=0, max=20),
        FloatFeature(name="scroll_speed", min=0, max=50, scale=0.3),
        FloatFeature(name="network", min=0, max=2, default=2),
        FloatFeature(name="buffering_ms", min=0, max=60, scale=1e-3),
        FloatFeature(name="battery_saver", min=0, max=1, default=0.1),
        FloatFeature(name="backgrounded", min=0, max=1),
    ),
    context_floats=(FloatFeature(name="hour", min=0, max=24, scale=0.1), FloatFeature(name="position", min=0, max=40)),
    numbering="c0de",
)  # fmt: skip
SPECS = {"spec": SPEC, "spec_search": msgspec.structs.replace(SPEC, search=SearchSpec(), survival_task="long_view")}


def _page(name: str, items: Sequence[int], seed: int, split: str | None = SPLIT, **changes: Any) -> Page:
    """Return a page of `items` with these `changes` to the fields of its `Candidates`."""
    rng, n = np.random.default_rng(seed), len(items)
    floats = np.stack([rng.random(n), rng.random(n) * 60_000, rng.normal(size=n), rng.random(n) * 1500], 1)
    codes = np.stack([rng.integers(0, 10, n), rng.integers(0, 100, n)], 1)
    candidates = Candidates(
        item_id=to_block(np.array(items, np.int64), "i8"),
        floats=Columns(names=("pxtr_like", "duration_ms", "age", "distance"), values=to_block(floats, "f4")),
        categories=Columns(names=("category", "author"), values=to_block(codes, "i4")),
        vector=None if split is None else to_block(rng.normal(size=(n, 4)), "f2"),
    )
    within = {field: changes.pop(field) for field in Candidates.__struct_fields__ if field in changes}
    fields: dict[str, Any] = {
        "page_id": name, "request_id": "s-1/1", "created_ms": T0, "ttl_ms": 600_000, "split_version": split,
        "split_reason": "no such lower half" if split is None else None,
        "user_vector": None if split is None else to_block(rng.normal(size=4), "f2"),
        "candidates": msgspec.structs.replace(candidates, **within),
    }  # fmt: skip
    return Page(**fields | changes)


def _alike() -> Page:
    """Return a page with three kinds of candidates. Those of a kind have equal features, though not equal bytes."""
    kind = np.array([2, 0, 1, 0, 2, 0, 1, 2, 0, 1])
    first = np.arange(len(kind)) < 4
    floats = np.array([[0.25, 9_000.0, 0.0, 100.0], [0.5, 15_000.0, 1.0, 0.0], [1.0, 2_000_000.0, 5.0, 100.0]])[kind]
    floats[:, 0] += np.where(first & (kind == 2), 0.5, 0)  # clipped to 1
    floats[:, 1] = np.where(first & (kind == 1), np.nan, floats[:, 1])  # the default
    floats[:, 2] = np.where(first & (kind == 0), -0.0, floats[:, 2])
    codes = np.where(first & (kind == 1), 100, 0)[:, None] + np.array([0, 0])  # both unknown
    vector = np.array([[0.0, 1, 2, 3], [0, 0, 0, 0], [-1, -2, -3, -4]])[kind]
    vector[first & (kind == 1)] = -0.0
    return _page(
        "alike", range(101, 101 + len(kind)), 11, vector=to_block(vector, "f2"),
        floats=Columns(names=("pxtr_like", "duration_ms", "age", "distance"), values=to_block(floats, "f4")),
        categories=Columns(names=("category", "author"), values=to_block(codes, "i4")),
    )  # fmt: skip


def pages() -> dict[str, Page]:
    """Return pages by name. The long ones hold more candidates than the model takes."""
    nan, inf = math.nan, math.inf
    odd = np.array(
        # unheard_of, duration_ms, age, pxtr_like; `distance` is missing
        [[9, nan, 3.0, 1.5], [9, 30_000.0, nan, -0.5], [nan, inf, -inf, nan], [9, -1.0, 1e38, 0.1], [9, 1e9, -0.0, inf]]
    )
    codes = np.array([[99, 7, 9], [100, 7, 10], [-1, 7, -(2**31)], [2**31 - 1, 7, 3], [50, 7, 0]])
    half = np.array([0x3C00, 0x7E00, 0x7C00, 0xFC00, 0x0001, 0x03FF, 0x8001, 0x7BFF, 0x3555, 0x8000, 0x0400, 0xFBFF, 0x2E66,
                     0xB800, 0xC000, 0x5140, 0x0000, 0xFE01, 0x1234, 0x9ABC], np.uint16).view(np.float16)  # fmt: skip
    columns = Columns(names=("unheard_of", "duration_ms", "age", "pxtr_like"), values=to_block(odd, "f4"))
    return {
        "plain": _page("plain", [11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21], 1),
        "next": _page("next", [21, 22, 11, 23, 24], 2, compute_price=2.5),
        "odd": _page(
            "odd", [31, -32, 31, 2**62, 33], 3, floats=columns, vector=to_block(half.reshape(5, 4), "f2"),
            categories=Columns(names=("author", "unheard_of", "category"), values=to_block(codes, "i4")),
        ),
        "late": _page("late", [41, 42, 43, 44, 45, 46], 4, split=None),
        "other_split": _page("other_split", [51, 52, 53], 5, split="zz"),
        "narrow_vectors": _page("narrow_vectors", [61, 62, 63], 6, vector=to_block(np.ones((3, 3)), "f2")),
        "no_user_vector": _page("no_user_vector", [65, 66, 67], 6, user_vector=None),
        "bad_features": _page(
            "bad_features", [71, 72, 73], 7, floats=Columns(names=("age",), values=to_block(np.ones((2, 1)), "f4"))
        ),
        "twice_named": _page(
            "twice_named", [75, 76], 7, floats=Columns(names=("age", "age"), values=to_block(np.ones((2, 2)), "f4"))
        ),
        "bad_ids": _page("bad_ids", [81], 8, item_id=to_block(np.ones(1, int), "i4")),
        "same_codes": _page("same_codes", [85, 86], 12, numbering="c0de"),
        "other_codes": _page("other_codes", [85, 86], 12, numbering="c0df"),
        "alike": _alike(),
        "one": _page("one", [91], 9),
        "nothing": _page("nothing", [], 10),
    }  # fmt: skip


def make_event(item: int, at: int, **changes: Any) -> FeedbackEvent:
    fields: dict[str, Any] = {
        "event_id": f"e-{item}", "user_id": 42, "session_id": "s-1", "item_id": item, "position": at,
        "impression_ms": T0 + 7_001 * at, "watch_ms": 3_000 + 777 * at,
    }  # fmt: skip
    return FeedbackEvent(**fields | changes)


def events() -> dict[str, FeedbackEvent]:
    """Return feedback by name: with signals that a platform has, that it lacks, and that are absurd."""
    return {
        "nulls": make_event(11, 0),
        "full": make_event(
            12, 1, page_id="plain", experiment="paging/b", ended=Ended.COMPLETE, click=True, like=True, follow=True,
            comment=True, share=True, profile_enter=True, dislike=True, volume=0.7, volume_change=-0.3, muted=False,
            orientation=Orientation.LANDSCAPE, playback_rate=1.25, pauses=3, seeks=2, scroll_speed=0.7,
            network=Network.CELLULAR, buffering_ms=1_234, battery_saver=True, backgrounded=False,
        ),
        "least": make_event(
            13, -5, watch_ms=-1, volume=-2.0, volume_change=-7.0, playback_rate=0.0, pauses=-1, seeks=-(2**63),
            scroll_speed=-0.1, network=Network.OFFLINE, buffering_ms=-9, muted=True,
        ),
        "most": make_event(
            14, 2**40, watch_ms=2**63 - 1, volume=1e300, volume_change=math.inf, playback_rate=99.0, pauses=10**6,
            seeks=2**62, scroll_speed=math.inf, network=Network.WIFI, buffering_ms=2**53, ended=Ended.BACKGROUND,
            backgrounded=True,
        ),
    }  # fmt: skip


def array(values: NDArray[Any]) -> dict[str, Any]:
    """Return the value as the vectors write it."""
    flat = values.ravel()
    return {"shape": list(values.shape), "values": flat.tolist() if flat.dtype.kind == "i" else [_short(x) for x in flat]}


def _short(value: np.float32) -> float | None:
    text = float(str(value))
    assert np.float32(text) == value or text != text
    return None if text != text else text


def encodings() -> dict[str, Any]:
    """Return the inputs that the SDK builds from each page, event and moment."""
    builder = FeatureBuilder(SPEC)
    told: dict[str, Any] = {"pages": {}, "events": {}, "moments": []}
    for name, page in pages().items():
        try:
            arrays = builder.page(page)
        except BlockError as error:
            told["pages"][name] = {"refused": error.path}
            continue
        vectors = {"vector": arrays.vector, "user_vector": arrays.user_vector}
        told["pages"][name] = {
            "item_id": arrays.item_id.tolist(),
            "floats": array(arrays.floats),
            "categories": array(arrays.categories),
            **{key: None if value is None else array(value) for key, value in vectors.items()},
            "features_bad": arrays.problem is not None,
            "duplicates": arrays.duplicates,
            "missing_columns": arrays.missing_columns,
        }
    row = np.zeros(len(SPEC.feedback_floats), np.float32)
    for name, event in events().items():
        builder.feedback(event, row)
        plain = {key: "inf" if value == math.inf else value for key, value in msgspec.to_builtins(event).items()}
        told["events"][name] = {"event": plain, "feedback": array(row), "msgpack": to_msgpack(event).hex()}
    context = np.zeros(len(SPEC.context_floats), np.float32)
    for position, now_ms in ((0, T0), (7, T0 + 6_400_000), (41, 0), (3, -1), (10**9, 2**53), (-1, -(10**12))):
        builder.context(position, now_ms, context)
        told["moments"].append({"position": position, "now_ms": now_ms, "context": array(context)})
    return told


def lines(value: Any, depth: int) -> str:
    """Return JSON with a line for each entry of the upper `depth` levels: short, and a diff still shows what changed."""
    if depth == 0 or not isinstance(value, dict | list) or not value:
        return json.dumps(value, separators=(",", ":"))
    if isinstance(value, dict):
        return "{\n" + ",\n".join(f"{json.dumps(key)}:{lines(entry, depth - 1)}" for key, entry in value.items()) + "\n}"
    return "[\n" + ",\n".join(lines(entry, depth - 1) for entry in value) + "\n]"


def files() -> dict[str, bytes]:
    """Return the contents of every file of these vectors by its path."""
    out = {f"features/{name}.json": to_json(spec) + b"\n" for name, spec in SPECS.items()}
    out |= {f"features/pages/{name}.msgpack": to_msgpack(page) for name, page in pages().items()}
    out["features/encodings.json"] = lines(encodings(), 2).encode() + b"\n"
    return out
