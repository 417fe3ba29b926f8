"""Candidates with equal features have equal scores and keep cloud order, whatever computes the scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.latency.executorch_peer import convert_executorch, open_executorch
from pocketrank.cloud.models.reranker import UpperHalf
from pocketrank.device import FeedSession, Impression, Ranker
from pocketrank.device.bundle import Bundle
from pocketrank.device.codec import to_block
from pocketrank.device.contract import Candidates, Columns, Form, Format, Page, PersonalConfig, Precision, Stage, TaskPrior
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.personal import PersonalLayer
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.ranking.ranker import Moment
from pocketrank.device.runtimes import OUTPUT_NAMES, STAGES, Runtime, open_runtime, stage_inputs
from pocketrank.export.parity import draw_inputs
from tests.export.small_run import LIST_SPEC, random_upper
from tests.export.whole_export import whole_export
from tests.torch_stages import TorchStage

FORMS: tuple[Form, ...] = get_args(Form)
SPLIT = "5" * 16
T0 = 1_700_000_000_000
GROUPS = [0, 1, 0, 2, 1, 0, 0, 3, 1, 1, 0, 2, 2, 0]
"""More candidates than the model takes (12), and more than its smaller static size (5)."""


class ByPlace(Runtime):
    """A runtime whose kernels round by a candidate's place: the later the higher, and lists are found backwards."""

    def __init__(self, runtime: Runtime, stage: Stage) -> None:
        self.runtime, self.stage = runtime, stage
        self.input_names, self.list_sizes, self.events = runtime.input_names, runtime.list_sizes, runtime.events

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        outputs = dict(zip(OUTPUT_NAMES[self.stage], self.runtime.run_all(inputs), strict=True))
        if "scores" in outputs:
            scores = outputs["scores"]
            outputs["scores"] = scores + np.float32(1e-6) * np.arange(scores.shape[1], dtype=np.float32)[:, None]
        if "order" in outputs:
            order = outputs["order"].copy()
            length = int((order >= 0).sum())
            order[0, :length] = order[0, :length][::-1]
            outputs["order"] = order
        return list(outputs.values())


class Whole(Runtime):
    """A whole model for lists of the largest size, as a function."""

    def __init__(self, form: Form, run: Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]) -> None:
        self.run_model = run
        self.input_names, self.list_sizes, self.events = stage_inputs(form, "whole"), (12,), LIST_SPEC.events_max

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        return [self.run_model(inputs)]


def page(groups: list[int], form: Form, seed: int = 0) -> Page:
    """A page of items 0, 1, .. of which those of one group have the same features."""
    rng, at = np.random.default_rng(seed), np.array(groups)
    kinds, n = max(groups) + 1, len(groups)
    floats = np.stack([rng.random(kinds), rng.random(kinds) / 10, rng.integers(3_000, 90_000, kinds)], 1)
    split = form == "split"
    return Page(
        page_id="p",
        request_id="r",
        created_ms=T0,
        ttl_ms=10**9,
        candidates=Candidates(
            item_id=to_block(np.arange(n), "i8"),
            floats=Columns(names=tuple(f.name for f in LIST_SPEC.candidate_floats), values=to_block(floats[at], "f4")),
            categories=Columns(names=("category",), values=to_block(rng.integers(0, 11, (kinds, 1))[at], "i4")),
            vector=to_block(rng.normal(size=(kinds, LIST_SPEC.vector_width))[at], "f2") if split else None,
        ),
        user_vector=to_block(rng.normal(size=LIST_SPEC.vector_width), "f2") if split else None,
        split_version=SPLIT if split else None,
    )


def backwards(ranker: Ranker) -> Ranker:
    stages = {form: {stage: ByPlace(r, stage) for stage, r in own.items()} for form, own in ranker.runtimes.items()}
    return Ranker(ranker.spec, ranker.split_version, stages)


def hold_to_cloud_order(ranker: Ranker, form: Form, groups: list[int], personal: PersonalLayer | None = None) -> None:
    """Swipe through a page: at each swipe, what is left of a group is in cloud order, as far as the model takes the page."""
    now = [T0]
    feed = FeedSession(ranker, user_id=1, session_id="s", clock=lambda: now[0], personal=personal)
    assert feed.take(page(groups, form))
    assert feed.form == form
    for number in range(len(groups)):
        left = feed.remaining.tolist()
        for group in set(groups):
            own = [item for item in left if groups[item] == group]
            assert own == sorted(own)
        item = feed.next()
        assert item == left[0]
        shown = Impression(item, position=number, user_id=1, session_id="s", clock=lambda: now[0])
        if number % 3 == 0:
            shown.did("like")
        now[0] += 5_000
        feed.feedback(shown.finish())
    assert feed.counters.model_failed == 0
    assert feed.counters.reranks >= len(groups) - 1


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_export(tmp_path_factory)[0]


def rankers(bundle: Bundle, format: Format, precision: Precision, form: Form) -> list[Ranker]:
    """All ways to order by a bundle's graphs of one form: a search in the graph, one on the host, none, and the whole model."""
    stages = Ranker.open(bundle, format, precision).runtimes[form]
    whole = {"whole": open_runtime(bundle.stages(form, format, precision)["whole"], format)}
    on_host = {stage: stages[stage] for stage in (*STAGES, "choose")}
    without = {stage: stages[stage] for stage in STAGES}
    return [Ranker(bundle.spec, bundle.split_version, {form: own}) for own in (stages, on_host, without, whole)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("format", ["onnx", "tflite"])
def test_exported_graphs_keep_cloud_order(exported: Path, format: Format, form: Form) -> None:
    bundle = Bundle.open(exported / "bundle")
    models = bundle.manifest.models
    precisions = sorted({m.precision for m in models if (m.format, m.form, m.stage) == (format, form, "search")})
    assert "fp32" in precisions
    for precision in precisions:
        for ranker in rankers(bundle, format, precision, form):
            for model in (ranker, backwards(ranker)):
                hold_to_cloud_order(model, form, GROUPS)
                hold_to_cloud_order(model, form, [0] * 12)


MODELS: dict[Form, UpperHalf] = {form: random_upper(split=form == "split", spec=LIST_SPEC) for form in FORMS}


def test_executorch_keeps_cloud_order() -> None:
    pytest.importorskip("executorch")
    form: Form = "self_contained"
    model = MODELS[form]
    names = stage_inputs(form, "whole")
    drawn = draw_inputs(LIST_SPEC, form, 12, LIST_SPEC.events_max, 0)
    program = convert_executorch(model, {name: torch.from_numpy(drawn[name]) for name in names})
    assert program is not None

    def run(inputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        given = {name: torch.from_numpy(inputs[name]) for name in names}
        return open_executorch(program, model, given)().numpy().copy()

    ranker = Ranker(LIST_SPEC, SPLIT, {form: {"whole": Whole(form, run)}})
    hold_to_cloud_order(ranker, form, GROUPS)
    hold_to_cloud_order(backwards(ranker), form, GROUPS)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("search", [False, True], ids=["next", "list"])
@pytest.mark.parametrize("personal", [False, True], ids=["shipped", "personal"])
@given(groups=st.lists(st.integers(0, 3), min_size=2, max_size=14), place=st.booleans())
@settings(max_examples=15, deadline=None)
def test_torch_keeps_cloud_order(form: Form, search: bool, personal: bool, groups: list[int], place: bool) -> None:
    stages = (*STAGES, "choose") if search else STAGES
    ranker = Ranker(LIST_SPEC, SPLIT, {form: {stage: TorchStage(MODELS[form], form, stage) for stage in stages}})
    config = PersonalConfig(tasks={"like": TaskPrior(user=0.5, category=1.0)})
    layer = PersonalLayer(LIST_SPEC.tasks, bundle="feed/1", user_id=1, config=config) if personal else None
    hold_to_cloud_order(backwards(ranker) if place else ranker, form, groups, layer)


def test_equal_candidates_have_equal_scores() -> None:
    """So that an app's preferences, which are scaled by the spread of the scores, do not scale a runtime's rounding."""
    ranker = backwards(Ranker(LIST_SPEC, SPLIT, {"split": {"whole": TorchStage(MODELS["split"], "split", "whole")}}))
    held = Remaining(ranker.builder.page(page([0, 1, 0, 0, 1], "split")), ranker.rows)
    context = np.zeros((1, len(LIST_SPEC.context_floats)), np.float32)
    ranking = ranker.order("split", Moment(held, EventHistory(LIST_SPEC), context, T0, 0))
    assert ranking is not None
    for same in ([0, 2, 3], [1, 4]):
        assert len(set(ranking.values[same].tolist())) == 1
        assert len(np.unique(ranking.scores[same], axis=0)) == 1
    assert ranking.values[0] != ranking.values[1]
