"""A run with random weights and its export in every format and precision, with all stages."""

from pathlib import Path
from typing import Any

import pytest
from nacl.signing import SigningKey

from pocketrank.export.bundle import export_bundle
from tests.export.small_run import WHOLE_SPEC, small_run, write_gate
from tests.shared import made_once

__all__ = ["FORMATS", "KEY", "PRECISIONS", "whole_export"]

FORMATS = ("onnx", "tflite", "coreml")
PRECISIONS = ("fp32", "fp16", "int8")
KEY = SigningKey(b"k" * 32)


def whole_export(factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with `run` and `bundle`, the export's report, and the progress that it reported."""
    return made_once(factory, "whole_export", _make)


def _make(folder: Path) -> tuple[dict[str, Any], list[tuple[str, float]]]:
    run = small_run(folder / "run", WHOLE_SPEC)
    write_gate(run)
    seen: list[tuple[str, float]] = []
    report = export_bundle(
        run,
        folder / "bundle",
        formats=FORMATS,
        precisions=PRECISIONS,
        serial=7,
        keys=[KEY],
        progress=lambda what, share: seen.append((what, share)),
    )
    return report, seen
