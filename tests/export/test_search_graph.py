"""The search in a graph finds what `pocketrank.device.model.search` finds: piece by piece, and as ONNX and LiteRT run it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank.device.contract import FeatureSpec, Form, Format, SearchSpec
from pocketrank.device.model.search import Reward, SearchResult, search
from pocketrank.device.runtimes import STAGES, open_stages
from pocketrank.export import onnx as to_onnx
from pocketrank.export import tflite as to_tflite
from pocketrank.export.errors import UnsupportedError
from pocketrank.export.graphs import Graph
from pocketrank.export.parity import draw_inputs
from pocketrank.export.search_graph import ListSearch
from tests.export.small_run import CONFIG, FULL, SPEC, random_upper

TASKS = ("has_next", "like", "share")
WEIGHTS = st.sampled_from([0.0, 1.0, 0.5, -1.0, -0.25, 3.0])


def reward_of(spec: FeatureSpec) -> Reward:
    survival = None if spec.survival_task is None else spec.tasks.index(spec.survival_task)
    return Reward([spec.task_weights.get(task, 0.0) for task in spec.tasks], survival)


class Table:
    """Random probabilities after each prefix of a page, the same whenever they are asked for. Many are equal, 0 or 1."""

    def __init__(self, seed: int, places: int) -> None:
        self.seed, self.places = seed, places

    def after(self, prefix: list[int]) -> NDArray[np.float32]:
        rng = np.random.default_rng([self.seed, *prefix])
        shape = (self.places, len(TASKS))
        return np.where(rng.random(shape) < 0.5, rng.integers(0, 3, shape) / 2, rng.random(shape)).astype(np.float32)


@settings(max_examples=300)
@given(
    seed=st.integers(0, 10_000),
    mask=st.lists(st.booleans(), min_size=1, max_size=9),
    weights=st.tuples(WEIGHTS, WEIGHTS, WEIGHTS),
    survival=st.sampled_from([None, *TASKS]),
    beam=st.integers(1, 5),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 5)).map(sorted),
    stability=st.sampled_from([0.0, 0.5, 0.9, 0.95, 1.0]),
)
def test_its_pieces_put_together_are_the_search_of_the_device(
    seed: int,
    mask: list[bool],
    weights: tuple[float, ...],
    survival: str | None,
    beam: int,
    sizes: list[int],
    stability: float,
) -> None:
    config = SearchSpec(beam=beam, list_size=sizes[0], steps_max=sizes[1], stability=stability)
    spec = replace(
        SPEC, tasks=TASKS, task_weights=dict(zip(TASKS, weights, strict=True)), survival_task=survival, search=config
    )
    table, real = Table(seed, len(mask)), np.flatnonzero(mask)
    expected = search(
        lambda prefixes: np.stack([table.after(real[p].tolist())[real] for p in prefixes]), len(real), reward_of(spec), config
    )
    assert expected is not None

    graph, given = ListSearch(spec, config), torch.tensor([mask]).float()
    state = graph.start(torch.from_numpy(table.after([]))[None], given)
    while graph.going(given, state):
        chosen, there = graph.chosen(state["lists"])
        lists = [row[known > 0].tolist() for row, known in zip(chosen, there, strict=True)]
        after = np.stack([table.after(prefix) for prefix in lists])
        after[:, ~np.array(mask)] = np.nan  # what is masked is never read
        state = graph.step(torch.from_numpy(after), given, **state)
    order = graph.order(state)[0].numpy()
    assert order[order >= 0].tolist() == real[expected.order].tolist()
    assert (order[len(expected.order) :] == -1).all()


SPECS: dict[Form, FeatureSpec] = {
    # worth something, nothing, or less than nothing; what follows is discounted
    "split": replace(
        SPEC,
        list_sizes=(12,),
        task_weights={"effective_view": 1.0, "like": -1.0},
        survival_task="effective_view",
        search=SearchSpec(beam=4, list_size=2, steps_max=4, stability=0.97),
    ),
    # every item costs, and there is a task that counts for nothing
    "self_contained": replace(
        SPEC,
        list_sizes=(12,),
        task_weights={"effective_view": 0.0, "like": -2.0},
        search=SearchSpec(beam=3, list_size=1, steps_max=3, stability=0.9),
    ),
}
CASES = 1100
"""Of each form: more than 2000 for each format."""


class Case(NamedTuple):
    """Inputs of the stage `search`, and what `pocketrank.device.model.search` finds for them."""

    inputs: dict[str, NDArray[Any]]
    real: NDArray[np.int64]
    expected: SearchResult


def graph_of(form: Form) -> Graph:
    """A model whose probabilities are exactly 0 and 1 for candidates that the cloud is sure of."""
    split = form == "split"
    model = random_upper(split=split, spec=SPECS[form], config=FULL if split else CONFIG)
    with torch.no_grad():
        model.residual.fill_(12.0)
    return Graph(form, SPECS[form], model)


@pytest.fixture(scope="module")
def cases() -> dict[Form, list[Case]]:
    return {form: list(draw_cases(graph_of(form))) for form in SPECS}


def draw_cases(graph: Graph) -> Any:
    rng, spec = np.random.default_rng(7), graph.spec
    n, t = spec.candidates_max, spec.events_max
    inputs = draw_inputs(spec, graph.form, CASES * n, CASES * t, 0)  # drawn at once, then cut to lists
    sizes = {"candidate": n, "event": t}
    for name, value in inputs.items():
        group = name.split("_")[0]
        inputs[name] = value.reshape(CASES, sizes[group], *value.shape[2:]) if group in sizes else value.repeat(CASES, 0)
    pxtr = inputs["candidate_float"][..., : len(spec.tasks)]
    sure = rng.choice([0.0, 1.0, np.nan], pxtr.shape, p=[0.15, 0.05, 0.8])
    pxtr[:] = np.where(np.isnan(sure), 0.45 + 0.1 * rng.random(pxtr.shape), sure)
    same = rng.random((CASES, n)) < 0.1  # some candidates are all the same
    for name in ("candidate_float", "candidate_category", "candidate_vector"):
        if name in inputs:
            inputs[name][same] = inputs[name][0, 0]
    lengths = rng.choice([0, 1, 2, 3, 4, n, n, n], CASES)
    holes = rng.random((CASES, n)) < np.where(rng.random((CASES, 1)) < 0.5, 0.3, 0.0)
    inputs["candidate_mask"] = ((np.arange(n) < lengths[:, None]) & ~holes).astype(np.float32)
    inputs["event_mask"] = (rng.random((CASES, t)) < rng.choice([0.0, 0.5, 1.0], (CASES, 1))).astype(np.float32)
    for stage in STAGES:
        inputs |= graph.run(stage, inputs)
    for i in range(CASES):
        own = {name: value[i : i + 1] for name, value in inputs.items()}
        real = np.flatnonzero(own["candidate_mask"][0])

        def step(prefixes: NDArray[np.int64], own: Any = own, real: Any = real) -> NDArray[np.float32]:
            if not prefixes.size:
                return own["scores"][:, real]  # type: ignore[no-any-return]
            lists = {"chosen": real[prefixes].astype(np.int32), "chosen_mask": np.ones(prefixes.shape, np.float32)}
            return graph.run("choose", own | lists)["scores"][:, real]

        found = search(step, len(real), reward_of(spec), spec.search)
        assert found is not None
        yield Case(own, real, found)


def worth(graph: Graph, case: Case, order: NDArray[np.int64]) -> float:
    """ListReward in torch."""
    reward, total, alive = reward_of(graph.spec), 0.0, 1.0
    for i, place in enumerate(order):
        lists = {"chosen": order[None, : max(i, 1)].astype(np.int32), "chosen_mask": np.full((1, max(i, 1)), i > 0, np.float32)}
        p = graph.run("choose", case.inputs | lists)["scores"][0, place]
        total += alive * float(reward(p))
        alive *= 1.0 if reward.survival is None else float(p[reward.survival])
    return total


def test_the_cases_are_of_every_kind(cases: dict[Form, list[Case]]) -> None:
    for form, drawn in cases.items():
        assert {case.expected.reason for case in drawn} == {"stable", "length", "exhausted"}
        assert {len(case.real) for case in drawn} >= {0, 1, 2, 12}
        scores = np.concatenate([case.inputs["scores"].ravel() for case in drawn])
        assert min((scores == 0).mean(), (scores == 1).mean()) > 0.03
        rewards = np.sign([case.expected.reward for case in drawn])
        assert set(rewards) == ({-1.0, 0.0, 1.0} if form == "split" else {-1.0, 0.0})


@pytest.mark.parametrize(("format", "convert"), [("onnx", to_onnx.convert), ("tflite", to_tflite.convert)])
def test_the_list_of_an_exported_graph_is_that_of_the_device(
    format: Format, convert: Any, cases: dict[Form, list[Case]], tmp_path: Path
) -> None:
    seen: Counter[str] = Counter()
    for form, drawn in cases.items():
        graph = graph_of(form)
        paths = {stage: tmp_path / f"{form}.{stage if format == 'onnx' else 'all'}" for stage in graph.stages}
        convert(graph, {"fp32": paths})
        runtime = open_stages({"search": paths["search"]}, format)["search"]
        for i, case in enumerate(drawn):
            inputs, places = case.inputs, np.arange(12)
            if runtime.list_sizes is None and i % 2 and len(case.real):  # free shapes: nothing but the real candidates
                places = case.real
                cut = {name: inputs[name][:, places] for name in ("page_state", "candidate_mask")}
                inputs = inputs | cut
            (order,), scores = runtime.run_all({name: np.ascontiguousarray(inputs[name]) for name in runtime.input_names})
            np.testing.assert_allclose(scores, case.inputs["scores"][:, places], atol=1e-5)
            found, expected = places[order[order >= 0]], case.real[case.expected.order]
            assert (order[len(found) :] == -1).all()
            if found.tolist() == expected.tolist():
                seen["same"] += 1
            else:
                assert worth(graph, case, found) == pytest.approx(worth(graph, case, expected), abs=1e-5)
                seen["as good"] += 1
    assert sum(seen.values()) == 2 * CASES
    assert seen["as good"] < 0.02 * CASES


def test_a_weight_that_would_drown_the_bars_is_refused() -> None:
    spec = replace(SPEC, task_weights={"like": -1e19})
    with pytest.raises(UnsupportedError, match=r"Expected at most 1e\+18 for a search, got -1e\+19 - at task_weights\.like"):
        ListSearch(spec, SearchSpec())
