"""Holding the stages of an exported model to torch, one after the other, each on what the exported ones before it made.

So what is compared with torch after `page`, `event` and `watch` is a whole ranking, and the scores that come out are those that
the whole model gives. The list that `search` finds has to be torch's, unless another one is worth the same.
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
from pocketrank.export.parity import counts, draw_inputs, fitting, measure_ms, parity_cases

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
"""Two lists whose rewards differ by less are worth the same: which of them is found is a matter of rounding."""
STATE_FACTOR = 10
"""States are sums of large terms that may nearly cancel; what is held to the tolerance itself are the scores made of them."""
SEARCHES = 32
"""Random searches that are compared beside those of the cases."""

Answer = Callable[[Inputs], dict[str, NDArray[Any]]]
"""A stage: its outputs by name from inputs that have at least its own."""


@dataclass(frozen=True)
class StageParity:
    """How stages compare with torch."""

    cases: dict[Stage, dict[str, float]]
    """Largest difference to torch by stage and case: of scores, and of states relative to 1 + their largest value."""
    searches: int
    """Lists searched for."""
    others: int
    """Of them those that are not torch's; at full precision they are worth the same."""


def open_answers(paths: Mapping[Stage, Path], format: Format) -> dict[Stage, Answer]:
    """The stages at `paths`, read from disk. Lists are padded to the sizes that a stage was compiled for.

    Raises `pocketrank.device.runtimes.ModelRuntimeError`.
    """
    return {stage: partial(_answer, stage, runtime) for stage, runtime in open_stages(paths, format).items()}


def _answer(stage: Stage, runtime: Runtime, inputs: Inputs) -> dict[str, NDArray[Any]]:
    sizes = counts({name: inputs[name] for name in runtime.input_names})
    answers = zip(OUTPUT_NAMES[stage], runtime.run_all(fitting(runtime, inputs)), strict=True)
    # copies, because an answer may be the runtime's own memory
    return {name: np.array(value[:, : sizes[FREE[name][1]]] if name in FREE else value) for name, value in answers}


def measure_stages(
    paths: Mapping[Stage, Path], format: Format, spec: FeatureSpec, inputs: Inputs, runs: int
) -> dict[Stage, dict[str, Any]]:
    """`p50_ms` of each stage and the whole model (`parity.measure_ms`), and the `state_width` of what a stage hands on.

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
    """Random lists for the stage `choose`, some of them empty; nothing without a search."""
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
    """How the stages of a model compare with torch, on the whole model's cases and, where there is a search, on random ones.

    `answers` are in the order in which stages run. Raises `ParityError` for a wrong shape, an answer that is not finite, a
    failed run, a list that is none; and with a `tolerance` for a larger difference, of states `STATE_FACTOR` times that, and
    for a list that is not worth what torch's is.
    """
    spec, rng = graph.spec, np.random.default_rng(seed)
    inputs = parity_cases(spec, graph.form, seed)
    for i in range(SEARCHES if "search" in answers else 0):
        n, t = (int(rng.integers(1, most + 1)) for most in (spec.candidates_max, spec.events_max))
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
                others += _is_other(at, graph, ours, got["order"], expected["order"], tolerance)
            else:
                ours, theirs = ours | expected, theirs | got
    return StageParity(cases, len(inputs) if "search" in answers else 0, others)


def list_reward(graph: Graph, inputs: Inputs, order: Int[NDArray[np.int32], " l"]) -> float:
    """What a list is worth to torch; `inputs` are those of the stage `search`, with `ready`. It is padded at the back by -1."""
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


def _is_other(
    where: str, graph: Graph, inputs: Inputs, got: NDArray[Any], expected: NDArray[Any], tolerance: float | None
) -> bool:
    """Whether a list is another one than expected."""
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
