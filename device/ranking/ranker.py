"""The ranker: the models of a bundle, and the order that they give to the candidates that a session still holds.

A bundle holds the whole model or its stages (`FeatureSpec`). With stages, a page is encoded when it arrives and an event when
it has ended, so that a swipe computes only what depends on the moment. When the spec has a list search, the order begins with
the best list (`pocketrank.device.model.search`). One graph finds that list; in a bundle without that graph the stages find it
step by step.

A `Ranker` is opened once, and all sessions and threads share it; it keeps nothing of a session. The arrays that it reads belong
to the session (`Remaining`, `EventHistory`) and are passed to the runtime in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import NoSuchModelError
from pocketrank.device.contract import FeatureSpec, Form, Format, Group, PagingModel, Precision, SearchSpec, Stage
from pocketrank.device.model.features import FeatureBuilder, PageArrays
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.model.search import GREEDY, Reward, search
from pocketrank.device.runtimes import STAGES, Runtime, RuntimeLoadError, RuntimeRunError, open_stages, stage_inputs

__all__ = ["Adjust", "Moment", "Ranker", "Ranking"]

Adjust: TypeAlias = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""A user's own probabilities f32 [n, K] of the first n remaining candidates, from the model's. It is called with the
probabilities of being the next item, and by a search with those of following other items. Its argument may be memory that the
next run overwrites."""


class Moment(NamedTuple):
    """What a session's order depends on."""

    remaining: Remaining
    """candidates that were not shown yet"""
    history: EventHistory
    context: NDArray[np.float32]
    """[1, Fx]"""
    now_ms: int
    position: int
    """impressions so far"""


class Ranking(NamedTuple):
    """An order of the `count` candidates that a session holds, of which the model scored the first n in cloud order."""

    order: NDArray[np.intp]
    """[count] indices, best first"""
    values: NDArray[np.float32]
    """[n] reward of showing each next: the weighted sum of its scores"""
    scores: NDArray[np.float32]
    """[n, K] probabilities of being the next item"""


