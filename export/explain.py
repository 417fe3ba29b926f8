"""Explanation of a model's scores: its attention to each event, and its scores without each event.

Attention is read from the whole ONNX graph, which is run once more with the attention weights as a further output. It shows
where a candidate looked, not how that changed its score: the attended values may not matter, and the changes by two events may
cancel out. Therefore an explanation also has the influence of each event: the scores, minus the scores with that event masked.

A graph has many softmaxes: in soft bins, gates and attention. The attention over past events is the first one that depends on
`event_mask`, which only attention uses. The attention over chosen candidates, where a graph has it, is the first one that
depends on `chosen_mask`. The whole model and `watch` have no such attention: before the next item of a list nothing is chosen,
and all attention goes to the null key.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import cast

import numpy as np
import onnx
import onnxruntime
from jaxtyping import Float
from numpy.typing import NDArray

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.contract import Form, Format, Precision
from pocketrank.device.runtimes import ModelRuntimeError
from pocketrank.export.errors import ExportError
from pocketrank.export.graphs import Inputs, input_shapes
from pocketrank.export.parity import open_scorer

__all__ = ["ExplainError", "Explanation", "attention_over", "explain"]

FORMATS: tuple[Format, ...] = ("onnx", "tflite", "coreml")
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "int8")
"""Order in which a bundle's models are searched: attention can only be read from ONNX."""


class ExplainError(ExportError):
    """Inputs that do not fit the model, a bundle without a model of the form, or a model that fails on the inputs."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """Scores of n candidates for k tasks after t events, and what they depend on."""

    model: Path
    scores: Float[NDArray[np.float32], "n k"]
    """Scores of the model."""
    unwatched: Float[NDArray[np.float32], "n k"]
    """Scores without any event."""
    influence: Float[NDArray[np.float32], "t n k"]
    """`scores` minus the scores without each event; 0 for a masked event."""
    attention: Float[NDArray[np.float32], "h n t1"] | None
    """Attention weights of each head, to the null key and then to each event; None without an ONNX graph that has them."""


def explain(bundle: Bundle, form: Form, inputs: Inputs) -> Explanation:
    """Explain the scores that the bundle's whole model of `form` gives to `inputs`, the contract's inputs by name.

    Runs the model t + 2 times, for t events. Raises `ExplainError`.
    """
    path, format = _model(bundle, form)
    _check(bundle, form, inputs)
    mask = inputs["event_mask"]
    try:
        score, _ = open_scorer(path, format)
        scores = score(inputs)[0]
        influence = np.zeros((mask.shape[1], *scores.shape), np.float32)
        for t in np.flatnonzero(mask[0]):
            without = mask.copy()
            without[0, t] = 0
            influence[t] = scores - score({**inputs, "event_mask": without})[0]
        unwatched = score({**inputs, "event_mask": np.zeros_like(mask)})[0]
        attention = _attention(path, inputs) if format == "onnx" else None
    except (ModelRuntimeError, StopIteration) as error:  # StopIteration: more candidates than a static graph takes
        raise ExplainError(str(path), "a model that runs on these inputs", str(error) or "more candidates") from error
    return Explanation(path, scores, unwatched, influence, attention)


def _model(bundle: Bundle, form: Form) -> tuple[Path, Format]:
    for format, precision in product(FORMATS, PRECISIONS):
        if (path := bundle.stages(form, format, precision).get("whole")) is not None:
            return path, format
    raise ExplainError(str(bundle.folder), f"a whole model of the {form} form", "none")


def _check(bundle: Bundle, form: Form, inputs: Inputs) -> None:
    n, t = (inputs[name].size if name in inputs else 0 for name in ("candidate_mask", "event_mask"))
    expected = input_shapes(bundle.spec, form, n, t)
    if (got := {name: value.shape for name, value in inputs.items()}) != expected or not (n and t):
        raise ExplainError(str(bundle.folder), f"inputs {expected}", f"{got}")


def attention_over(model: onnx.ModelProto, mask: str) -> str | None:
    """Return the name of the attention weights [b, heads, n, 1 + keys] over the keys that `mask` masks.

    They are the output of the first softmax that depends on the mask; None when there is not exactly one.
    """
    reached, found = {mask}, []
    for node in model.graph.node:  # ONNX requires an order in which they can run
        # `Shape` is skipped: graphs read the length of a list from any of its inputs.
        if node.op_type != "Shape" and not reached.isdisjoint(node.input):
            if node.op_type == "Softmax":
                found.append(node.output[0])
            else:
                reached.update(node.output)
    return found[0] if len(found) == 1 else None


def _attention(path: Path, inputs: Inputs) -> NDArray[np.float32] | None:
    model = onnx.load(path)
    if (name := attention_over(model, "event_mask")) is None:
        return None
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    taken = {value.name: inputs[value.name] for value in session.get_inputs()}
    shares = cast("NDArray[np.float32]", session.run([name], taken)[0])
    expected = inputs["candidate_mask"].shape[1], 1 + inputs["event_mask"].shape[1]
    return shares[0] if shares.ndim == 4 and shares.shape[2:] == expected else None
