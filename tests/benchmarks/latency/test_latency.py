import json
import math
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from benchmarks.errors import BenchmarkError
from benchmarks.latency.__main__ import main
from benchmarks.latency.arithmetic import onnx_flop
from benchmarks.latency.matmul import MatmulRate
from benchmarks.latency.searches import moment_of
from benchmarks.latency.subject import FORMATS, measured_spec, subjects, world_spec
from pocketrank.cloud.training.run import Run
from pocketrank.device.bundle.bundle import Bundle, write_manifest
from pocketrank.device.contract import Form, SearchSpec
from pocketrank.device.model.search import GREEDY
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.runtimes import STAGES, open_runtime
from pocketrank.export.parity import draw_inputs
from tests.export.small_run import LIST_SPEC
from tests.export.whole_export import whole_export

assert LIST_SPEC.search is not None
LIST_SEARCH = LIST_SPEC.search

FORMS = ("split", "self_contained")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run and its bundle: `run` and `bundle`."""
    return whole_export(tmp_path_factory)[0]


@pytest.fixture(scope="module")
def report(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    file = tmp_path_factory.mktemp("latency") / "report.json"
    options = ["--bundle", str(folder / "bundle"), "--run", str(folder / "run"), "--rounds", "2", "--runs", "2"]
    assert main([*options, "--json", str(file)]) == 0
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def _numbers(report: Any) -> Iterator[float]:
    if isinstance(report, dict):  # what was added is a difference of two noisy times
        report = [value for name, value in report.items() if not name.startswith("added_")]
    if isinstance(report, list):
        for value in report:
            yield from _numbers(value)
    elif isinstance(report, int | float):
        yield report


def test_a_report_has_its_preset_and_the_first_preset_on_top(report: dict[str, Any]) -> None:
    presets = report.pop("presets")
    assert presets == {"custom": report}
    report["presets"] = presets
    assert {key: report[key] for key in report["forms"]["split"]} == report["forms"]["split"]
    assert (report["candidates"], report["events"], report["weights"]) == (12, 10, "random")
    assert report["memory"]["device_process_mib"] - report["memory"]["bare_mib"] == report["memory"]["above_bare_mib"] > 0
    assert all(math.isfinite(number) and number >= 0 for number in _numbers(report))


@pytest.mark.parametrize("form", FORMS)
def test_every_runtime_is_set_against_the_limit(report: dict[str, Any], form: str) -> None:
    figures = report["forms"][form]
    assert set(figures["rerank"]) == {"onnx", "tflite", "executorch", "torch"}
    for row in figures["rerank"].values():
        assert row.keys() == {"p50_ms", "p99_ms", "ratio_to_limit"}
        assert row["p50_ms"] <= row["p99_ms"]
        assert row["ratio_to_limit"] == row["p50_ms"] / figures["limit_ms"]
    assert figures["torch_eager"] == figures["rerank"]["torch"]
    fastest = figures["fastest"]
    assert figures["ratio_to_limit"] == figures["rerank"][fastest]["ratio_to_limit"]
    assert figures["sdk_overhead_share"] == figures["swipe"][fastest]["sdk_overhead_share"]
    rate = max(rate for library in ("numpy", "torch") for rate in report["matmul_gflop_s"][library].values())
    assert figures["limit_ms"] == pytest.approx(figures["flop"] / (rate * 1e9) * 1e3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", FORMATS)
def test_swipes_stages_and_searches_are_timed_in_both_runtimes(report: dict[str, Any], form: str, format: str) -> None:
    figures = report["forms"][form]
    for kind in ("swipe", "swipe_whole", "swipe_search"):
        swipe = figures[kind][format]
        assert swipe.keys() == {"p50_ms", "p99_ms", "run_p50_ms", "outside_p50_ms", "sdk_overhead_share"}
        assert 0 < swipe["sdk_overhead_share"] < 1
    for kind in ("swipe_equipped", "swipe_durable"):
        for plain, form_of in (("swipe", "stages"), ("swipe_whole", "whole"), ("swipe_search", "search")):
            equipped = figures[kind][form_of][format]
            more = equipped["outside_p50_ms"] - figures[plain][format]["outside_p50_ms"]
            assert (equipped["added_ms"], equipped["added_share"]) == (more, more / equipped["run_p50_ms"])
    row = figures["incremental"][format]
    assert row["swipe_ms"] == row["event_ms"] + row["watch_ms"]
    assert row["full_ms"] == figures["rerank"][format]["p50_ms"]
    assert row["speedup"] == row["full_ms"] / row["swipe_ms"]
    assert row["limit_ms"] / figures["limit_ms"] == pytest.approx(figures["flop_swipe"] / figures["flop"])
    assert row["ratio_to_limit"] == row["swipe_ms"] / row["limit_ms"]
    search = figures["search"][format]
    assert search["ratio"] == search["host_ms"] / search["in_graph_ms"]
    assert LIST_SEARCH.list_size <= search["steps"] <= LIST_SEARCH.steps_max


@pytest.mark.parametrize("form", FORMS)
def test_the_beam_is_told_by_steps(report: dict[str, Any], form: str) -> None:
    beam = report["forms"][form]["beam"]
    assert (beam["beam"], beam["lists"], beam["weights"]) == (LIST_SEARCH.beam, "test rows", "random")
    assert len(beam["stability"]) == len(beam["relative_cost"]) == LIST_SEARCH.steps_max
    assert all(0 < value <= 1 for value in beam["stability"])
    assert beam["relative_cost"][0] == 1
    assert beam["relative_cost"] == sorted(beam["relative_cost"])


@pytest.mark.parametrize("form", FORMS)
def test_files_are_weighed(report: dict[str, Any], folder: Path, form: str) -> None:
    sizes = {path.name: path.stat().st_size for path in (folder / "bundle" / "models").iterdir()}
    onnx_bytes, tflite_bytes = (report["forms"][form]["bytes"][format] for format in FORMATS)
    assert onnx_bytes["whole"] == sizes[f"{form}.fp32.onnx"]
    assert onnx_bytes["whole"] + onnx_bytes["stages"] == onnx_bytes["all"]
    assert onnx_bytes["all"] == sum(
        size for name, size in sizes.items() if name.startswith(f"{form}.fp32.") and name.endswith("onnx")
    )
    assert tflite_bytes == dict.fromkeys(tflite_bytes, sizes[f"{form}.fp32.tflite"])


def test_without_a_search_and_without_executorch_their_figures_are_null(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    run, bundle = Run.open(folder / "run"), Bundle.open(folder / "bundle")
    spec = replace(run.spec, search=None)
    shutil.copytree(bundle.folder, tmp_path / "bundle")
    models = [model for model in bundle.manifest.models if model.stage not in ("choose", "search")]
    write_manifest(
        tmp_path / "bundle", name="b", serial=1, split_version=bundle.split_version, spec=spec, models=models, created_ms=0
    )
    shutil.copytree(run.folder, tmp_path / "run")
    (tmp_path / "run" / "run.json").write_bytes(msgspec.json.encode(replace(run.record, spec=spec)))
    options = ["--bundle", str(tmp_path / "bundle"), "--run", str(tmp_path / "run"), "--rounds", "1", "--runs", "1"]
    assert main([*options, "--json", "-"]) == 0
    report = json.loads(capsys.readouterr().out)
    for figures in report["forms"].values():
        assert figures["search"] is figures["beam"] is figures["swipe_search"] is figures["rerank"]["executorch"] is None
        assert figures["swipe"]["onnx"]["p50_ms"] > 0


@pytest.mark.parametrize("form", FORMS)
def test_the_stages_do_the_work_of_the_whole_model(folder: Path, form: Form) -> None:
    [subject] = subjects(folder / "bundle", [folder / "run"], folder, lambda share: None)
    by_stage = {stage: subject.flop(form, stage) for stage in STAGES}
    by_stage["event"] *= subject.bundle.spec.events_max  # in a swipe it has one event
    assert subject.flop(form) == sum(by_stage.values())


@pytest.mark.parametrize("form", FORMS)
def test_a_moment_is_what_the_model_was_asked(folder: Path, form: Form) -> None:
    """A ranker that holds it gives the model inputs for which it answers the same; gaps are whole milliseconds there."""
    bundle = Bundle.open(folder / "bundle")
    runtime = open_runtime(bundle.stages(form, "onnx")["whole"], "onnx")
    ranker = Ranker(bundle.spec, bundle.split_version, {form: {"whole": runtime}}, GREEDY)
    given = draw_inputs(bundle.spec, form, bundle.spec.candidates_max, bundle.spec.events_max, seed=3)
    given["event_mask"][0, :4] = 0
    given["context"][0, 0] = 17.0
    given["event_gap"] = np.round(given["event_gap"] * [1e3, 1]).astype(np.float32) / np.array([1e3, 1], np.float32)
    inputs, count = ranker.inputs(form, moment_of(ranker, form, given))
    assert (count, inputs["event_gap"].shape[1]) == (bundle.spec.candidates_max, bundle.spec.events_max - 4)
    expected = runtime.run({name: given[name] for name in runtime.input_names})
    np.testing.assert_allclose(runtime.run(inputs), expected, atol=1e-4)


def test_a_run_is_measured_with_a_search_and_paper_with_its_own_page() -> None:
    spec = replace(LIST_SPEC, search=None)
    assert measured_spec(spec, "custom") == replace(spec, search=SearchSpec())
    assert measured_spec(LIST_SPEC, "tiny") == LIST_SPEC
    paper = measured_spec(spec, "paper")
    assert (paper.candidates_max, paper.list_sizes, paper.search) == (9, (9,), SearchSpec())


@pytest.mark.parametrize("options", [[], ["--json", "-"]])
def test_a_bundle_that_is_not_of_the_torch_model_is_refused(
    folder: Path, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--bundle", str(folder / "bundle"), *options]) == 2
    printed = capsys.readouterr()
    assert "as its torch model has" in printed.err
    assert "{" not in printed.out


@pytest.mark.parametrize("option", ["--bundle", "--run"])
def test_what_is_not_there_is_one_line(option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option, str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_arithmetic_is_counted_by_hand(tmp_path: Path) -> None:
    """[2, 3, 4] @ [4, 5] is 2·2·3·4·5 operations; a Gemm of the transposed [7, 6] with [7, 8] is 2·6·7·8."""
    nodes = [
        helper.make_node("MatMul", ["a", "b"], ["ab"]),
        helper.make_node("Gemm", ["c", "d"], ["cd"], transA=1),
    ]
    shapes = {"a": [2, 3, 4], "b": [4, 5], "c": [7, 6], "d": [7, 8]}
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", *shape[1:]]) for name, shape in shapes.items()],
        [helper.make_empty_tensor_value_info("ab"), helper.make_empty_tensor_value_info("cd")],
    )
    path = tmp_path / "products.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    inputs = {name: np.ones(shape, np.float32) for name, shape in shapes.items()}
    assert onnx_flop(path, inputs) == 2 * 2 * 3 * 4 * 5 + 2 * 6 * 7 * 8


def test_products_that_are_not_counted_are_refused(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 2])
    graph = helper.make_graph(
        [helper.make_node("Einsum", ["x", "x"], ["y"], equation="ij,jk->ik")],
        "einsum",
        [value],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 2])],
    )
    path = tmp_path / "einsum.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    with pytest.raises(BenchmarkError, match="Einsum"):
        onnx_flop(path, {"x": np.ones((2, 2), np.float32)})


def test_the_rate_is_the_best_of_libraries_and_sizes() -> None:
    rate = MatmulRate((8, 16))
    for _ in range(3):
        rate.step()
    by_library = rate.gflop_s()
    assert {library: set(sizes) for library, sizes in by_library.items()} == {name: {"8", "16"} for name in ("numpy", "torch")}
    assert rate.best() == max(r for sizes in by_library.values() for r in sizes.values())


def test_the_default_is_what_training_on_the_world_makes() -> None:
    spec = world_spec()
    assert (spec.candidates_max, spec.events_max, spec.vector_width) == (30, 50, 32)
    assert [f.name for f in spec.candidate_floats][-1] == "duration_ms"
    assert {"watch_ms", "volume", "orientation", "scroll_speed", "network"} <= {f.name for f in spec.feedback_floats}
