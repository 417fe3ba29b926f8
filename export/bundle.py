"""Export of a run to a bundle: convert, compare with torch, measure sizes and times, and only then put the bundle in place.

ONNX and LiteRT files hold the whole model and its stages (`pocketrank.device.contract.FeatureSpec`), Core ML the whole model.

Formats are converted in parallel, each in a process of its own (`worker`). Everything is written to a temporary folder next to
`out`, which is renamed to `out` at the end, so that a bundle is there whole or not at all.

`report.json`, a file of the bundle and the return value of `export_bundle`::

    models      "<form>.<precision>.<format>" → form, format, precision, path, bytes, max_abs_diff, cases, runtime and p50_ms of
                the whole model; stages, searches, others; gate
    rejected    the same for reduced precisions that rank too differently and are not in the bundle
    onnx, tflite, coreml         bytes and max_abs_diff of the split model in fp32
    seconds     duration of the export

`stages` maps each stage to its path, bytes, max_diff, p50_ms and the state_width of its output for the next stage; `bytes_all`
counts every file of a model once. `searches` is the number of lists that were searched for, `others` that of the lists which
differ from torch's (`parity_stages.StageParity`).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import msgspec
from nacl.signing import SigningKey

from pocketrank.cloud.training.run import Run
from pocketrank.device.bundle.bundle import Bundle, write_manifest
from pocketrank.device.bundle.files import MANIFEST, BundleError
from pocketrank.device.contract import Form, Format, ModelEntry, PagingModel, Precision, Stage
from pocketrank.export.errors import BudgetError, ExportOutputError, UnsupportedError
from pocketrank.export.gate import GateRows, passes
from pocketrank.export.golden import write_golden
from pocketrank.export.parity import draw_inputs
from pocketrank.export.parity_stages import measure_stages
from pocketrank.export.signing import sign_manifest
from pocketrank.export.worker import Checked, ExportJob, model_path, run_job

__all__ = ["REPORT", "Budget", "export_bundle", "next_serial"]

REPORT = "report.json"
"""The report's path in a bundle."""
TIMED_RUNS = 200
"""Runs that a p50 is the median of."""
SLOWEST_FIRST: tuple[Format, ...] = ("tflite", "coreml", "onnx")
"""Order in which formats are started: the slowest first, so that the export does not wait for it alone at the end."""


@dataclass(frozen=True)
class Budget:
    """Limits of a model and of each of its stages. One that exceeds them fails the export."""

    bytes_max: int | None = None
    """Largest file in bytes; None is no limit."""
    p50_ms_max: float | None = None
    """Longest median run, with the largest lists, on one thread of this machine; None is no limit."""


