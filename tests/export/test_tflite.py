"""What is in a LiteRT file: a signature for each stage and size, weights once, and a search that is a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from pocketrank.device.contract import Stage
from pocketrank.device.runtimes import OUTPUT_NAMES, open_stages
from pocketrank.export.errors import UnsupportedError
from pocketrank.export.graphs import Graph
from pocketrank.export.parity_stages import compare_stages, open_answers
from pocketrank.export.tflite import convert
from tests.export.small_run import LIST_SPEC, SPEC, random_upper

GRAPH = Graph("self_contained", LIST_SPEC, random_upper(split=False))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("tflite")
    found = {precision: folder / f"{precision}.tflite" for precision in ("fp32", "fp16", "int8")}
    targets: Any = {precision: dict.fromkeys(GRAPH.stages, path) for precision, path in found.items()}
    convert(GRAPH, targets)
    return found


def model_of(path: Path) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromPackedBuf(path.read_bytes())


def test_a_signature_for_each_stage_and_size(paths: dict[str, Path]) -> None:
    from ai_edge_litert.interpreter import Interpreter

    signatures = Interpreter(model_path=str(paths["fp32"])).get_signature_list()
    sizes = {f"{prefix}n{n}" for prefix in ("", "page_", "watch_", "choose_", "search_") for n in (5, 12)}
    assert set(signatures) == sizes | {"event_t1", "event_t10"}
    for name, signature in signatures.items():
        stage: Any = name.split("_")[0] if "_" in name else "whole"
        assert set(signature["outputs"]) == set(OUTPUT_NAMES[stage])


def test_what_stages_share_is_there_once(paths: dict[str, Path]) -> None:
    model = model_of(paths["fp32"])
    weights = [bytes(buffer.data) for buffer in model.buffers if buffer.data is not None]
    assert len(set(weights)) == len(weights)
    parameters = sum(p.numel() for p in GRAPH.model.parameters())
    large = sum(len(weight) for weight in weights if len(weight) > 64)
    assert large < 4 * 1.2 * parameters


def test_a_search_is_one_loop_for_each_size(paths: dict[str, Path]) -> None:
    from ai_edge_litert import schema_py_generated as schema

    model = model_of(paths["fp32"])
    codes = [code.builtinCode for code in model.operatorCodes]
    with_loops = {
        i
        for i, graph in enumerate(model.subgraphs)
        for o in graph.operators
        if codes[o.opcodeIndex] == schema.BuiltinOperator.WHILE
    }
    assert with_loops == {s.subgraphIndex for s in model.signatureDefs if s.signatureKey.startswith(b"search_")}


def test_an_event_is_encoded_alone_as_among_others(paths: dict[str, Path]) -> None:
    runtime = open_stages({"event": paths["fp32"]}, "tflite")["event"]
    assert runtime.list_sizes == (1, 10)
    rng = np.random.default_rng(0)
    inputs = {
        "event_float": rng.random((1, 10, 3), np.float32),
        "event_category": rng.integers(0, 11, (1, 10, 1), np.int32),
        "event_feedback": rng.random((1, 10, 4), np.float32),
    }
    (together,) = runtime.run_all(inputs)
    for i in range(10):
        (alone,) = runtime.run_all({name: np.ascontiguousarray(value[:, i : i + 1]) for name, value in inputs.items()})
        np.testing.assert_allclose(alone, together[:, i : i + 1], atol=1e-5)


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_reduced_precisions_have_small_weights_and_run_in_stages(precision: str, paths: dict[str, Path]) -> None:
    from ai_edge_litert import schema_py_generated as schema

    kind = {"fp16": schema.TensorType.FLOAT16, "int8": schema.TensorType.INT8}[precision]
    for graph in (graph for graph in model_of(paths[precision]).subgraphs if graph.operators):
        assert kind in {tensor.type for tensor in graph.tensors}
    stages: dict[Stage, Path] = dict.fromkeys(GRAPH.stages, paths[precision])
    parity = compare_stages(GRAPH, open_answers(stages, "tflite"), where=precision)
    assert 0 < max(parity.cases["watch"].values()) < 0.5


def test_list_sizes_must_reach_the_most_candidates(tmp_path: Path) -> None:
    graph = Graph("self_contained", replace(SPEC, list_sizes=(5,)), random_upper(split=False))
    with pytest.raises(UnsupportedError, match="list sizes up to candidates_max = 12"):
        convert(graph, {"fp32": {"whole": tmp_path / "none.tflite"}})
