"""What goes wrong in a converter's process comes back as the same typed error."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from pocketrank.export.errors import ConversionError, GateError
from pocketrank.export.worker import ExportJob, model_path, run_job
from tests.export.small_run import small_run


def test_an_error_of_the_process_is_raised_here(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    job = ExportJob(run=str(run.folder), folder=str(tmp_path), format="onnx", precisions=("int8",))
    with pytest.raises(GateError, match=r"Expected test rows .* - at .*gate\.npz"):
        list(run_job(job, tmp_path / "log", lambda process: None))


def test_a_process_that_dies_is_a_conversion_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    job = ExportJob(run=str(tmp_path / "none"), folder=str(tmp_path), format="onnx", precisions=("fp32",))
    started: list[subprocess.Popen[bytes]] = []
    with pytest.raises(ConversionError, match="RunError: Expected a finished run"):
        list(run_job(job, tmp_path / "log", started.append))
    assert started[0].returncode == 1


def test_model_paths_name_form_precision_and_format() -> None:
    assert model_path("split", "coreml", "fp16") == "models/split.fp16.mlpackage"
    assert model_path("self_contained", "tflite", "fp32") == "models/self_contained.fp32.tflite"


def test_stages_have_files_of_their_own_only_in_onnx() -> None:
    assert model_path("split", "onnx", "fp32", "search") == "models/split.fp32.search.onnx"
    assert model_path("split", "onnx", "fp32", "whole") == model_path("split", "onnx", "fp32") == "models/split.fp32.onnx"
    assert model_path("split", "tflite", "fp32", "search") == model_path("split", "tflite", "fp32")
