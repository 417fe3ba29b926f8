from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.export.explain import ExplainError, attention_over, explain
from pocketrank.export.parity import draw_inputs
from tests.device import worlds
from tests.export.explained import GRAPH, explained_bundle, softmaxes
from tests.export.small_run import FULL, SPEC

MASKED = 2


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return explained_bundle(tmp_path_factory.mktemp("bundle"))


def _inputs(candidates: int = 7, events: int = 6) -> dict[str, NDArray[Any]]:
    inputs = draw_inputs(SPEC, "split", candidates, events, seed=1)
    inputs["event_mask"][0, : min(MASKED, events)] = 0
    return inputs


def test_attention_is_that_of_the_model(bundle: Bundle) -> None:
    inputs = _inputs()
    with softmaxes() as answers:
        scores = GRAPH.scores(inputs)
    (attention,) = (x for x in answers if x.shape == (1, FULL.heads, 7, 1 + 6))
    assert len(answers) > 1, "the graph's other softmaxes are what makes it hard to find"
    found = explain(bundle, "split", inputs)
    assert found.attention is not None
    np.testing.assert_allclose(found.attention, attention[0], atol=1e-5)
    np.testing.assert_allclose(found.scores, scores[0], atol=1e-5)
    assert np.abs(found.attention - 1 / 7).max() > 0.1, "a model that looks everywhere alike shows nothing"


def test_influence_is_what_leaving_an_event_out_does(bundle: Bundle) -> None:
    inputs = _inputs()
    found = explain(bundle, "split", inputs)
    real = np.arange(6) >= MASKED
    assert not found.influence[~real].any()
    assert (np.abs(found.influence[real]).max((1, 2)) > 1e-4).all()
    for t in np.flatnonzero(real):  # as if it had never been: a row less
        fewer = {name: np.delete(x, t, 1) if name.startswith("event") else x for name, x in inputs.items()}
        np.testing.assert_allclose(found.scores - found.influence[t], explain(bundle, "split", fewer).scores, atol=1e-5)
    none = {name: x[:, :1] if name.startswith("event") else x for name, x in inputs.items()}
    np.testing.assert_allclose(found.unwatched, explain(bundle, "split", none).scores, atol=1e-5)


def test_with_no_event_all_attention_is_on_the_null_key(bundle: Bundle) -> None:
    found = explain(bundle, "split", _inputs(events=1))
    assert found.attention is not None
    np.testing.assert_array_equal(found.attention[..., 0], 1)
    np.testing.assert_array_equal(found.scores, found.unwatched)


def test_a_graph_without_attention_has_influence_alone(tmp_path: Path) -> None:
    bundle = worlds.make_bundle(tmp_path)
    inputs = draw_inputs(worlds.SPEC, "split", 3, 4, seed=1)
    found = explain(bundle, "split", inputs)
    assert found.attention is None
    without = inputs["event_mask"].copy()
    without[0, 1] = 0
    expected = worlds.reference(worlds.SPEC, inputs) - worlds.reference(worlds.SPEC, inputs | {"event_mask": without})
    np.testing.assert_allclose(found.influence[1], expected[0], atol=1e-5)


def test_two_attentions_behind_one_mask_are_not_guessed_between() -> None:
    nodes = [onnx.helper.make_node("Softmax", ["event_mask"], [name]) for name in ("a", "b")]
    value = onnx.helper.make_tensor_value_info("event_mask", onnx.TensorProto.FLOAT, [1, 3])
    assert attention_over(onnx.helper.make_model(onnx.helper.make_graph(nodes, "two", [value], [])), "event_mask") is None


@pytest.mark.parametrize(
    "change",
    [
        lambda x: {},
        lambda x: {name: value for name, value in x.items() if name != "context"},
        lambda x: x | {"candidate_float": x["candidate_float"][..., :-1]},
        lambda x: x | {"event_mask": x["event_mask"][:, :-1]},
        lambda x: x | {"candidate_category": x["candidate_category"].astype(np.float32)},
    ],
)
def test_inputs_that_are_not_the_models_are_refused(change: Any, bundle: Bundle) -> None:
    with pytest.raises(ExplainError):
        explain(bundle, "split", change(_inputs()))


def test_a_form_that_the_bundle_lacks_is_refused(bundle: Bundle) -> None:
    with pytest.raises(ExplainError, match="a whole model of the self_contained form"):
        explain(bundle, "self_contained", _inputs())
