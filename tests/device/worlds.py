"""Real things for the device's tests: small ONNX models, bundles, pages, events, and the models' arithmetic in numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from pocketrank.device.bundle.bundle import Bundle, write_manifest
from pocketrank.device.clock import DeviceClock
from pocketrank.device.codec import to_block
from pocketrank.device.contract import (
    Candidates,
    CategoryFeature,
    Columns,
    FeatureSpec,
    FeedbackEvent,
    FloatFeature,
    Form,
    ModelEntry,
    Page,
)
from pocketrank.device.runtimes import INPUT_NAMES

T0 = 1_700_000_000_000
"""The time at which tests begin: 2023-11-14 22:13:20 UTC."""
SPLIT = "split-1"

SPEC = FeatureSpec(
    tasks=("long_view", "like"),
    task_weights={"long_view": 1.0, "like": 2.0},
    candidates_max=8,
    events_max=6,
    vector_width=4,
    list_sizes=(4, 8),
    candidate_floats=(
        FloatFeature(name="pxtr_like", min=0, max=1, default=0.5),
        FloatFeature(name="duration_ms", min=0, max=1800, default=15, scale=1e-3),
        FloatFeature(name="age", min=-5, max=5),
    ),
    candidate_categories=(CategoryFeature(name="category", size=10), CategoryFeature(name="author", size=100)),
    feedback_floats=(
        FloatFeature(name="watch_ms", min=0, max=1800, scale=1e-3),
        FloatFeature(name="like", min=0, max=1),
        FloatFeature(name="volume", min=0, max=1, default=0.5),
        FloatFeature(name="network", min=0, max=2, default=2),
        FloatFeature(name="ended", min=0, max=3),
    ),
    context_floats=(FloatFeature(name="position", min=0, max=1000), FloatFeature(name="hour", min=0, max=24)),
)


def widths(spec: FeatureSpec) -> dict[str, tuple[str | int, ...]]:
    """Shape of each input after the batch axis; `N` and `T` stand for candidates and events."""
    fc, c, d = len(spec.candidate_floats), len(spec.candidate_categories), spec.vector_width
    return {
        "candidate_float": ("N", fc), "candidate_category": ("N", c), "candidate_vector": ("N", d), "candidate_mask": ("N",),
        "event_float": ("T", fc), "event_category": ("T", c), "event_vector": ("T", d),
        "event_feedback": ("T", len(spec.feedback_floats)), "event_gap": ("T", 2), "event_mask": ("T",),
        "context": (len(spec.context_floats),), "user_vector": (d,),
    }  # fmt: skip


def weights(spec: FeatureSpec, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    """One matrix [width, tasks] per input that has a width, small enough for the sigmoid not to saturate."""
    size = {"candidate_float": 0.05, "event_float": 0.01, "candidate_category": 0.01, "event_category": 0.001}
    rng = np.random.default_rng(seed)
    shapes = {name: shape for name, shape in widths(spec).items() if not name.endswith("_mask")}
    return {n: rng.normal(0, size.get(n, 0.1), (int(s[-1]), len(spec.tasks))).astype(np.float32) for n, s in shapes.items()}


def reference(spec: FeatureSpec, inputs: dict[str, NDArray[Any]], seed: int = 0) -> NDArray[np.float32]:
    """What the models below compute: sigmoid(candidate * (1 + events) + rest), each a sum of linear maps.

    Events are masked and summed; their gaps count by exp(-gap / 100). The product makes the order depend on every event.
    """
    w, zero = weights(spec, seed), np.zeros((1, 1, len(spec.tasks)), np.float32)
    sums: dict[str, NDArray[Any]] = {"candidate": zero, "event": zero, "rest": zero}
    for name, x in inputs.items():
        if name.endswith("_mask"):
            continue
        y = (np.exp(-x / 100) if name == "event_gap" else x.astype(np.float32)) @ w[name]
        if name.startswith("event_"):
            y = (y * inputs["event_mask"][..., None]).sum(1, keepdims=True)
        group = name.split("_")[0] if name.startswith(("candidate_", "event_")) else "rest"
        sums[group] = sums[group] + (y[:, None] if y.ndim == 2 else y)
    total = sums["candidate"] * (1 + sums["event"]) + sums["rest"]
    result: NDArray[np.float32] = (1 / (1 + np.exp(-total))) * inputs["candidate_mask"][..., None]
    return result


def onnx_model(
    spec: FeatureSpec, form: Form, seed: int = 0, *, candidates: int | str = "N", events: int | str = "T", poison: float = 0.0
) -> onnx.ModelProto:
    """`reference` as an ONNX graph; `poison` is added to every score (NaN makes a model that fails its users)."""
    axes = {"N": candidates, "T": events}
    nodes: list[onnx.NodeProto] = []
    given: list[onnx.TensorProto] = []
    terms: dict[str, list[str]] = {"candidate": [], "event": [], "rest": []}
    inputs = [
        helper.make_tensor_value_info(
            name,
            TensorProto.INT32 if name.endswith("_category") else TensorProto.FLOAT,
            [1, *[axes[d] if isinstance(d, str) else d for d in widths(spec)[name]]],
        )
        for name in INPUT_NAMES[form]
    ]

    def node(kind: str, *names: str, **attributes: Any) -> str:
        out = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, list(names), [out], **attributes))
        return out

    def constant(name: str, value: NDArray[Any]) -> str:
        given.append(onnx.numpy_helper.from_array(value, name))
        return name

    one, last = constant("one", np.array([1], np.int64)), constant("last", np.array([-1], np.int64))
    hundred = constant("hundred", np.array(100, np.float32))
    for name, matrix in weights(spec, seed).items():
        if name not in INPUT_NAMES[form]:
            continue
        x = node("Cast", name, to=TensorProto.FLOAT) if name.endswith("_category") else name
        if name == "event_gap":
            x = node("Exp", node("Neg", node("Div", x, hundred)))
        y = node("MatMul", x, constant("w_" + name, matrix))
        if name.startswith("event_"):
            y = node("ReduceSum", node("Mul", y, node("Unsqueeze", "event_mask", last)), one, keepdims=1)
        group = name.split("_")[0] if name.startswith(("candidate_", "event_")) else "rest"
        terms[group].append(node("Unsqueeze", y, one) if group == "rest" else y)
    candidate, event, rest = (node("Sum", *terms[group]) for group in terms)
    total = node("Add", node("Add", candidate, node("Mul", candidate, event)), rest)
    scores = node("Mul", node("Sigmoid", total), node("Unsqueeze", "candidate_mask", last))
    bad = constant("poison", np.array(poison, np.float32))
    # Only where the history is not empty, so that such a model still opens.
    amount = constant("none", np.array(0, np.float32))
    if poison:
        seen = node("Greater", node("ReduceSum", "event_mask", one, keepdims=1), amount)
        amount = node("Where", seen, bad, amount)
    nodes.append(helper.make_node("Add", [scores, amount], ["scores"]))
    output = helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, candidates, len(spec.tasks)])
    graph = helper.make_graph(nodes, "tiny", inputs, [output], given)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return model


def make_bundle(
    folder: Path, spec: FeatureSpec = SPEC, forms: tuple[Form, ...] = ("split", "self_contained"), **keys: Any
) -> Bundle:
    """A bundle of ONNX models in `folder`, opened. `keys` go to `onnx_model`."""
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    for form in forms:
        path = folder / "models" / f"{form}.onnx"
        path.parent.mkdir(exist_ok=True)
        onnx.save(onnx_model(spec, form, **keys), path)
        models.append(ModelEntry(form=form, format="onnx", precision="fp32", path=f"models/{form}.onnx", bytes=0))
    write_manifest(folder, name="tiny", serial=1, split_version=SPLIT, spec=spec, models=models, created_ms=T0)
    return Bundle.open(folder)


def make_page(items: list[int], seed: int = 0, spec: FeatureSpec = SPEC, split: str | None = SPLIT, **changes: Any) -> Page:
    """A page of `items` with random features, and vectors when `split` is given."""
    rng, n = np.random.default_rng(seed), len(items)
    floats = np.stack([rng.random(n), rng.random(n) * 60_000, rng.normal(size=n)], 1)
    categories = np.stack([rng.integers(0, 10, n), rng.integers(0, 100, n)], 1)
    vector = None if split is None else to_block(rng.normal(size=(n, spec.vector_width)), "f2")
    user = None if split is None else to_block(rng.normal(size=spec.vector_width), "f2")
    fields: dict[str, Any] = {
        "page_id": f"page-{seed}",
        "request_id": "r",
        "created_ms": T0,
        "ttl_ms": 600_000,
        "split_version": split,
        "user_vector": user,
        "candidates": Candidates(
            item_id=to_block(np.array(items, np.int64), "i8"),
            floats=Columns(names=("pxtr_like", "duration_ms", "age"), values=to_block(floats, "f4")),
            categories=Columns(names=("category", "author"), values=to_block(categories, "i4")),
            vector=vector,
        ),
    }
    return Page(**fields | changes)


def make_event(item: int, at: int = 0, **changes: Any) -> FeedbackEvent:
    """Feedback for `item`, shown as the `at`-th impression, ten seconds after the one before."""
    fields: dict[str, Any] = {
        "event_id": f"e{item}",
        "user_id": 7,
        "session_id": "s",
        "item_id": item,
        "position": at,
        "impression_ms": T0 + 10_000 * at,
        "watch_ms": 4_000 + 100 * at,
    }
    return FeedbackEvent(**fields | changes)


class PhoneClock(DeviceClock):
    """A phone's clocks, which stand still until a test moves them."""

    def __init__(self, boot: str | None = "boot-0") -> None:
        self.true_ms = T0
        self.off_ms = 0
        """By how much the wall clock is ahead."""
        self.booted_ms, self.name = T0 - 3_600_000, boot

    def __call__(self) -> int:
        return self.true_ms + self.off_ms

    def since_boot_ms(self) -> int:
        return self.true_ms - self.booted_ms

    def boot(self) -> str | None:
        return self.name

    def reboot(self, off_ms: int) -> None:
        """Be off for so long, and start again."""
        self.true_ms += off_ms
        self.booted_ms = self.true_ms
        self.name = None if self.name is None else self.name + "+"


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, ms: int = T0) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms
