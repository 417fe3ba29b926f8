"""`pocketrank export`: from a run to a bundle that a device can install."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, get_args

import typer
from rich.console import Console

from device.contract import Format, Precision
from sdk_demo.cli.options import parse_list
from sdk_demo.cli.output import print_report

__all__ = ["export"]


def export(
    run: Annotated[Path, typer.Argument(help="Folder that `pocketrank train` wrote.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    formats: Annotated[str, typer.Option(help="Comma list of onnx, tflite, coreml.")] = "onnx,tflite,coreml",
    precision: Annotated[str, typer.Option(help="Comma list of fp32, fp16, int8.")] = "fp32",
) -> None:
    """Export the device model, and hold every file to torch.

    Each exported model is opened again in its own runtime and compared with torch on full, padded, empty-feedback and
    one-candidate inputs. A model that differs too much, or that is over its budget of bytes or milliseconds, fails the export.
    Core ML cannot run on Linux: there the saved program's operations are evaluated, which is not Apple's runtime.

    \b
    pocketrank export runs/world --formats onnx,tflite,coreml --out runs/bundle
    pocketrank export runs/world --formats onnx --precision fp32,fp16,int8 --out runs/bundle

    Writes into --out: the manifest, the feature spec, the models, and a report of parity and sizes.
    """
    wanted_formats: tuple[Format, ...] = parse_list(formats, get_args(Format), "--formats")
    wanted_precisions: tuple[Precision, ...] = parse_list(precision, get_args(Precision), "--precision")

    from export.bundle import export_bundle

    report = export_bundle(run, out, formats=wanted_formats, precisions=wanted_precisions)
    console = Console()
    print_report(console, report, rows="models", title=f"{out}: models, compared with torch")
    console.print(f"bundle written to {out}; next: pocketrank serve --run {run} --bundle {out}", markup=False, soft_wrap=True)
