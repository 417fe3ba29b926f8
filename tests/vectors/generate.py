"""Writer of the contract's committed vectors: `python -m tests.vectors.generate`.

`valid/NAME.json` and `valid/NAME.msgpack` are two encodings of the same struct; `bad/NAME.json` or `.msgpack` must be rejected.
`index.json` gives the type of each, and for bad ones the error and its path. `blocks.json` holds blocks as hex with the values
that they decode to. `tests.vectors.features` describes `features/`.
"""

import json
import math
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from pocketrank.device.codec import to_block, to_json, to_msgpack
from pocketrank.device.contract import (
    Block,
    BundleManifest,
    Candidates,
    Columns,
    Ended,
    FeatureSpec,
    FeedbackBatch,
    FeedbackEvent,
    FeedbackReceipt,
    FileEntry,
    GroupRule,
    ModelEntry,
    Network,
    Orientation,
    Page,
    PageRequest,
    PersonalConfig,
    TaskPrior,
)
from tests.device.worlds import SPEC
from tests.vectors import feature_sessions, features

FOLDER = Path(__file__).parent
COMMAND = "python -m tests.vectors.generate"

TYPES: dict[str, type[msgspec.Struct]] = {
    t.__name__: t for t in (Page, PageRequest, FeedbackEvent, FeedbackBatch, FeedbackReceipt, FeatureSpec, BundleManifest)
}


def event(**changes: Any) -> FeedbackEvent:
    fields: dict[str, Any] = {
        "event_id": "e-1", "user_id": 42, "session_id": "s-1", "item_id": 9_007_199_254_740_993, "position": 3,
        "impression_ms": 1_700_000_000_123, "watch_ms": 5_250,
    }  # fmt: skip
    return FeedbackEvent(**fields | changes)


def page(*, vectors: bool = True, rows: int = 3) -> Page:
    floats = np.array([[0.5, 15_000.0], [math.nan, 0.0], [1.0, -2.5]])[:rows]
    vector = np.array([[0.5, -1.25, 65_504.0, 6e-8], [0.1, 1 / 3, -0.0, 2.0], [math.nan, 1.0, 0.0, -65_504.0]])[:rows]
    return Page(
        page_id="p-1",
        request_id="s-1/1",
        created_ms=1_700_000_000_000,
        ttl_ms=600_000,
        compute_price=1.5,
        split_version="a1b2" if vectors else None,
        split_reason=None if vectors else "split version `zz` is no longer kept",
        user_vector=to_block(np.array([1.0, 0.0, -1.0, 0.25]), "f2") if vectors else None,
        candidates=Candidates(
            item_id=to_block(np.array([11, -12, 2**62])[:rows], "i8"),
            floats=Columns(names=("pxtr_like", "duration_ms"), values=to_block(floats, "f4")),
            categories=Columns(names=("category",), values=to_block(np.array([[3], [0], [2**31 - 1]])[:rows], "i4")),
            vector=to_block(vector, "f2") if vectors else None,
        ),
    )


def _numbered(page: Page) -> Page:
    return msgspec.structs.replace(page, candidates=msgspec.structs.replace(page.candidates, numbering="c0de"))


def valid() -> dict[str, msgspec.Struct]:
    full = event(
        event_id="e-2", page_id="p-1", experiment="paging/b", ended=Ended.COMPLETE,
        click=True, like=True, follow=True, comment=True, share=True,
        profile_enter=True, dislike=True, volume=0.75, volume_change=-0.25, muted=False, orientation=Orientation.LANDSCAPE,
        playback_rate=1.5, pauses=2, seeks=1, scroll_speed=0.5, network=Network.CELLULAR, buffering_ms=120,
        battery_saver=True, backgrounded=False,
    )  # fmt: skip
    request = PageRequest(
        request_id="s-1/2", user_id=42, session_id="s-1", now_ms=1_700_000_000_500, size=30, scene=1,
        split_version="a1b2", feedback=(event(), full), exclude=(11, -12), experiment="paging/b",
    )  # fmt: skip
    manifest = BundleManifest(
        name="pocketrank",
        serial=7,
        created_ms=1_700_000_000_000,
        expires_ms=1_800_000_000_000,
        split_version="a1b2",
        spec="spec.json",
        files=(
            FileEntry(path="models/split.onnx", bytes=3, sha256="ab" * 32),
            FileEntry(path="models/heavy.onnx", bytes=4, sha256="ef" * 32),
            FileEntry(path="spec.json", bytes=2, sha256="cd" * 32),
        ),
        models=(
            ModelEntry(form="split", format="onnx", precision="fp32", path="models/split.onnx", bytes=3),
            ModelEntry(form="split", format="onnx", precision="fp32", path="models/heavy.onnx", bytes=4, group="heavy"),
        ),
        personal=PersonalConfig(tasks={"like": TaskPrior(user=0.25, category=0.5)}, forget=0.0625, drift_max=1.5, buckets=64),
        groups=GroupRule(casual_from=10, heavy_from=50),
    )
    return {
        "page": page(),
        "page_without_vectors": page(vectors=False),
        "page_of_nothing": page(rows=0),
        "page_with_numbering": _numbered(page()),
        "event_nulls": event(),
        "event_full": full,
        "event_aged": event(age_ms=86_400_123),
        "request": request,
        "request_least": PageRequest(request_id="r", user_id=1, session_id="s", now_ms=0, size=1),
        "batch": FeedbackBatch(events=(event(), full)),
        "receipt": FeedbackReceipt(accepted=2, duplicates=1),
        "spec": SPEC,
        "manifest": manifest,
    }


