"""Inspection of a bundle. Damage is a `problem` in the report, which still holds everything that can be read."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import MANIFEST, BundleError, check_path
from pocketrank.device.codec import from_json
from pocketrank.device.contract import (
    BundleManifest,
    ContractError,
    FeatureSpec,
    FloatFeature,
    Form,
    Format,
    Group,
    ModelEntry,
    Precision,
)
from pocketrank.device.model.features import PageArrays, check_spec
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.ranking.ranker import Moment, Ranker
from pocketrank.device.runtimes import ModelRuntimeError
from pocketrank.export.bundle import REPORT

__all__ = ["RUNS", "inspect_bundle"]

RUNS = 50
"""Reranks that a median is computed from."""
_RUNTIMES: dict[Format, str] = {"onnx": "onnxruntime", "tflite": "ai_edge_litert"}
_REPORTED = frozenset({"version", "name", "serial", "created_ms", "expires_ms", "split_version", "spec", "files", "models"})

S = TypeVar("S", bound=msgspec.Struct)
_Kind = tuple[Form, Format, Precision, Group | None]


class _Gate(msgspec.Struct):
    loss: float
    order_agreement: float


class _Measured(msgspec.Struct):
    max_abs_diff: float | None = None
    gate: _Gate | None = None


class _Report(msgspec.Struct):
    """The part of `pocketrank.export.bundle`'s report that is read here."""

    models: dict[str, _Measured]


def inspect_bundle(folder: Path) -> dict[str, Any]:
    """Return a report of the bundle in `folder`.

    `problems` are the reasons why devices would reject it. `models` holds for each model the path and bytes of its stages; from
    the export's report `max_abs_diff`, the difference from torch, and `auc_lost` and `same_best` of a reduced precision; and
    `rerank_ms`, the median time of the model's run at a swipe on this machine, with the spec's largest numbers of candidates
    and events, or `refused`, the reason why it was not run. `further` holds the remaining fields of the manifest.
    """
    report: dict[str, Any] = {"kind": "bundle", "path": str(folder), "problems": []}
    problems: list[str] = report["problems"]
    manifest = _read(folder / MANIFEST, BundleManifest, problems)
    if manifest is None:
        return report
    now_ms = time.time_ns() // 1_000_000
    fields = msgspec.structs.asdict(manifest)
    report |= {name: fields[name] for name in ("name", "serial", "split_version", "created_ms", "expires_ms")}
    report["expired"] = manifest.expires_ms is not None and now_ms >= manifest.expires_ms
    report["further"] = {
        k: msgspec.to_builtins(v) for k, v in fields.items() if k not in _REPORTED and v not in (None, msgspec.UNSET)
    }
    bad = dict(_bad_files(folder, manifest))
    problems += bad.values()
    listed = {file.path for file in manifest.files}
    report["files"] = {
        "listed": len(listed),
        "bytes": sum(file.bytes for file in manifest.files),
        "as_listed": len(listed - set(bad)),
        "unlisted": sorted({p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - listed - {MANIFEST}),
    }
    spec = None if manifest.spec in bad else _spec(folder, manifest, problems)
    report["spec"] = None if spec is None else msgspec.to_builtins(spec)
    measured = {} if REPORT in bad or REPORT not in listed else _measured(folder / REPORT)
    report["models"] = [
        _model(kind, entries, folder, manifest, spec, set(bad), measured, problems)
        for kind, entries in _kinds(manifest).items()
    ]
    if not problems:  # a device's own checks compare the files with each other
        try:
            Bundle.open(folder, now_ms=0)
        except BundleError as err:
            problems.append(str(err))
    return report


def _read(path: Path, struct: type[S], problems: list[str]) -> S | None:
    try:
        return from_json(path.read_bytes(), struct)
    except OSError as err:
        problems.append(f"{path}: expected a readable file, got {err.strerror}")
    except ContractError as err:
        problems.append(f"{path}: {err}")
    return None


def _spec(folder: Path, manifest: BundleManifest, problems: list[str]) -> FeatureSpec | None:
    spec = None
    if manifest.spec not in {file.path for file in manifest.files}:
        problems.append(f"{folder / MANIFEST}: expected a listed file as the spec, got `{manifest.spec}`")
    elif (spec := _read(folder / manifest.spec, FeatureSpec, problems)) is not None:
        try:
            check_spec(spec)
        except ContractError as err:
            problems.append(f"{folder / manifest.spec}: {err}")
            return None
    return spec


def _bad_files(folder: Path, manifest: BundleManifest) -> Iterator[tuple[str, str]]:
    """Yield the files that do not match the manifest, each with its problem."""
    for file in manifest.files:
        path = folder / file.path
        try:
            check_path(file.path)
            with path.open("rb") as data:
                digest = hashlib.file_digest(data, "sha256").hexdigest()
            size = path.stat().st_size
        except BundleError as err:
            yield file.path, str(err)
        except OSError as err:
            yield file.path, f"{path}: expected a readable file, got {err.strerror}"
        else:
            if size != file.bytes:
                yield file.path, f"{path}: expected {file.bytes} bytes, got {size}"
            elif digest != file.sha256.lower():
                yield file.path, f"{path}: expected SHA-256 {file.sha256[:64]}, got {digest}"


def _measured(path: Path) -> dict[str, _Measured]:
    """Return the measurements in the export's report by model, or none if the file is no such report."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_Report).models
    except (OSError, ValueError, RecursionError):
        return {}


def _kinds(manifest: BundleManifest) -> dict[_Kind, list[ModelEntry]]:
    kinds: dict[_Kind, list[ModelEntry]] = {}
    for model in manifest.models:
        kinds.setdefault((model.form, model.format, model.precision, model.group), []).append(model)
    return kinds


def _model(
    kind: _Kind,
    entries: list[ModelEntry],
    folder: Path,
    manifest: BundleManifest,
    spec: FeatureSpec | None,
    bad: set[str],
    measured: dict[str, _Measured],
    problems: list[str],
) -> dict[str, Any]:
    form, format, precision, group = kind
    figures = (measured.get(f"{form}.{precision}.{format}") if group is None else None) or _Measured()
    row: dict[str, Any] = {
        "form": form,
        "format": format,
        "precision": precision,
        "group": group,
        "stages": {entry.stage: {"path": entry.path, "bytes": entry.bytes} for entry in entries},
        "max_abs_diff": figures.max_abs_diff,
        "auc_lost": None if figures.gate is None else figures.gate.loss,
        "same_best": None if figures.gate is None else figures.gate.order_agreement,
        "rerank_ms": None,
        "refused": None,
    }
    if any(path == entry.path or path.startswith(entry.path + "/") for path in bad for entry in entries):
        row["refused"] = "damaged"
    elif spec is None:
        row["refused"] = "no spec"
    elif format not in _RUNTIMES or find_spec(_RUNTIMES[format]) is None:
        row["refused"] = "no runtime here"
    else:
        # A file of another model that is damaged says nothing about this one.
        others = {model.path for model in manifest.models} - {entry.path for entry in entries}
        files = tuple(file for file in manifest.files if file.path not in others)
        only = Bundle(folder, replace(manifest, models=tuple(entries), files=files), spec)
        try:
            row["rerank_ms"] = _rerank_ms(Ranker.open(only, format, precision, group=group), form)
        except (BundleError, ModelRuntimeError) as err:
            row["refused"] = "does not run"
            problems.append(str(err))
    return row


def _rerank_ms(ranker: Ranker, form: Form) -> float:
    """Return the median time of a swipe, one event and one order, with full lists of random features."""
    spec, rng = ranker.spec, np.random.default_rng(0)
    n = min(ranker.rows, spec.candidates_max) if ranker.rows > 1 else spec.candidates_max

    def draw(features: tuple[FloatFeature, ...], rows: int) -> NDArray[np.float32]:
        low, high = (np.array([getattr(f, end) for f in features]) for end in ("min", "max"))
        return rng.uniform(low, high, (rows, len(features))).astype(np.float32)

    page = PageArrays(
        item_id=np.arange(n),
        floats=draw(spec.candidate_floats, n),
        categories=np.stack([rng.integers(0, c.size, n, np.int32) for c in spec.candidate_categories], 1)
        if spec.candidate_categories
        else np.zeros((n, 0), np.int32),
        vector=rng.normal(size=(n, spec.vector_width)).astype(np.float32),
        user_vector=rng.normal(size=(1, spec.vector_width)).astype(np.float32),
    )
    held, history = Remaining(page, ranker.rows), EventHistory(spec)
    feedback, context = draw(spec.feedback_floats, 1)[0], draw(spec.context_floats, 1)
    ranker.prepare(form, held)
    times = []
    for at in range(spec.events_max + RUNS):
        history.append(at * 1000, at, feedback, page, at % n)
        if at >= spec.events_max:
            start = time.perf_counter_ns()
            ranker.order(form, Moment(held, history, context, at * 1000, at))
            times.append(time.perf_counter_ns() - start)
    return float(np.median(times)) / 1e6