def export_bundle(
    run: Run,
    out: Path,
    *,
    formats: Sequence[str],
    precisions: Sequence[str] = ("fp32",),
    budget: Budget = Budget(),
    name: str = "pocketrank",
    serial: int = 1,
    expires_ms: int | None = None,
    keys: Sequence[SigningKey] = (),
    paging: PagingModel | None = None,
    app: str = "",
    channel: str = "",
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Export both forms of `run` to the folder `out` and return the report.

    Only devices of this `app` and `channel` will use the bundle. Its manifest is signed by each of `keys`. `paging` is the
    model that decides when devices request a page. `progress` is called with the model that was finished last and the share
    done. A bundle at `out` is replaced; other files there are an error. Raises `ExportError` (the tree is in `errors`); `out`
    is unchanged then.
    """
    wanted: tuple[Format, ...] = _parse(formats, Format, "formats")
    in_precisions: tuple[Precision, ...] = _parse(precisions, Precision, "precisions")
    if set(in_precisions) != {"fp32"}:
        GateRows.read(run)  # fail now rather than after a minute of converting
    out = out.resolve()
    _check_output(out)
    started = time.monotonic()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            folder = Path(scratch) / "bundle"
            (folder / "models").mkdir(parents=True)
            checked = _convert(run, folder, wanted, in_precisions, progress or (lambda model, share: None))
            report = _report(run, folder, checked, budget)
            report["seconds"] = round(time.monotonic() - started, 1)
            (folder / REPORT).write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=2))
            write_golden(run, folder, report["models"])
            write_manifest(
                folder,
                name=name,
                serial=serial,
                split_version=run.record.split_version,
                spec=run.spec,
                models=[entry for row in report["models"].values() for entry in _entries(row)],
                expires_ms=expires_ms,
                created_ms=time.time_ns() // 1_000_000,
                paging=paging,
                app=app,
                channel=channel,
            )
            if keys:
                sign_manifest(folder, keys)
            Bundle.open(folder, now_ms=0)
            _replace(folder, out, Path(scratch) / "replaced")
    except OSError as error:
        raise ExportOutputError(str(out), "a place for the bundle", error.strerror or str(error)) from error
    return report


def next_serial(out: Path) -> int:
    """Return the serial that follows that of the bundle at `out`, or 1 if there is none."""
    try:
        return Bundle.open(out, now_ms=0).manifest.serial + 1
    except BundleError:
        return 1


def _parse(given: Sequence[str], literal: Any, what: str) -> tuple[Any, ...]:
    known = get_args(literal)
    if not given or not set(given) <= set(known):
        raise UnsupportedError(what, f"some of {', '.join(known)}", ", ".join(given) or "none")
    return tuple(dict.fromkeys(given))


def _check_output(out: Path) -> None:
    if out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir())):
        return
    if out.exists():
        raise ExportOutputError(
            str(out), "nothing, or a bundle to replace", "a folder with other files" if out.is_dir() else "a file"
        )


def _replace(folder: Path, out: Path, replaced: Path) -> None:
    """Rename `folder` to `out`, and what was there to `replaced`."""
    if out.exists():
        os.rename(out, replaced)
    try:
        os.rename(folder, out)
    except OSError:
        if replaced.exists():
            os.rename(replaced, out)
        raise


def _convert(
    run: Run,
    folder: Path,
    formats: Sequence[Format],
    precisions: Sequence[Precision],
    progress: Callable[[str, float], None],
) -> list[Checked]:
    """Convert every model and compare it with torch, one process per format."""
    checked: list[Checked] = []
    total = len(formats) * len(precisions) * len(get_args(Form))
    lock = threading.Lock()
    processes: list[subprocess.Popen[bytes]] = []
    stop = threading.Event()

    def work(format: Format) -> None:
        if stop.is_set():
            return
        job = ExportJob(run=str(run.folder.resolve()), folder=str(folder), format=format, precisions=tuple(precisions))
        for model in run_job(job, folder.parent / f"{format}.log", processes.append):
            with lock:
                checked.append(model)
                progress(f"{model.form} {model.format} {model.precision}", len(checked) / total)

    progress("converting", 0.0)
    with ThreadPoolExecutor(max_workers=max(1, min(len(formats), os.cpu_count() or 1))) as pool:
        futures = [pool.submit(work, format) for format in SLOWEST_FIRST if format in formats]
        try:
            for future in futures:
                future.result()
        except BaseException:
            stop.set()
            for process in processes:
                process.kill()
            raise
    # Processes finish in any order; the report has that of the options.
    order = {key: i for i, key in enumerate(product(get_args(Form), formats, precisions))}
    return sorted(checked, key=lambda m: order[m.form, m.format, m.precision])


def _report(run: Run, folder: Path, checked: Sequence[Checked], budget: Budget) -> dict[str, Any]:
    """Measure sizes and times of every model, remove those that the gate rejects, and check the others against the budget."""
    spec = run.spec
    report: dict[str, Any] = {"models": {}, "rejected": {}}
    for model in checked:
        stages: tuple[Stage, ...] = ("whole", *model.stages)
        paths = {stage: model_path(model.form, model.format, model.precision, stage) for stage in stages}
        sizes = {path: _size(folder / path) for path in paths.values()}
        row: dict[str, Any] = {
            "form": model.form,
            "format": model.format,
            "precision": model.precision,
            "path": paths["whole"],
            "bytes": sizes[paths["whole"]],
            "bytes_all": sum(sizes.values()),
            "max_abs_diff": max(model.cases.values()),
            "cases": model.cases,
            "runtime": model.runtime,
            "p50_ms": None,
            "stages": {
                stage: {"path": paths[stage], "bytes": sizes[paths[stage]], "max_diff": max(cases.values())}
                for stage, cases in model.stages.items()
            },
            "searches": model.searches,
            "others": model.others,
            "gate": model.gate,
        }
        key = f"{model.form}.{model.precision}.{model.format}"
        # A reduced precision that ranks too differently is reported, and its files are removed.
        if model.gate and not passes(model.gate):
            report["rejected"][key] = row
            for path in sizes:
                shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
            continue
        # Core ML cannot run here, so only the others are timed.
        if model.format != "coreml":
            inputs = draw_inputs(spec, model.form, spec.candidates_max, spec.events_max, seed=0)
            files = {stage: folder / path for stage, path in paths.items()}
            for stage, measured in measure_stages(files, model.format, spec, inputs, TIMED_RUNS).items():
                (row if stage == "whole" else row["stages"][stage]).update(measured)
        for stage, part in {"whole": row, **row["stages"]}.items():
            _check_budget(part, key if stage == "whole" else f"{key} {stage}", budget)
        report["models"][key] = row
        if (model.form, model.precision) == ("split", "fp32"):
            report[model.format] = {"bytes": row["bytes"], "max_abs_diff": row["max_abs_diff"]}
    return report


def _size(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


def _entries(row: dict[str, Any]) -> list[ModelEntry]:
    """Return the manifest's entries of a model: one for the whole model and one for each stage."""
    parts: dict[Stage, dict[str, Any]] = {"whole": row, **row["stages"]}
    kind = {"form": row["form"], "format": row["format"], "precision": row["precision"]}
    return [ModelEntry(**kind, path=part["path"], bytes=part["bytes"], stage=stage) for stage, part in parts.items()]


def _check_budget(row: dict[str, Any], key: str, budget: Budget) -> None:
    if budget.bytes_max is not None and row["bytes"] > budget.bytes_max:
        raise BudgetError(key, f"at most {budget.bytes_max} bytes", str(row["bytes"]))
    if budget.p50_ms_max is not None and row["p50_ms"] is not None and row["p50_ms"] > budget.p50_ms_max:
        raise BudgetError(key, f"a median run of at most {budget.p50_ms_max} ms", f"{row['p50_ms']:.3f} ms")