class Ranker:
    """Scorer and order of candidates by the model of a form. It is as thread-safe as its runtimes."""

    def __init__(
        self,
        spec: FeatureSpec,
        split_version: str,
        runtimes: Mapping[Form, Mapping[Stage, Runtime]],
        search: SearchSpec | None = None,
        name: str | None = None,
        paging: PagingModel | None = None,
    ) -> None:
        """`search` replaces the spec's own. The spec's own is left out for a form without the stages that it needs. `name` is
        for reports, `paging` the bundle's paging model.

        Raises `DecodeError` for a spec that no device can follow, `RuntimeLoadError` for a model that does not fit the spec or
        cannot do `search`.
        """
        self.spec, self.split_version, self.name, self.paging = spec, split_version, name, paging
        self.runtimes = {form: dict(stages) for form, stages in runtimes.items()}
        self.builder = FeatureBuilder(spec)
        self.search = search or spec.search or GREEDY
        """How the order is made: the best next item, or the best list."""
        weights = [spec.task_weights.get(task, 0.0) for task in spec.tasks]
        self._reward = Reward(weights, None if spec.survival_task is None else spec.tasks.index(spec.survival_task))
        # Negative, so that ascending order is best first.
        self._weights = -self._reward.weights
        # Every form must be able to rank: reject at opening what would otherwise fail at a swipe.
        for form, stages in self.runtimes.items():
            if not ("whole" in stages or set(STAGES) <= set(stages)):
                raise RuntimeLoadError(form, f"the whole model or {', '.join(STAGES)}", ", ".join(stages) or "none")
            if search is not None and not self._searches(stages):
                raise RuntimeLoadError(form, "the stage `choose`, to search for lists", ", ".join(stages))
            for stage, runtime in stages.items():
                if unknown := set(runtime.input_names) - set(stage_inputs(form, stage)):
                    raise RuntimeLoadError(f"{form} {stage}", f"inputs of the {form} form", ", ".join(sorted(unknown)))
                if runtime.events is not None and stage != "event" and runtime.events != spec.events_max:
                    expected = f"{spec.events_max} events, the spec's `events_max`"
                    raise RuntimeLoadError(f"{form} {stage}", expected, str(runtime.events))
        # The largest static shape decides how much padding the session's arrays need.
        sizes = [s for stages in self.runtimes.values() for k, r in stages.items() if k != "event" for s in r.list_sizes or ()]
        largest = max([1, *sizes])
        self._mask = np.repeat(np.array([[1, 0]], np.float32), max(largest, spec.candidates_max), axis=1)
        self.rows = largest
        """Smallest number of rows that a `Remaining` must have, for models with static shapes."""
        self._state_width: dict[Form, int] = {}
        for form in self.runtimes:
            self._try(form)

    @classmethod
    def open(
        cls,
        bundle: Bundle,
        format: Format = "onnx",
        precision: Precision = "fp32",
        search: SearchSpec | None = None,
        group: Group | None = None,
        threads: int = 1,
    ) -> Ranker:
        """Open the bundle's models of one format and precision for users of `group` (`Bundle.group`).

        Each model runs on `threads` threads. Raises `NoSuchModelError` when the bundle has no such model, `RuntimeLoadError`
        when a model cannot be used, and `CorruptBundleError` when its file was changed since the bundle was opened.
        """
        forms = bundle.forms(format, precision, group)
        if not forms:
            raise NoSuchModelError(str(bundle.folder), f"a model {format} {precision}", "none")
        runtimes: dict[Form, dict[Stage, Runtime]] = {}
        for form in forms:
            paths = bundle.stages(form, format, precision, group)
            if set(STAGES) <= set(paths):  # the whole model would only take memory
                paths = {stage: path for stage, path in paths.items() if stage != "whole"}
            runtimes[form] = open_stages(paths, format, threads, bundle.read_model)
        manifest = bundle.manifest
        name = f"{manifest.name}/{manifest.serial}"
        return cls(bundle.spec, bundle.split_version, runtimes, search, name, manifest.paging)

    def _try(self, form: Form) -> None:
        """Run once on zeros, so that shapes that disagree with the spec fail here and not at a user's first swipe."""
        n, spec = self.rows, self.spec
        zeros = PageArrays(
            item_id=np.arange(n),
            floats=np.zeros((n, len(spec.candidate_floats)), np.float32),
            categories=np.zeros((n, len(spec.candidate_categories)), np.int32),
            vector=np.zeros((n, spec.vector_width), np.float32),
            user_vector=np.zeros((1, spec.vector_width), np.float32),
        )
        context = np.zeros((1, len(spec.context_floats)), np.float32)
        remaining = Remaining(zeros, n)
        try:
            self.prepare(form, remaining)
            order = self.order(form, Moment(remaining, EventHistory(spec), context, 0, 0))
        except RuntimeRunError as err:
            raise RuntimeLoadError(form, "a model that runs on the spec's inputs", str(err)) from err
        if order is None:
            raise RuntimeLoadError(form, "finite scores for inputs of zeros", "NaN or infinity")

    def prepare(self, form: Form, remaining: Remaining) -> None:
        """Compute what depends on a page alone, once it has arrived. Raises `RuntimeRunError`."""
        stage = self.runtimes[form].get("page")
        if stage is None:
            return
        states, at, count = [], 0, remaining.count
        while at < count:
            size = stage.size_for(count - at)
            # A static size may reach past the last row; the window then moves back and covers some rows twice.
            first = max(0, min(at, remaining.floats.shape[1] - size))
            rows = slice(first, first + size)
            state = stage.run(self._taken(stage, self._candidates(form, remaining, rows)))[0]
            states.append(state[at - first : count - first])
            at += len(states[-1])
        remaining.attach(np.concatenate(states))

    def inputs(
        self, form: Form, moment: Moment, stages: Mapping[Stage, Runtime] | None = None
    ) -> tuple[dict[str, NDArray[Any]], int]:
        """Return the inputs of the whole model, or of its stage `watch` or `search`, and how many candidates they hold.

        The inputs are views. They hold the first remaining candidates in cloud order, up to `candidates_max` and the largest
        list size of the model. `stages` are the form's, or some of them.
        """
        remaining, history, context, now_ms, position = moment
        stages = stages or self.runtimes[form]
        runtime = self._last(stages)
        count = min(remaining.count, self.spec.candidates_max)
        size = runtime.size_for(count)
        count = min(count, size)
        # Few exported graphs can run on an axis of length 0, so an empty history is one masked row.
        length = history.max if runtime.events is not None else max(1, history.count)
        start = self._mask.shape[1] // 2 - count
        if "watch" in stages:
            event = stages["event"]
            history.encode(form, self._width(form), event.list_sizes, lambda inputs: event.run(self._taken(event, inputs)))
            inputs = history.moment(length, now_ms, position)
            inputs["event_state"] = history.states(length)
            assert remaining.state is not None
            inputs["page_state"] = remaining.state[:, :size]
        else:
            inputs = history.inputs(length, now_ms, position) | self._candidates(form, remaining, slice(size))
        inputs["candidate_mask"] = self._mask[:, start : start + size]
        inputs["context"] = context
        if form == "split" and remaining.page.user_vector is not None:
            inputs["user_vector"] = remaining.page.user_vector
        return self._taken(runtime, inputs), count

    def order(
        self, form: Form, moment: Moment, adjust: Adjust | None = None, search: SearchSpec | None = None
    ) -> Ranking | None:
        """Return the remaining candidates best first, or None when a score is not finite.

        The list that the search finds comes first. The others follow by the weighted sum of their scores as the next item, ties
        in cloud order. Candidates with equal features have equal scores and keep cloud order, also in the list. What is beyond
        the candidates that the model takes follows in cloud order. What remains must have been prepared (`prepare`). `search`
        replaces the ranker's own for this order.

        With `adjust`, it is applied to all scores. A graph's own search cannot include it, so lists are then searched for with
        the stage `choose`, and not at all in a bundle without that stage. Raises `RuntimeRunError`.
        """
        stages, search = self.runtimes[form], search or self.search
        if adjust is not None or search != self.search:
            stages = {stage: runtime for stage, runtime in stages.items() if stage != "search"}
        inputs, count = self.inputs(form, moment, stages)
        # Scores of each candidate as the next item: one run, whatever the search is.
        outputs = self._last(stages).run_all(inputs)
        scores = outputs[1] if self._in_graph(stages) else outputs[0]
        if scores.ndim != 3 or scores.shape[0] != 1 or scores.shape[1] < count or scores.shape[2] != len(self._weights):
            raise RuntimeRunError("scores", f"[1, {count}, {len(self._weights)}]", str(list(scores.shape)))
        if adjust is not None:
            scores = adjust(scores[0, :count])[None]
        loss = np.vecdot(scores[0, :count], self._weights)
        # The kernels of a runtime round a candidate by its place in the list, so equal ones take the scores of the first.
        alike = moment.remaining.alike(count)
        if alike is not None:
            scores, loss = scores[:, alike], loss[alike]
        best = loss.argsort(kind="stable")
        # Sorting puts infinities at the ends and NaN last, so the two ends are enough to check.
        if not (math.isfinite(loss[best[0]]) and math.isfinite(loss[best[-1]])):
            return None
        # A list search decides the first places; the others keep their order.
        if search.steps_max > 1 and self._searches(stages):
            in_graph = self._in_graph(stages)
            found = outputs[0][0] if in_graph else self._search(stages, inputs, scores, outputs[1], count, adjust, search)
            if found is None:
                return None
            found = found[: int((found >= 0).sum())]
            places = found.tolist()
            if places and (max(places) >= count or len(set(places)) < len(places)):
                raise RuntimeRunError("order", f"places in 0..{count - 1}, each once", str(places))
            best = _first(found, best)
            if alike is not None:
                best = _in_cloud_order(best, alike)
        if count < moment.remaining.count:
            best = np.concatenate([best, np.arange(count, moment.remaining.count)])
        return Ranking(best, -loss, scores[0, :count])

    def _search(
        self,
        stages: Mapping[Stage, Runtime],
        inputs: Mapping[str, NDArray[Any]],
        scores: NDArray[np.float32],
        ready: NDArray[np.float32],
        count: int,
        adjust: Adjust | None,
        spec: SearchSpec,
    ) -> NDArray[np.int64] | None:
        """Return the best list, found step by step with the stage `choose`."""
        choose, beam, longest = stages["choose"], spec.beam, spec.steps_max
        chosen, mask = np.zeros((beam, longest), np.int32), np.zeros((beam, longest), np.float32)

        def step(prefixes: NDArray[np.int64]) -> NDArray[np.float32]:
            rows, length = prefixes.shape
            if length == 0:
                return scores[:, :count]
            chosen[:rows, longest - length :] = prefixes
            mask[:, longest - length :] = 1
            own = {"ready": ready, "page_state": inputs["page_state"], "chosen": chosen, "chosen_mask": mask}
            following = choose.run(own)[:rows, :count]
            return following if adjust is None else np.stack([adjust(scores) for scores in following])

        result = search(step, count, self._reward, spec)
        return None if result is None else result.order

    def _searches(self, stages: Mapping[Stage, Runtime]) -> bool:
        """Return whether `stages` can do the ranker's search. A spec's own search is left out where they cannot."""
        return self.search.steps_max == 1 or "choose" in stages or self._in_graph(stages)

    def _in_graph(self, stages: Mapping[Stage, Runtime]) -> bool:
        """Return whether a graph does the list search, which it can for the spec's own search only."""
        return "search" in stages and self.search == self.spec.search

    def _last(self, stages: Mapping[Stage, Runtime]) -> Runtime:
        return stages["search" if self._in_graph(stages) else "watch" if "watch" in stages else "whole"]

    def _width(self, form: Form) -> int:
        """Return the width E of an event's state."""
        if form not in self._state_width:
            event, spec = self.runtimes[form]["event"], self.spec
            blank = EventHistory(spec).inputs((event.list_sizes or (1,))[0], 0, 0)
            self._state_width[form] = event.run(self._taken(event, blank)).shape[2]
        return self._state_width[form]

    def _candidates(self, form: Form, remaining: Remaining, rows: slice) -> dict[str, NDArray[Any]]:
        inputs: dict[str, NDArray[Any]] = {
            "candidate_float": remaining.floats[:, rows],
            "candidate_category": remaining.categories[:, rows],
        }
        if form == "split" and remaining.vector is not None and remaining.page.user_vector is not None:
            inputs["candidate_vector"] = remaining.vector[:, rows]
            inputs["user_vector"] = remaining.page.user_vector
        return inputs

    @staticmethod
    def _taken(runtime: Runtime, inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return those of the inputs that the graph takes."""
        if len(inputs) > len(runtime.input_names):
            return {name: inputs[name] for name in runtime.input_names if name in inputs}
        return inputs


def _in_cloud_order(order: NDArray[np.intp], alike: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return `order` with the candidates of one number of `alike` in cloud order, in the places that they have together."""
    exchanged = np.empty_like(order)
    exchanged[alike[order].argsort(kind="stable")] = alike.argsort(kind="stable")
    return exchanged


def _first(found: NDArray[Any], order: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return `found`, then the rest of `order`."""
    left = np.ones(len(order), np.bool_)
    left[found] = False
    return np.concatenate([found, order[left[order]]])
