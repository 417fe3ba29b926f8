"""`pocketrank export`: from a run to a bundle that a device can install."""

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
from pocketrank.sdk_demo.cli.output import progress

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `pocketrank train` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    formats: Annotated[str, typer.Option(help="Comma list of onnx, tflite, coreml.")] = "onnx,tflite,coreml",
    precision: Annotated[str, typer.Option(help="Comma list of fp32, fp16, int8.")] = "fp32",
    bytes_max: Annotated[int | None, typer.Option(min=1, help="Budget of bytes for each file; a larger one fails.")] = None,
    p50_ms_max: Annotated[
        float | None, typer.Option(min=0, help="Budget of a median run in milliseconds, where a model can run here.")
    ] = None,
    key: Annotated[
        list[Path] | None,
        typer.Option(help="Private key (`pocketrank keygen`) that signs; repeat it for several. [default: unsigned]"),
    ] = None,
    serial: Annotated[
        int | None,
        typer.Option(min=1, help="Serial; devices only go up. [default: that of the bundle at --out and 1, else 1]"),
    ] = None,
    paging: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="Model of when to ask for a page. [default: fixed counts]"),
    ] = None,
) -> None:
    """Export the device model, and hold every file to torch.

    ONNX and LiteRT have the whole model, its stages, and the list search as a graph; Core ML has the whole model.

    Each exported model is opened again in its own runtime and compared with torch on full, padded, empty-feedback and
    one-candidate inputs. A model that differs too much, or that is over its budget of bytes or milliseconds, fails the export.
    Core ML cannot run on Linux: there the saved program's operations are evaluated, which is not Apple's runtime.

    \b
    pocketrank export runs/world --formats onnx,tflite,coreml --out runs/bundle
    pocketrank export runs/world --formats onnx --precision fp32,fp16,int8 --out runs/bundle
    pocketrank export runs/world --out runs/bundle --key keys/bundle --serial 8

    Writes into --out: the manifest and its signatures, the feature spec, the models, known inputs with torch's scores, which a
    device tries first, and a report of parity and sizes.
    """
    wanted_formats: tuple[Format, ...] = parse_list(formats, get_args(Format), "--formats")
    wanted_precisions: tuple[Precision, ...] = parse_list(precision, get_args(Precision), "--precision")

    from pocketrank.cloud.training.run import Run
    from pocketrank.export.bundle import Budget, export_bundle, next_serial
    from pocketrank.export.signing import read_key

    keys = [read_key(path) for path in key or ()]
    console = Console()
    asks = None if paging is None else from_json(paging.read_bytes(), PagingModel)
    opened = Run.open(run)
    with progress(console, "exporting, and comparing with torch") as told:
        report = export_bundle(
            opened,
            out,
            formats=wanted_formats,
            precisions=wanted_precisions,
            budget=Budget(bytes_max=bytes_max, p50_ms_max=p50_ms_max),
            serial=serial or next_serial(out),
            keys=keys,
            paging=asks,
            progress=lambda _, share: told(share),
        )
    _print_models(console, report, title=f"{out}: models, compared with torch")
    then = f"release {out} --key KEY" if keys else f"serve --run {run} --bundle {out}"
    console.print(f"bundle written to {out}; next: pocketrank {then}", markup=False, soft_wrap=True)


def _ms(part: Mapping[str, Any]) -> str:
    return "" if part.get("p50_ms") is None else f"{part['p50_ms']:.3f}"


def _print_models(console: Console, report: Mapping[str, Any], *, title: str) -> None:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    table.add_column("model", no_wrap=True)
    for column in ("bytes", "with\nstages", "max\nabs diff", "median\nrun, ms", "search,\nms", "AUC\nlost", "same\nbest"):
        table.add_column(column, justify="right")
    table.add_column("shipped")
    for name, row in {**report["models"], **report["rejected"]}.items():
        table.add_row(
            name,
            f"{row['bytes']:,}",
            f"{row['bytes_all']:,}" if row["stages"] else "",
            f"{row['max_abs_diff']:.1e}",
            _ms(row),
            _ms(row["stages"].get("search", {})),
            f"{row['gate']['loss']:.4f}" if row["gate"] else "",
            f"{row['gate']['order_agreement']:.3f}" if row["gate"] else "",
            "yes" if name in report["models"] else "no",
        )
    console.print(table)
    for runtime in dict.fromkeys(row["runtime"] for row in report["models"].values()):
        console.print(f"checked in: {runtime}", markup=False, highlight=False, soft_wrap=True)
