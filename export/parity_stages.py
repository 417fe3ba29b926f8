"""Comparison of an exported model's stages with torch, each on the outputs of the exported stages before it.

After `page`, `event` and `watch`, a whole ranking has been compared with torch, and the scores are those of the whole model.
The list that `search` finds must be torch's, or another one with the same reward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import NDArray

from pocketrank.device.contract import FeatureSpec, Format, Stage
from pocketrank.device.runtimes import OUTPUT_NAMES, ModelRuntimeError, Runtime, open_stages
from pocketrank.export.errors import ParityError
from pocketrank.export.graphs import FREE, OUTPUT, Graph, Inputs
from pocketrank.export.parity import counts, draw_inputs, fit_inputs, measure_ms, parity_cases

__all__ = [
    "REWARD_TOLERANCE",
    "STATE_FACTOR",
    "Answer",
    "StageParity",
    "compare_stages",
    "draw_lists",
    "list_reward",
    "measure_stages",
    "open_answers",
]

REWARD_TOLERANCE = 5e-5
"""Difference up to which the rewards of two lists count as equal: rounding decides which of them is found."""
STATE_FACTOR = 10
"""Tolerance of a state as a multiple of that of a score: states are sums of large terms that may nearly cancel."""
SEARCHES = 32
"""Random searches that are compared in addition to those of the cases."""

Answer = Callable[[Inputs], dict[str, NDArray[Any]]]
"""A stage as a function from inputs, at least those it needs, to outputs, both by name."""


@dataclass(frozen=True)
class StageParity:
    """Comparison of stages with torch."""

    cases: dict[Stage, dict[str, float]]
    """Largest difference from torch by stage and case; that of states is relative to 1 + their largest value."""
    searches: int
    """Number of lists that were searched for."""
    others: int
    """Number of lists that differ from torch's; at full precision their rewards are equal."""


def open_answers(paths: Mapping[Stage, Path], format: Format) -> dict[Stage, Answer]:
    """Open the stages at `paths` as functions, which pad lists to the sizes that a stage was compiled for.

    Raises `pocketrank.device.runtimes.ModelRuntimeError`.
    """
    return {stage: partial(_answer, stage, runtime) for stage, runtime in open_stages(paths, format).items()}


def _answer(stage: Stage, runtime: Runtime, inputs: Inputs) -> dict[str, NDArray[Any]]:
    sizes = counts({name: inputs[name] for name in runtime.input_names})
    answers = zip(OUTPUT_NAMES[stage], runtime.run_all(fit_inputs(runtime, inputs)), strict=True)
    # Copies, because an output may be the runtime's own memory.
    return {name: np.array(value[:, : sizes[FREE[name][1]]] if name in FREE else value) for name, value in answers}


def measure_stages(
    paths: Mapping[Stage, Path], format: Format, spec: FeatureSpec, inputs: Inputs, runs: int
) -> dict[Stage, dict[str, Any]]:
    """Return `p50_ms` of each stage and of the whole model (`parity.measure_ms`), and the `state_width` of a stage's output.

    `paths` are in the order in which stages run. Raises `pocketrank.device.runtimes.ModelRuntimeError`.
    """
    known = {**inputs, **draw_lists(spec, inputs["candidate_mask"].shape[1], seed=0)}
    found: dict[Stage, dict[str, Any]] = {}
    for stage, runtime in open_stages(paths, format).items():
        found[stage] = {"p50_ms": measure_ms(runtime, known, runs)}
        known |= _answer(stage, runtime, known)
        state = next((name for name in OUTPUT_NAMES[stage] if name not in (OUTPUT, "order")), None)
        if state is not None:
            found[stage]["state_width"] = known[state].shape[-1]
    return found


def draw_lists(spec: FeatureSpec, candidates: int, seed: int) -> dict[str, NDArray[Any]]:
    """Draw lists for the stage `choose`, some of them empty; returns no inputs without a search."""
    search = spec.search
    if search is None:
        return {}
    rng, shape = np.random.default_rng(seed), (search.beam, search.steps_max)
    chosen, mask = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
    for places, there in zip(chosen, mask, strict=True):
        first = search.steps_max - int(rng.integers(0, min(candidates, search.steps_max) + 1))
        places[first:] = rng.permutation(candidates)[: search.steps_max - first]
        there[first:] = 1
    return {"chosen": chosen, "chosen_mask": mask}


