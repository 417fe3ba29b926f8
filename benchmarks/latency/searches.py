"""Searches for the best list: in the graph against step by step on the host, and what each step of the beam brings and costs.

A search works on a moment: a page of full length and the events before it, as a session would hold them.
"""

from __future__ import annotations

import time
from itertools import cycle

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from benchmarks.errors import BenchmarkError
from benchmarks.latency.subject import LatencySubject
from benchmarks.latency.timed import Timed
from pocketrank.device.contract import Form, Format, SearchSpec
from pocketrank.device.model.features import PageArrays
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.model.search import Reward, search
from pocketrank.device.ranking.ranker import Moment, Ranker
from pocketrank.device.runtimes import open_stages
from pocketrank.export.graphs import Inputs

__all__ = ["PUBLISHED", "STEPS", "BeamBench", "SearchBench", "moment_of"]

STEPS = 5
"""Steps of the beam that are reported one by one."""
PUBLISHED = {"stability": [0.6715, 0.9421, 0.9915, 0.9939, 0.9954], "relative_cost": [1.0, 1.85, 2.77, 3.91, 4.89]}
"""Figures that Gong et al. (CIKM 2022) report for their model and data, by number of steps."""
NOW_MS = 1_700_000_000_000
"""Time of every moment; events lie before it."""


def moment_of(ranker: Ranker, form: Form, inputs: Inputs) -> Moment:
    """Return the moment at which the whole model would get `inputs`, its page prepared."""

    def items(what: str) -> PageArrays:
        floats, vector = inputs[f"{what}_float"][0], inputs.get(f"{what}_vector")
        return PageArrays(
            item_id=np.arange(len(floats)),
            floats=floats,
            categories=inputs[f"{what}_category"][0],
            vector=None if vector is None else vector[0],
            user_vector=inputs.get("user_vector"),
        )

    remaining, history = Remaining(items("candidate"), ranker.rows), EventHistory(ranker.spec)
    ranker.prepare(form, remaining)
    position = int(inputs["context"][0, 0])
    events = items("event")
    for row in np.flatnonzero(inputs["event_mask"][0]).tolist():
        seconds, positions = inputs["event_gap"][0, row].tolist()
        history.append(NOW_MS - int(seconds * 1e3), position - int(positions), inputs["event_feedback"][0, row], events, row)
    return Moment(remaining, history, inputs["context"], NOW_MS, position)


class SearchBench(Timed):
    """Orders of the same moments, one after the other, with the list search in the graph or on the host."""

    def __init__(self, subject: LatencySubject, form: Form, format: Format, lists: list[Inputs], *, host: bool) -> None:
        """Raises `ModelRuntimeError`."""
        bundle = subject.bundle
        left_out = ("whole", "search") if host else ("whole",)
        paths = {stage: path for stage, path in bundle.stages(form, format).items() if stage not in left_out}
        self._form = form
        self._ranker = Ranker(bundle.spec, bundle.split_version, {form: open_stages(paths, format)})
        self._moments = [moment_of(self._ranker, form, inputs) for inputs in lists]
        self.orders = [self._order(moment) for moment in self._moments]
        moments = cycle(self._moments)
        super().__init__(self._order, lambda: (next(moments),))

    def steps(self) -> float:
        """Mean number of items that a search in the graph decides."""
        graph, decided = self._ranker.runtimes[self._form]["search"], []
        for m in self._moments:
            inputs, _ = self._ranker.inputs(self._form, m)
            decided.append(int((graph.run(inputs) >= 0).sum()))
        return float(np.mean(decided))

    def _order(self, m: Moment) -> NDArray[np.intp]:
        ranking = self._ranker.order(self._form, m)
        if ranking is None:
            raise BenchmarkError("a search", "finite scores", "none")
        return ranking.order


class BeamBench:
    """Searches on the host that never stop early, and the time at which each step is done."""

    def __init__(self, subject: LatencySubject, form: Form, format: Format, lists: list[Inputs]) -> None:
        """Raises `ModelRuntimeError`."""
        bundle = subject.bundle
        spec = bundle.spec
        assert spec.search is not None
        stages = bundle.stages(form, format)
        runtimes = open_stages({stage: stages[stage] for stage in ("page", "event", "watch", "choose")}, format)
        self._ranker = Ranker(spec, bundle.split_version, {form: runtimes})
        self._form, self._choose = form, runtimes["choose"]
        self._moments = [moment_of(self._ranker, form, inputs) for inputs in lists]
        weights = [spec.task_weights.get(task, 0.0) for task in spec.tasks]
        self._reward = Reward(weights, None if spec.survival_task is None else spec.tasks.index(spec.survival_task))
        self._longest = spec.search.steps_max
        steps = min(STEPS, self._longest, spec.candidates_max)
        self._search = replace(spec.search, list_size=steps, steps_max=steps)
        self._next = 0
        self.ns: list[list[int]] = []
        """By search, from its start to the end of each step."""
        self.stability: list[tuple[float, ...]] = []

    @property
    def search(self) -> SearchSpec:
        """Settings of the search."""
        return self._search

    def step(self) -> None:
        """One timed search. A step is done when the next one begins."""
        m = self._moments[self._next % len(self._moments)]
        self._next += 1
        begun: list[int] = []
        chosen, mask = (np.zeros((self._search.beam, self._longest), kind) for kind in (np.int32, np.float32))
        start = time.perf_counter_ns()
        inputs, count = self._ranker.inputs(self._form, m)
        scores, ready = self._ranker.runtimes[self._form]["watch"].run_all(inputs)

        def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
            rows, length = prefixes.shape
            if length == 0:
                return scores[:, :count]
            begun.append(time.perf_counter_ns())
            chosen[:rows, -length:] = prefixes
            mask[:, -length:] = 1
            own = {"ready": ready, "page_state": inputs["page_state"], "chosen": chosen, "chosen_mask": mask}
            return self._choose.run(own)[:rows, :count]

        result = search(step, count, self._reward, self._search)
        end = time.perf_counter_ns()
        if result is None or result.steps < self._search.steps_max:
            raise BenchmarkError(
                "a beam search", f"{self._search.steps_max} steps", "none" if result is None else result.reason
            )
        self.ns.append([at - start for at in (*begun, end)])
        self.stability.append(result.stability)

    def forget(self) -> None:
        """Discard the searches so far."""
        self.ns.clear()
        self.stability.clear()

    def figures(self) -> dict[str, list[float]]:
        """By number of steps: mean stability, and the median time to get there as a multiple of that of the first."""
        done = np.median(self.ns, axis=0)
        return {"stability": np.mean(self.stability, axis=0).tolist(), "relative_cost": (done / done[0]).tolist()}
