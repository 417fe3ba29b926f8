"""A whole export of three formats in three precisions with all stages, and all that must fail before or during one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.signing import TrustedKeys
from pocketrank.device.contract import FeatureSpec
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.updates import probe
from pocketrank.export.bundle import REPORT, Budget, export_bundle, next_serial
from pocketrank.export.errors import BudgetError, ExportOutputError, GateError, UnsupportedError
from pocketrank.export.parity import TOLERANCE
from pocketrank.export.parity_stages import STATE_FACTOR
from pocketrank.export.signing import public_key
from tests.export.small_run import small_run
from tests.export.whole_export import FORMATS, KEY, PRECISIONS, whole_export

STAGES = ("page", "event", "watch", "choose", "search")


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[tuple[str, float]]]:
    folder, (report, seen) = whole_export(tmp_path_factory)
    return folder / "bundle", report, seen


def test_every_model_is_reported_and_those_that_pass_are_shipped(exported: Any) -> None:
    folder, report, _ = exported
    asked = {f"{form}.{p}.{f}" for form in ("split", "self_contained") for f in FORMATS for p in PRECISIONS}
    assert set(report["models"]) | set(report["rejected"]) == asked
    assert not set(report["models"]) & set(report["rejected"])
    bundle = Bundle.open(folder)
    assert {f"{m.form}.{m.precision}.{m.format}": m.bytes for m in bundle.manifest.models if m.stage == "whole"} == {
        key: row["bytes"] for key, row in report["models"].items()
    }
    for row in report["models"].values():
        assert all((folder / part["path"]).exists() for part in (row, *row["stages"].values()))
    for row in report["rejected"].values():
        assert not any((folder / part["path"]).exists() for part in (row, *row["stages"].values()))


@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_a_device_finds_every_shipped_model_as_it_was_recorded(exported: Any, format: Any) -> None:
    folder, report, _ = exported
    bundle = Bundle.open(folder, keys=TrustedKeys.one(public_key(KEY)))
    for precision in {row["precision"] for row in report["models"].values() if row["format"] == format}:
        probe(bundle, Ranker.open(bundle, format, precision), format, precision)
    golden = bundle.golden()
    assert golden is not None
    assert {(case.form, len(case.inputs)) for case in golden.cases} == {("split", 10), ("self_contained", 7)}
    assert len(golden.tolerances) == len(report["models"])
    assert all(0 < std < 1 for scores in golden.ranges for std in scores.std)
    assert next_serial(folder) == 8
    assert next_serial(folder / "models") == 1


def test_stages_are_files_in_onnx_one_file_in_litert_and_none_in_core_ml(exported: Any) -> None:
    folder, report, _ = exported
    bundle = Bundle.open(folder)
    for row in report["models"].values():
        assert tuple(row["stages"]) == (() if row["format"] == "coreml" else STAGES)
        paths = {row["path"], *(part["path"] for part in row["stages"].values())}
        assert len(paths) == (1 + len(STAGES) if row["format"] == "onnx" else 1)
        assert row["bytes_all"] == sum(file.bytes for file in bundle.manifest.files if file.path.startswith(tuple(paths)))
        stages = bundle.stages(row["form"], row["format"], row["precision"])
        assert stages == {"whole": folder / row["path"]} | {s: folder / part["path"] for s, part in row["stages"].items()}
        assert bundle.forms(row["format"], row["precision"]).count(row["form"]) == 1


def test_stages_are_timed_and_say_how_wide_their_states_are(exported: Any) -> None:
    for row in exported[1]["models"].values():
        if row["format"] != "coreml":
            assert all(part["p50_ms"] > 0 for part in row["stages"].values())
            widths = {stage: part.get("state_width", 0) for stage, part in row["stages"].items()}
            assert min(widths.pop(stage) for stage in ("page", "event", "watch")) > 0
            assert set(widths.values()) == {0}


def test_the_manifest_says_which_pages_the_models_take(exported: Any) -> None:
    bundle = Bundle.open(exported[0])
    assert (bundle.manifest.name, bundle.manifest.serial, bundle.manifest.split_version) == ("pocketrank", 7, "5" * 16)
    assert isinstance(bundle.spec, FeatureSpec)
    assert REPORT in {file.path for file in bundle.manifest.files}
    assert json.loads((exported[0] / REPORT).read_text()) == exported[1]


def test_full_precision_is_within_its_tolerance_in_every_case(exported: Any) -> None:
    _, report, _ = exported
    for format in FORMATS:
        for form in ("split", "self_contained"):
            row = report["models"][f"{form}.fp32.{format}"]
            assert {"full", "padded", "empty_feedback", "one_candidate", "random_mask"} <= set(row["cases"])
            assert row["max_abs_diff"] == max(row["cases"].values()) <= TOLERANCE[format, "fp32"]
            assert row["gate"] is None
            for part in row["stages"].values():
                assert part["max_diff"] <= STATE_FACTOR * TOLERANCE[format, "fp32"]
            assert (row["searches"] > 30) == (format != "coreml")
            assert row["others"] <= 1
        split = report["models"][f"split.fp32.{format}"]
        assert report[format] == {"bytes": split["bytes"], "max_abs_diff": split["max_abs_diff"]}


def test_reduced_precisions_are_gated_on_auc_and_on_order(exported: Any) -> None:
    _, report, _ = exported
    for name, rows in (("models", report["models"]), ("rejected", report["rejected"])):
        for row in rows.values():
            if row["precision"] == "fp32":
                continue
            gate = row["gate"]
            worst = max(gate["torch_auc"][task] - gate["auc"][task] for task in ("effective_view", "like"))
            assert gate["loss"] == pytest.approx(worst)
            kept = gate["loss"] <= gate["limit"] and gate["order_agreement"] >= gate["order_limit"]
            assert kept == (name == "models")


def test_core_ml_is_said_not_to_have_run_on_apples_runtime(exported: Any) -> None:
    _, report, _ = exported
    for row in report["models"].values():
        apple = row["format"] == "coreml"
        assert ("not Apple's runtime" in row["runtime"]) == apple
        assert (row["p50_ms"] is None) == apple


def test_progress_ends_at_one_and_never_falls(exported: Any) -> None:
    shares = [share for _, share in exported[2]]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)


def test_nothing_is_left_beside_the_bundle(exported: Any) -> None:
    assert sorted(path.name for path in exported[0].parent.iterdir()) == ["bundle", "run"]


def test_a_model_over_budget_fails_the_export_and_keeps_the_old_bundle(exported: Any) -> None:
    folder, _, _ = exported
    before = (folder / "manifest.json").read_bytes()
    run = small_run(folder.parent / "run-again")
    with pytest.raises(BudgetError, match="at most 1000 bytes"):
        export_bundle(run, folder, formats=("onnx",), budget=Budget(bytes_max=1000))
    assert (folder / "manifest.json").read_bytes() == before
    assert not [path.name for path in folder.parent.iterdir() if path.name.startswith(".")]


def test_reduced_precisions_need_test_rows(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    with pytest.raises(GateError, match="pocketrank train"):
        export_bundle(run, tmp_path / "bundle", formats=("onnx",), precisions=("fp32", "int8"))
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize(
    ("formats", "precisions"), [(("caffe",), ("fp32",)), ((), ("fp32",)), (("onnx",), ("int3",)), (("onnx",), ())]
)
def test_unknown_formats_and_precisions_are_refused(tmp_path: Path, formats: Any, precisions: Any) -> None:
    run = small_run(tmp_path / "run")
    with pytest.raises(UnsupportedError, match="some of"):
        export_bundle(run, tmp_path / "bundle", formats=formats, precisions=precisions)


def test_a_place_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run")
    with pytest.raises(ExportOutputError, match="a folder with other files"):
        export_bundle(run, run.folder, formats=("onnx",))
    (tmp_path / "file").write_text("kept")
    with pytest.raises(ExportOutputError, match="a file"):
        export_bundle(run, tmp_path / "file", formats=("onnx",))
    assert (tmp_path / "file").read_text() == "kept"
