"""From a run to a bundle: convert, check, weigh, time, and only then put it in place.

ONNX and LiteRT have the whole model and its stages (`pocketrank.device.contract.FeatureSpec`), Core ML the whole model.

Formats are converted side by side, each in a process of its own (`worker`). Everything is written to a folder beside `out` that
takes its name at the end, so there is never half a bundle.

`report.json`, a file of the bundle and what `export_bundle` returns::

    models      "<form>.<precision>.<format>" → of the whole model form, format, precision, path, bytes, max_abs_diff, cases,
                runtime, p50_ms; stages, searches, others; gate
    rejected    the same for reduced precisions that rank too differently and are not in the bundle
    onnx, tflite, coreml         bytes and max_abs_diff of the split model in fp32
    seconds     how long the export took

`stages` has for each stage path, bytes, max_diff, p50_ms and, of what it hands on, state_width; `bytes_all` counts every file
of a model once. Of `searches` lists `others` are not torch's (as max_diff in `parity_stages.StageParity`).
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
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import msgspec
from nacl.signing import SigningKey

from pocketrank.cloud.training.run import Run
from pocketrank.device.bundle.bundle import MANIFEST, Bundle, BundleError, write_manifest
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
"""Runs behind a p50."""
SLOWEST_FIRST: tuple[Format, ...] = ("tflite", "coreml", "onnx")
"""Order in which formats are started, so that the longest is not the last."""


@dataclass(frozen=True)
class Budget:
    """What a model and each of its stages may cost. One over it fails the export."""

    bytes_max: int | None = None
    """Of each file on disk; None is no limit."""
    p50_ms_max: float | None = None
    """Median of a run, with the largest lists, on one thread of this machine; None is no limit."""


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
    progress: Callable[[str, float], None] | None = None,
) -> dict[str, Any]:
    """Export both forms of `run` to `out`, signed by `keys` if there are any, and return the report. `progress` gets what was
    done last and the share done.

    `paging` says when devices ask for a page. A bundle that is already at `out` is replaced; anything else there is refused.
    Raises `ExportError` (the tree is in `errors`); `out` then is as it was.
    """
    wanted: tuple[Format, ...] = _known(formats, Format, "formats")
    in_precisions: tuple[Precision, ...] = _known(precisions, Precision, "precisions")
    if set(in_precisions) != {"fp32"}:
        GateRows.read(run)  # now rather than after a minute
    out = out.resolve()
    _check_place(out)
    started = time.monotonic()
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as scratch:
            folder = Path(scratch) / "bundle"
            (folder / "models").mkdir(parents=True)
            checked = _convert(run, folder, wanted, in_precisions, progress or (lambda what, share: None))
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
            )
            if keys:
                sign_manifest(folder, keys)
            Bundle.open(folder, now_ms=0)
            _put(folder, out, Path(scratch) / "replaced")
    except OSError as error:
        raise ExportOutputError(str(out), "a place for the bundle", error.strerror or str(error)) from error
    return report


def next_serial(out: Path) -> int:
    """The serial that follows that of the bundle at `out`; 1 where there is none."""
    try:
        return Bundle.open(out, now_ms=0).manifest.serial + 1
    except BundleError:
        return 1


def _known(given: Sequence[str], among: Any, what: str) -> tuple[Any, ...]:
    known = get_args(among)
    if not given or not set(given) <= set(known):
        raise UnsupportedError(what, f"some of {', '.join(known)}", ", ".join(given) or "none")
    return tuple(dict.fromkeys(given))


def _check_place(out: Path) -> None:
    if out.is_dir() and ((out / MANIFEST).is_file() or not any(out.iterdir())):
        return
    if out.exists():
        raise ExportOutputError(
            str(out), "nothing, or a bundle to replace", "a folder of other things" if out.is_dir() else "a file"
        )


def _put(folder: Path, out: Path, replaced: Path) -> None:
    """Give `folder` the name `out`; what was there moves to `replaced`."""
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
    """Every model, converted and held to torch, formats side by side."""
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
    order = {key: i for i, key in enumerate(_asked(formats, precisions))}
    return sorted(checked, key=lambda m: order[m.form, m.format, m.precision])


def _asked(formats: Sequence[Format], precisions: Sequence[Precision]) -> list[tuple[Form, Format, Precision]]:
    """Form, format and precision of every model that is asked for, in the order of the report."""
    return [(form, format, precision) for form in get_args(Form) for format in formats for precision in precisions]


def _report(run: Run, folder: Path, checked: Sequence[Checked], budget: Budget) -> dict[str, Any]:
    """Weigh and time every model, drop those that the gate rejects, hold the others to the budget."""
    spec = run.spec
    report: dict[str, Any] = {"models": {}, "rejected": {}}
    for model in checked:
        stages: tuple[Stage, ...] = ("whole", *model.stages)
        paths = {stage: model_path(model.form, model.format, model.precision, stage) for stage in stages}
        sizes = {path: _weigh(folder / path) for path in paths.values()}
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
        if model.gate and not passes(model.gate):
            report["rejected"][key] = row
            for path in sizes:
                shutil.rmtree(folder / path) if (folder / path).is_dir() else (folder / path).unlink()
            continue
        if model.format != "coreml":
            inputs = draw_inputs(spec, model.form, spec.candidates_max, spec.events_max, seed=0)
            at = {stage: folder / path for stage, path in paths.items()}
            for stage, measured in measure_stages(at, model.format, spec, inputs, TIMED_RUNS).items():
                (row if stage == "whole" else row["stages"][stage]).update(measured)
        for stage, part in {"whole": row, **row["stages"]}.items():
            _hold(part, key if stage == "whole" else f"{key} {stage}", budget)
        report["models"][key] = row
        if (model.form, model.precision) == ("split", "fp32"):
            report[model.format] = {"bytes": row["bytes"], "max_abs_diff": row["max_abs_diff"]}
    return report


def _weigh(path: Path) -> int:
    return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else path.stat().st_size


def _entries(row: dict[str, Any]) -> list[ModelEntry]:
    """What the manifest says of a model."""
    parts: dict[Stage, dict[str, Any]] = {"whole": row, **row["stages"]}
    kind = {"form": row["form"], "format": row["format"], "precision": row["precision"]}
    return [ModelEntry(**kind, path=part["path"], bytes=part["bytes"], stage=stage) for stage, part in parts.items()]


def _hold(row: dict[str, Any], key: str, budget: Budget) -> None:
    if budget.bytes_max is not None and row["bytes"] > budget.bytes_max:
        raise BudgetError(key, f"at most {budget.bytes_max} bytes", str(row["bytes"]))
    if budget.p50_ms_max is not None and row["p50_ms"] is not None and row["p50_ms"] > budget.p50_ms_max:
        raise BudgetError(key, f"a median run of at most {budget.p50_ms_max} ms", f"{row['p50_ms']:.3f} ms")
