"""What is in the ONNX files: stages with free sizes, and a search that is a loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from pocketrank.device.contract import Stage
from pocketrank.device.runtimes import OUTPUT_NAMES, STAGES, open_stages, stage_inputs
from pocketrank.export.explain import attention_over
from pocketrank.export.graphs import Graph
from pocketrank.export.onnx import OPSET, convert
from pocketrank.export.parity import draw_inputs
from pocketrank.export.parity_stages import compare_stages, draw_lists, open_answers
from tests.export.explained import softmaxes
from tests.export.small_run import CONFIG, LIST_SPEC, random_upper

GRAPH = Graph("self_contained", LIST_SPEC, random_upper(split=False))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[Stage, Path]]:
    folder = tmp_path_factory.mktemp("onnx")
    targets: Any = {p: {stage: folder / f"{p}.{stage}.onnx" for stage in GRAPH.stages} for p in ("fp32", "fp16", "int8")}
    convert(GRAPH, targets)
    return targets  # type: ignore[no-any-return]


@pytest.mark.parametrize("stage", GRAPH.stages)
def test_a_file_has_its_stages_inputs_and_outputs_with_free_axes(stage: Stage, paths: Any) -> None:
    model = onnx.load(paths["fp32"][stage])
    onnx.checker.check_model(model, full_check=True)
    assert [(entry.domain, entry.version) for entry in model.opset_import if not entry.domain] == [("", OPSET)]
    names = [value.name for value in model.graph.input]
    left_out = {"candidate_mask"} if stage == "whole" else set()  # scores do not depend on it
    assert names == [name for name in stage_inputs("self_contained", stage) if name not in left_out]
    assert tuple(value.name for value in model.graph.output) == OUTPUT_NAMES[stage]
    free = {dim.dim_param for value in model.graph.input for dim in value.type.tensor_type.shape.dim if dim.dim_param}
    assert (
        free
        == {
            "whole": {"candidates", "events"},
            "page": {"candidates"},
            "event": {"events"},
            "watch": {"candidates", "events"},
            "choose": {"candidates", "lists", "items"},
            "search": {"candidates", "events"},
        }[stage]
    )


def test_a_search_is_one_loop(paths: Any) -> None:
    for stage, path in paths["fp32"].items():
        loops = [node for node in onnx.load(path).graph.node if node.op_type == "Loop"]
        assert len(loops) == (stage == "search")


def test_each_attention_is_found_by_its_mask(paths: Any) -> None:
    inputs = draw_inputs(LIST_SPEC, "self_contained", 7, 6, seed=1)
    inputs |= {"chosen": np.array([[0, 3], [4, 1]], np.int32), "chosen_mask": np.array([[0, 1], [1, 1]], np.float32)}
    for stage in STAGES:
        inputs |= GRAPH.run(stage, inputs)
    for stage, mask, keys in (("whole", "event_mask", 6), ("watch", "event_mask", 6), ("choose", "chosen_mask", 2)):
        with softmaxes() as answers:
            GRAPH.run(stage, inputs)
        model = onnx.load(paths["fp32"][stage])
        assert [attention_over(model, other) for other in {"event_mask", "chosen_mask"} - {mask}] == [None]
        model.graph.output.append(onnx.helper.make_empty_tensor_value_info(attention_over(model, mask)))
        session = onnxruntime.InferenceSession(model.SerializeToString())
        found = session.run(None, {node.name: inputs[node.name] for node in session.get_inputs()})[-1]
        assert found.shape[1:] == (CONFIG.heads, 7, 1 + keys)
        np.testing.assert_allclose(found, answers[0], atol=1e-5)


def test_stages_hold_only_their_own_weights(paths: Any) -> None:
    def weights(stage: Stage) -> set[str]:
        return {tensor.name for tensor in onnx.load(paths["fp32"][stage]).graph.initializer if np.prod(tensor.dims) > 32}

    assert weights("page") | weights("event") | weights("watch") == weights("whole")
    assert weights("page").isdisjoint(weights("choose"))
    assert weights("search") > weights("watch")


@pytest.mark.parametrize(("candidates", "events", "lists", "items"), [(1, 1, 1, 1), (12, 10, 3, 4), (4, 7, 2, 3)])
def test_sizes_are_free(candidates: int, events: int, lists: int, items: int, paths: Any) -> None:
    runtimes = open_stages(paths["fp32"], "onnx")
    known: dict[str, Any] = draw_inputs(LIST_SPEC, "self_contained", candidates, events, seed=5)
    known |= {name: value[:lists, -items:] for name, value in draw_lists(LIST_SPEC, candidates, seed=5).items()}
    for stage, runtime in runtimes.items():
        expected = GRAPH.run(stage, known)
        got = runtime.run_all({name: np.ascontiguousarray(known[name]) for name in runtime.input_names})
        for name, value in zip(OUTPUT_NAMES[stage], got, strict=True):
            np.testing.assert_allclose(value, expected[name], atol=1e-5)
        if stage != "choose":
            known |= expected


@pytest.mark.parametrize(("precision", "kind"), [("fp16", onnx.TensorProto.FLOAT16), ("int8", onnx.TensorProto.INT8)])
def test_reduced_precisions_have_small_weights_and_run_in_stages(precision: str, kind: int, paths: Any) -> None:
    for path in paths[precision].values():
        assert kind in {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    parity = compare_stages(GRAPH, open_answers(paths[precision], "onnx"), where=precision)
    assert 0 < max(parity.cases["watch"].values()) < 0.5
