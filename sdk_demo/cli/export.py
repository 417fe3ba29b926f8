"""`pocketrank export`: a run to a bundle that devices install."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, get_args

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pocketrank.device.codec import from_json
from pocketrank.device.contract import Format, PagingModel, Precision
from pocketrank.sdk_demo.cli.options import parse_list
from pocketrank.sdk_demo.cli.output import print_line, progress

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `pocketrank train` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    formats: Annotated[str, typer.Option(help="Comma list of onnx, tflite, coreml.")] = "onnx,tflite,coreml",
    precision: Annotated[str, typer.Option(help="Comma list of fp32, fp16, int8.")] = "fp32",
    bytes_max: Annotated[int | None, typer.Option(min=1, help="Largest file in bytes; a larger one fails the export.")] = None,
    p50_ms_max: Annotated[
        float | None, typer.Option(min=0, help="Longest median run in milliseconds, of models that can run here.")
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="Private key (`pocketrank keygen`) that signs; may be repeated. [default: unsigned]"),
    ] = None,
    serial: Annotated[
        int | None,
        typer.Option(
            min=1, help="Serial; devices only install higher ones. [default: one above that of the bundle at --out, else 1]"
        ),
    ] = None,
    app: Annotated[str, typer.Option(help="App that the bundle is for; no other installs it. [default: none]")] = "",
    channel: Annotated[str, typer.Option(help="Channel of the app, such as staging. [default: none]")] = "",
    paging: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="Model that decides when devices request a page. [default: after fixed counts]"
        ),
    ] = None,
) -> None:
    """Export the device model and compare every file with torch.

    ONNX and LiteRT files hold the whole model, its stages, and the list search as a graph; Core ML holds the whole model.

    Each exported model is opened again in its own runtime and compared with torch on full, padded, empty-feedback and
    one-candidate inputs. A model that differs too much, or exceeds --bytes-max or --p50-ms-max, fails the export. Core ML
    cannot run on Linux: there the operations of the saved program are evaluated in numpy, which does not test Apple's runtime.

    \b
    pocketrank export runs/world --formats onnx,tflite,coreml --out runs/bundle
    pocketrank export runs/world --formats onnx --precision fp32,fp16,int8 --out runs/bundle
    pocketrank export runs/world --out runs/bundle --key keys/bundle --serial 8

    Writes into --out: the manifest and its signatures, the feature spec, the models, inputs with torch's scores that a device
    checks before it uses the models, and a report of parity and sizes.
    """
    wanted_formats: tuple[Format, ...] = parse_list(formats, get_args(Format), "--formats")
    wanted_precisions: tuple[Precision, ...] = parse_list(precision, get_args(Precision), "--precision")

    from pocketrank.cloud.training.run import Run
    from pocketrank.export.bundle import Budget, export_bundle, next_serial
    from pocketrank.export.signing import read_key

    keys = [read_key(path) for path in key or ()]
    console = Console()
    paging_model = None if paging is None else from_json(paging.read_bytes(), PagingModel)
    opened = Run.open(run)
    with progress(console, "exporting, and comparing with torch") as report_progress:
        report = export_bundle(
            opened,
            out,
            formats=wanted_formats,
            precisions=wanted_precisions,
            budget=Budget(bytes_max=bytes_max, p50_ms_max=p50_ms_max),
            serial=serial or next_serial(out),
            keys=keys,
            paging=paging_model,
            app=app,
            channel=channel,
            progress=lambda _, share: report_progress(share),
        )
    _print_models(console, report, title=f"{out}: models, compared with torch")
    next_command = f"release {out} --key KEY" if keys else f"serve --run {run} --bundle {out}"
    print_line(console, f"bundle written to {out}; next: pocketrank {next_command}")


def _print_models(console: Console, report: Mapping[str, Any], *, title: str) -> None:
    """Print a row for each model, rejected ones last. The table fits into 80 columns."""
    rows = {**report["models"], **report["rejected"]}
    gated = any(row["gate"] for row in rows.values())
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=0)
    table.add_column("model", no_wrap=True)
    gate_headings = ("AUC\nlost", "same\nbest") if gated else ()
    for heading in ("kB", "with\nstages", "max\ndiff", "run,\nms", "search,\nms", *gate_headings):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, row in rows.items():
        gate = row["gate"]
        table.add_row(
            name,
            f"{row['bytes'] / 1000:,.0f}",
            f"{row['bytes_all'] / 1000:,.0f}" if row["stages"] else "",
            f"{row['max_abs_diff']:.0e}",
            _ms(row),
            _ms(row["stages"].get("search", {})),
            *((f"{gate['loss']:.4f}", f"{gate['order_agreement']:.1%}") if gate else ()),
        )
    console.print(table)
    for runtime in dict.fromkeys(row["runtime"] for row in rows.values()):
        print_line(console, f"checked in: {runtime}")
    for name in report["rejected"]:
        print_line(console, f"not in the bundle, because it ranks too differently: {name}")


def _ms(part: Mapping[str, Any]) -> str:
    return "" if part.get("p50_ms") is None else f"{part['p50_ms']:.3f}"
