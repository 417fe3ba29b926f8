import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from msgspec.structs import replace
from onnx import TensorProto, helper

from benchmarks.arithmetic import onnx_flop
from benchmarks.errors import BenchmarkError
from benchmarks.latency import main
from benchmarks.matmul import MatmulRate
from benchmarks.subject import FORMATS, random_run, world_spec
from export.bundle import export_bundle
from tests.export.small_run import CONFIG, SPEC

FORMS = ("split", "self_contained")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small run and its bundle: `run` and `bundle`."""
    folder = tmp_path_factory.mktemp("latency")
    spec = replace(SPEC, list_sizes=(SPEC.candidates_max,))  # one signature, half the conversion
    export_bundle(random_run(folder / "run", spec, CONFIG), folder / "bundle", formats=FORMATS)
    return folder


def _numbers(report: Any) -> Iterator[float]:
    if isinstance(report, dict):
        for value in report.values():
            yield from _numbers(value)
    elif isinstance(report, int | float):
        yield report


def test_the_report_has_every_figure(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "report.json"
    options = ["--bundle", str(folder / "bundle"), "--run", str(folder / "run"), "--rounds", "2", "--runs", "2"]
    assert main([*options, "--json", str(file)]) == 0
    report = json.loads(file.read_text())
    for figures in (report, *(report["forms"][form] for form in FORMS)):
        for format in FORMATS:
            assert figures["rerank"][format].keys() == {"p50_ms", "p99_ms", "ratio_to_limit"}
            assert figures["swipe"][format].keys() >= {"p50_ms", "p99_ms", "sdk_overhead_share"}
            assert figures["rerank"][format]["p50_ms"] <= figures["rerank"][format]["p99_ms"]
            assert 0 < figures["swipe"][format]["sdk_overhead_share"] < 1
        fastest = figures["fastest"]
        assert figures["ratio_to_limit"] == figures["rerank"][fastest]["p50_ms"] / figures["limit_ms"]
        assert figures["sdk_overhead_share"] == figures["swipe"][fastest]["sdk_overhead_share"]
        assert figures["torch_eager"]["p50_ms"] > 0
        rate = max(rate for library in ("numpy", "torch") for rate in report["matmul_gflop_s"][library].values())
        assert figures["limit_ms"] == pytest.approx(figures["flop"] / (rate * 1e9) * 1e3)
    assert report["forms"]["split"]["flop"] > report["forms"]["self_contained"]["flop"]
    assert report["memory"]["device_process_mib"] - report["memory"]["bare_mib"] == report["memory"]["above_bare_mib"] > 0
    assert all(math.isfinite(number) and number > 0 for number in _numbers(report))
    assert "self_contained" in capsys.readouterr().out


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