def changed(struct: msgspec.Struct, *path: str | int, value: Any = ..., **extra: Any) -> Any:
    """The struct as plain data with the value at `path` replaced (dropped without `value`) and `extra` fields added there."""
    data: Any = json.loads(to_json(struct))
    at = data
    for key in path[:-1] if not extra else path:
        at = at[key]
    if extra:
        at.update(extra)
    elif value is ...:
        del at[path[-1]]
    else:
        at[path[-1]] = value
    return data


def bad_json() -> dict[str, tuple[str, Any, str, str]]:
    """name → type, data, error, path"""
    whole, batch, manifest = page(), FeedbackBatch(events=(event(), event(event_id="e-2"))), valid()["manifest"]
    c, at = "candidates", "$.candidates"
    return {
        "page_version": ("Page", changed(whole, "version", value=2), "VersionError", "$.version"),
        "page_version_text": ("Page", changed(whole, "version", value="1"), "DecodeError", "$.version"),
        "page_no_id": ("Page", changed(whole, "page_id"), "DecodeError", "$.page_id"),
        "page_no_candidates": ("Page", changed(whole, "candidates"), "DecodeError", "$.candidates"),
        "page_id_number": ("Page", changed(whole, "page_id", value=5), "DecodeError", "$.page_id"),
        "page_name_number": ("Page", changed(whole, c, "floats", "names", 1, value=5), "DecodeError", at + ".floats.names[1]"),
        "page_dtype": ("Page", changed(whole, c, "vector", "dtype", value="f8"), "DecodeError", at + ".vector.dtype"),
        "page_base64": ("Page", changed(whole, c, "vector", "data", value="AAAA"), "DecodeError", at + ".vector.data"),
        "page_short_block": ("Page", changed(whole, c, "item_id", "data", 2), "BlockError", at + ".item_id.data"),
        "page_null_id": ("Page", changed(whole, c, "item_id", "data", 1, value=None), "BlockError", at + ".item_id.data[1]"),
        "page_float_id": ("Page", changed(whole, c, "item_id", "data", 1, value=1.5), "BlockError", at + ".item_id.data[1]"),
        "page_large_id": ("Page", changed(whole, c, "item_id", "data", 0, value=2**63), "BlockError", at + ".item_id.data[0]"),
        "page_large_code": (
            "Page",
            changed(whole, c, "categories", "values", "data", 0, value=2**31),
            "BlockError",
            at + ".categories.values.data[0]",
        ),
        "page_huge_claim": (
            "Page",
            changed(whole, c, "vector", "shape", value=[2**40, 2**20]),
            "BlockError",
            at + ".vector.shape",
        ),
        "page_negative_claim": (
            "Page",
            changed(whole, c, "vector", "shape", value=[-3, -4]),
            "BlockError",
            at + ".vector.shape",
        ),
        "batch_event_version": (
            "FeedbackBatch",
            changed(batch, "events", 1, "version", value=9),
            "VersionError",
            "$.events[1].version",
        ),
        "batch_event_item": (
            "FeedbackBatch",
            changed(batch, "events", 1, "item_id", value="x"),
            "DecodeError",
            "$.events[1].item_id",
        ),
        "batch_large_int": (
            "FeedbackBatch",
            changed(batch, "events", 0, "watch_ms", value=10**30),
            "DecodeError",
            "$.events[0].watch_ms",
        ),
        "event_ended": ("FeedbackEvent", changed(event(), "ended", value=9), "DecodeError", "$.ended"),
        "event_list": ("FeedbackEvent", [], "DecodeError", "$"),
        "manifest_group": (
            "BundleManifest",
            changed(manifest, "models", 1, "group", value="idle"),
            "DecodeError",
            "$.models[1].group",
        ),
        "manifest_rule": ("BundleManifest", changed(manifest, "groups", "heavy_from", value=9), "DecodeError", "$.groups"),
        "manifest_personal": ("BundleManifest", changed(manifest, "personal", "forget", value=-1), "DecodeError", "$.personal"),
    }


