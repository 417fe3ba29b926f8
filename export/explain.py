"""Why a model scored as it did: what it attended to, and what its scores would be without each event.

Attention is read off the whole ONNX graph, run once more with the shares of its attention as a further output. It says where a
candidate looked, not what that did to its score: the values looked at may count for nothing, and what two events change may
cancel out. So beside it is the influence of each event: the scores, less what they are with that event masked.

A graph has many softmaxes: soft bins, gates, attention. That over past events is the first one behind `event_mask`, which
nothing but attention takes; that over chosen candidates, in the graphs that have it, the first one behind `chosen_mask`. The
whole model and `watch` have none of the latter: for the next place of a list nothing was chosen, and all attention there is to
the null key.
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
"""In this order a bundle's models are looked for: attention is read off ONNX alone."""


class ExplainError(ExportError):
    """Inputs that are not the model's, no model for them, or one that fails on them."""


@dataclass(frozen=True, eq=False)
class Explanation:
    """What a model says of n candidates after t events, and why. K tasks."""

    model: Path
    scores: Float[NDArray[np.float32], "n k"]
    """what the model answers"""
    unwatched: Float[NDArray[np.float32], "n k"]
    """what it would, had there been no event"""
    influence: Float[NDArray[np.float32], "t n k"]
    """`scores` less what they are without each event; of a masked event 0"""
    attention: Float[NDArray[np.float32], "h n t1"] | None
    """shares of each head, to the null key and then to each event; None where there is no ONNX graph with such attention"""


def explain(bundle: Bundle, form: Form, inputs: Inputs) -> Explanation:
    """Explain what the bundle's whole model of `form` makes of `inputs`, the contract's by name.

    t + 2 runs. Raises `ExplainError`.
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
    """The value that holds the shares [b, heads, n, 1 + keys] of the attention whose keys have the mask `mask`: that of the
    first softmax behind it. None when there is not just one.
    """
    reached, found = {mask}, []
    for node in model.graph.node:  # ONNX has them in an order in which they can run
        if node.op_type != "Shape" and not reached.isdisjoint(node.input):  # how long a list is, is asked of any of its inputs
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