def compare_stages(
    graph: Graph, answers: Mapping[Stage, Answer], *, where: str, tolerance: float | None = None, seed: int = 0
) -> StageParity:
    """Compare the stages of a model with torch, on the whole model's cases and, for a search, on random ones as well.

    `answers` are in the order in which stages run. Raises `ParityError` for a wrong shape, an output that is not finite, a
    failed run, or a malformed list; with a `tolerance` also for a larger difference (of states, `STATE_FACTOR` times larger)
    and for a list with another reward than torch's.
    """
    spec, rng = graph.spec, np.random.default_rng(seed)
    inputs = parity_cases(spec, graph.form, seed)
    for i in range(SEARCHES if "search" in answers else 0):
        n, t = (int(rng.integers(1, largest + 1)) for largest in (spec.candidates_max, spec.events_max))
        inputs[f"search {i}"] = draw_inputs(spec, graph.form, n, t, seed + 100 + i)
    cases: dict[Stage, dict[str, float]] = {stage: {} for stage in answers}
    others = 0
    for i, (case, given) in enumerate(inputs.items()):
        ours = theirs = given | draw_lists(spec, given["candidate_mask"].shape[1], seed + i)
        for stage, answer in answers.items():
            at = f"{where}, {stage}, case {case}"
            expected = graph.run(stage, ours)
            try:
                got = answer(theirs)
            except ModelRuntimeError as error:
                raise ParityError(at, "an answer", str(error)) from error
            cases[stage][case] = max(_difference(at, n, got[n], expected[n], tolerance) for n in got if n in FREE)
            if stage == "search":
                others += _differs(at, graph, ours, got["order"], expected["order"], tolerance)
            else:
                ours, theirs = ours | expected, theirs | got
    return StageParity(cases, len(inputs) if "search" in answers else 0, others)


def list_reward(graph: Graph, inputs: Inputs, order: Int[NDArray[np.int32], " l"]) -> float:
    """Return the reward of the list `order`, padded at the back by -1, with torch's scores.

    `inputs` are those of the stage `search`, and `ready`.
    """
    spec, total, alive = graph.spec, 0.0, 1.0
    for i, place in enumerate(order[order >= 0]):
        chosen = {"chosen": order[None, : max(1, i)], "chosen_mask": np.full((1, max(1, i)), float(i > 0), np.float32)}
        p = dict(zip(spec.tasks, graph.run("choose", {**inputs, **chosen})[OUTPUT][0, place], strict=True))
        total += alive * sum(weight * float(p[task]) for task, weight in spec.task_weights.items())
        alive *= 1.0 if spec.survival_task is None else float(p[spec.survival_task])
    return total


def _difference(where: str, name: str, got: NDArray[Any], expected: NDArray[Any], tolerance: float | None) -> float:
    if got.shape != expected.shape:
        raise ParityError(where, f"`{name}` {list(expected.shape)}", f"{list(got.shape)}")
    if not np.isfinite(got).all():
        raise ParityError(where, f"a finite `{name}`", "NaN or infinity")
    size, factor = (1.0, 1) if name == OUTPUT else (1 + float(np.abs(expected).max()), STATE_FACTOR)
    difference = float(np.abs(got - expected).max()) / size
    if tolerance is not None and difference > factor * tolerance:
        raise ParityError(where, f"torch's `{name}` within {factor * tolerance:g}", f"a difference of {difference:.3g}")
    return difference


def _differs(
    where: str, graph: Graph, inputs: Inputs, got: NDArray[Any], expected: NDArray[Any], tolerance: float | None
) -> bool:
    """Return whether a list differs from the expected one. Raises `ParityError` for a malformed list or another reward."""
    order = got[0]
    places, mask = order[order >= 0], inputs["candidate_mask"][0]
    if (
        got.shape != expected.shape
        or (order[: len(places)] < 0).any()
        or len(set(places.tolist())) < len(places)
        or not (mask[places[places < len(mask)]] > 0).all()
        or (places >= len(mask)).any()
    ):
        raise ParityError(where, "a list of distinct candidates, padded at the back", str(got.tolist()))
    if (got == expected).all():
        return False
    worth, best = (list_reward(graph, inputs, x[0]) for x in (got, expected))
    if tolerance is not None and abs(worth - best) > REWARD_TOLERANCE:
        raise ParityError(where, f"the list {expected[0].tolist()}, worth {best:.6g}", f"{order.tolist()}, worth {worth:.6g}")
    return True