def blocks() -> list[dict[str, Any]]:
    """Return blocks as hex with their values. NaN is null, infinities are text."""
    half = ["0000", "0080", "0038", "00bd", "ff7b", "0100", "ff03", "0004", "5535", "007c", "00fc", "007e"]
    samples: list[tuple[Any, list[int], bytes]] = [
        ("f2", [len(half)], bytes.fromhex("".join(half))),
        ("f4", [2, 2], np.array([[1.5, -0.1], [3.4028235e38, math.nan]], "<f4").tobytes()),
        ("i4", [3], np.array([0, -1, 2**31 - 1], "<i4").tobytes()),
        ("i8", [2], np.array([-(2**63), 2**63 - 1], "<i8").tobytes()),
        ("u1", [4], bytes([0, 1, 128, 255])),
        ("f2", [0, 4], b""),
    ]
    written = []
    for dtype, shape, data in samples:
        values = np.frombuffer(data, "<" + dtype).tolist()
        plain = [
            None if v != v else ("inf" if v > 0 else "-inf") if isinstance(v, float) and math.isinf(v) else v for v in values
        ]
        block = Block(dtype=dtype, shape=tuple(shape), data=data)
        written.append({"dtype": block.dtype, "shape": list(block.shape), "hex": data.hex(), "values": plain})
    return written


def files() -> dict[str, bytes]:
    """Return the contents of every file of the vectors by its path."""
    out: dict[str, bytes] = {}
    index: dict[str, Any] = {"valid": {}, "bad": {}}
    for name, struct in valid().items():
        index["valid"][name] = {"type": type(struct).__name__}
        out[f"valid/{name}.json"], out[f"valid/{name}.msgpack"] = to_json(struct) + b"\n", to_msgpack(struct)
    # A reader of this version must ignore fields that a later version adds.
    extra = changed(event(), later={"deep": [1, None]}, another="x")
    index["valid"]["event_unknown_fields"] = {"type": "FeedbackEvent", "same_as": "event_nulls"}
    out["valid/event_unknown_fields.json"] = msgspec.json.encode(extra) + b"\n"
    out["valid/event_unknown_fields.msgpack"] = msgspec.msgpack.encode(extra)
    for name, (kind, data, error, path) in bad_json().items():
        index["bad"][f"{name}.json"] = {"type": kind, "error": error, "path": path}
        out[f"bad/{name}.json"] = msgspec.json.encode(data) + b"\n"
    whole = to_msgpack(page())
    for name, body in {
        "page_cut.msgpack": whole[: len(whole) // 2],
        "page_tail.msgpack": whole + b"\x00",
        "page_opcode.msgpack": b"\xc1",
        "page_empty.msgpack": b"",
        "page_deep.msgpack": b"\x91" * 3000,
    }.items():
        index["bad"][name] = {"type": "Page", "error": "DecodeError", "path": "$"}
        out[f"bad/{name}"] = body
    index["bad"]["page_list_block.msgpack"] = {"type": "Page", "error": "DecodeError", "path": "$.candidates.item_id.data"}
    out["bad/page_list_block.msgpack"] = msgspec.msgpack.encode(json.loads(to_json(page())))
    out["index.json"] = json.dumps(index, indent=1).encode() + b"\n"
    out["blocks.json"] = json.dumps(blocks(), indent=1).encode() + b"\n"
    return out | features.files() | feature_sessions.files()


def main() -> None:
    wanted = files()
    for path, data in wanted.items():
        (FOLDER / path).parent.mkdir(parents=True, exist_ok=True)
        (FOLDER / path).write_bytes(data)
    for path in written() - set(wanted):
        (FOLDER / path).unlink()


def written() -> set[str]:
    """Return the paths of all files in the folders that hold nothing but these vectors."""
    found = (path for folder in ("valid", "bad", "features") for path in (FOLDER / folder).rglob("*") if path.is_file())
    return {path.relative_to(FOLDER).as_posix() for path in found}


if __name__ == "__main__":
    main()
