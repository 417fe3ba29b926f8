"""The probe that a bundle must pass on this device before it is used: it opens, scores as at export, and is fast.

It must also return a probability for everything that a page may hold: every code of every category, and each float at its
limits. A model may be signed by the right key and still be broken; one embedding row of NaN would otherwise reach a feed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import CorruptBundleError, ProbeError
from pocketrank.device.codec import from_block
from pocketrank.device.contract import BlockError, FeatureSpec, FloatFeature, Form, Format, Golden, GoldenCase, Group, Precision
from pocketrank.device.model.features import PageArrays
from pocketrank.device.model.history import GAP_POSITIONS_MAX, GAP_SECONDS_MAX, EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.ranking.ranker import Moment, Ranker
from pocketrank.device.runtimes.base import RuntimeRunError

__all__ = ["ProbeConfig", "probe"]

_NOW_MS = 1 << 40  # any time; only the gaps before it matter


@dataclass(frozen=True)
class ProbeConfig:
    """How much a probe tries, and its limits."""

    codes_max: int = 1 << 17
    """Maximum number of codes to try of a category, evenly spaced. With pages of 60 that takes some 2,000 runs."""
    vector_max: float = 8.0
    """Largest element of vectors to try. Real elements are of order 1."""
    ms_max: float = 50.0
    """Longest median run in ms: three frames at 60 per second."""
    seconds_max: float = 30.0
    """Longest duration of the whole probe. It runs in the background; a sweep of 2,000 runs of .2 ms takes half a second."""
    give_up_s: float = 60.0
    """Duration after which a probe is given up on in the middle of a run, which cannot be ended: the model is rejected, and its
    thread goes on until the process ends (an orderly exit may abort in onnxruntime then). Twice `seconds_max`, which is looked
    at between two runs."""
    slack: float = 1e-3
    """Distance by which a probability may exceed 0 and 1, for rounding."""


class _Inputs(NamedTuple):
    """All inputs of an order."""

    page: PageArrays
    events: PageArrays
    feedback: NDArray[np.float32]
    """[T, Fb]"""
    gap: NDArray[np.float64]
    """[T, 2] seconds and positions, descending"""
    context: NDArray[np.float32]
    """[1, Fx]"""


def probe(
    bundle: Bundle,
    ranker: Ranker,
    format: Format = "onnx",
    precision: Precision = "fp32",
    group: Group | None = None,
    config: ProbeConfig | None = None,
) -> None:
    """Try `ranker`, opened from `bundle` with that format, precision and group. Raises `ProbeError`."""
    run = _Run(str(bundle.folder), ranker, config or ProbeConfig())
    try:
        golden = bundle.golden()
    except CorruptBundleError as err:  # its digest is right, so it was exported like this
        raise ProbeError(err.where, err.expected, err.got) from err
    if golden is not None:
        _compare(run, golden, format, precision, group)
    for form in ranker.runtimes:
        for moment in _sweep(ranker, form, run.config):
            run(form, moment)
    if (ms := median(run.ms)) > run.config.ms_max:
        raise ProbeError(run.where, f"a median run of at most {run.config.ms_max:g} ms", f"{ms:.1f} ms")


class _Run:
    """A ranker that is run as a session would run it."""

    def __init__(self, where: str, ranker: Ranker, config: ProbeConfig) -> None:
        self.where, self.ranker, self.config = where, ranker, config
        self.ms: list[float] = []
        self._until = time.monotonic() + config.seconds_max

    def __call__(self, form: Form, moment: _Inputs) -> NDArray[np.float32]:
        """Return the scores [n, tasks]. Raises `ProbeError` when they are not probabilities, and when the probe is too slow."""
        ranker, position, seen = self.ranker, GAP_POSITIONS_MAX, []
        held = Remaining(moment.page, ranker.rows)
        history = EventHistory(ranker.spec)
        for row, (seconds, positions) in enumerate(moment.gap.tolist()):
            at = _NOW_MS - round(seconds * 1000)
            history.append(at, position - round(positions), moment.feedback[row], moment.events, row)

        def keep(scores: NDArray[np.float32]) -> NDArray[np.float32]:
            seen.append(scores.copy())
            return scores

        now = Moment(held, history, moment.context, _NOW_MS, position)
        start = time.perf_counter_ns()
        try:
            ranker.prepare(form, held)
            ranking = ranker.order(form, now)
            self.ms.append((time.perf_counter_ns() - start) / 1e6)
            ranker.order(form, now, keep)
        except (RuntimeRunError, IndexError, ValueError) as err:  # a search may return indices that do not exist
            raise ProbeError(self.where, f"a {form} model that runs", str(err)) from err
        scores = seen[0]
        slack = self.config.slack
        if ranking is None or not np.all((scores >= -slack) & (scores <= 1 + slack)):  # NaN is neither
            raise ProbeError(self.where, f"probabilities from the {form} model", "NaN, infinity, or a number beyond 0..1")
        if not np.array_equal(np.sort(ranking.order), np.arange(len(ranking.order))):
            raise ProbeError(self.where, f"each candidate once from the {form} model's search", "another list")
        if time.monotonic() > self._until:
            raise ProbeError(self.where, f"a probe of at most {self.config.seconds_max:g} s", "a longer one")
        return scores


def _compare(run: _Run, golden: Golden, format: Format, precision: Precision, group: Group | None) -> None:
    """Compare the models' scores with the recorded ones."""
    limits = {(t.form, t.format, t.precision): t.max_diff for t in golden.tolerances}
    for i, case in enumerate(golden.cases):
        limit = limits.get((case.form, format, precision))
        if case.form not in run.ranker.runtimes or case.group not in (None, group) or limit is None:
            continue
        try:
            moment, expected = _read(case, run.ranker.spec)
        except BlockError as err:
            raise ProbeError(run.where, f"a golden case {i} of the spec's shapes", str(err)) from err
        scores = run(case.form, moment)
        if scores.shape != expected.shape:
            raise ProbeError(run.where, f"golden scores {list(expected.shape)}", str(list(scores.shape)))
        if not (diff := float(np.abs(scores - expected).max())) <= limit:
            raise ProbeError(
                run.where, f"the {case.form} model's golden scores within {limit:g}", f"a difference of {diff:.3g}"
            )


def _read(case: GoldenCase, spec: FeatureSpec) -> tuple[_Inputs, NDArray[np.float32]]:
    """Return a case as arrays, and its scores. Raises `BlockError` for other shapes than the spec's."""
    wide = {"float": len(spec.candidate_floats), "category": len(spec.candidate_categories), "vector": spec.vector_width}

    def block(name: str, rows: int | None, width: int) -> NDArray[np.float32]:
        if name not in case.inputs:
            raise BlockError(f"$.{name}", "a block", "none")
        value = from_block(case.inputs[name], f"$.{name}", dtype="i4" if name.endswith("category") else "f4", ndim=2)
        if value.shape[1] != width or rows not in (None, len(value)):
            raise BlockError(f"$.{name}", f"[{'n' if rows is None else rows}, {width}]", str(list(value.shape)))
        return value

    def items(kind: str, user: NDArray[np.float32] | None) -> PageArrays:
        floats = block(f"{kind}_float", None, wide["float"])
        n = len(floats)
        return PageArrays(
            item_id=np.arange(n),
            floats=floats,
            categories=block(f"{kind}_category", n, wide["category"]).astype(np.int32),
            vector=None if user is None else block(f"{kind}_vector", n, wide["vector"]),
            user_vector=user,
        )

    user = block("user_vector", 1, wide["vector"]) if case.form == "split" else None
    page, events = items("candidate", user), items("event", user)
    t = len(events.item_id)
    if t > spec.events_max:
        raise BlockError("$.event_float", f"at most {spec.events_max} rows", str(t))
    moment = _Inputs(
        page,
        events,
        block("event_feedback", t, len(spec.feedback_floats)),
        block("event_gap", t, 2).astype(np.float64),
        block("context", 1, len(spec.context_floats)),
    )
    return moment, from_block(case.scores, "$.scores", dtype="f4", ndim=2)


def _sweep(ranker: Ranker, form: Form, config: ProbeConfig) -> Iterator[_Inputs]:
    """Yield pages that together hold every code and every limit, as candidates and as events."""
    spec = ranker.spec
    fixed = [s for stage, r in ranker.runtimes[form].items() if stage != "event" for s in r.list_sizes or ()]
    step = min([spec.candidates_max, spec.events_max, *([max(fixed)] if fixed else [])])
    floats, feedback = _limits(spec.candidate_floats), _limits(spec.feedback_floats)
    contexts, codes = _limits(spec.context_floats), [_codes(c.size, config.codes_max) for c in spec.candidate_categories]
    rows = max(len(floats), len(feedback), len(contexts) * step, *(len(c) for c in codes), 1)
    for number, start in enumerate(range(0, rows, step)):
        at = np.arange(start, start + step)
        value = (0.0, config.vector_max, -config.vector_max)[number % 3]
        vectors = np.full((step, spec.vector_width), value, np.float32) if form == "split" else None
        page = PageArrays(
            item_id=np.arange(step),
            floats=floats[at % len(floats)],
            categories=np.stack([c[at % len(c)] for c in codes], 1) if codes else np.zeros((step, 0), np.int32),
            vector=vectors,
            user_vector=None if vectors is None else vectors[:1],
        )
        gap = np.linspace((GAP_SECONDS_MAX, GAP_POSITIONS_MAX), (0, 0), step).round()
        yield _Inputs(page, page, feedback[at % len(feedback)], gap, contexts[number % len(contexts)][None])


def _codes(size: int, codes_max: int) -> NDArray[np.int32]:
    return np.linspace(0, size - 1, min(size, codes_max)).round().astype(np.int32)


def _limits(features: tuple[FloatFeature, ...]) -> NDArray[np.float32]:
    """Return rows [2 F + 3, F]: all defaults, all minima, all maxima, and each feature at its limits among defaults."""
    low, high, default = (np.array([getattr(f, name) for f in features], np.float32) for name in ("min", "max", "default"))
    rows = np.tile(default, (2 * len(features) + 3, 1))
    rows[1], rows[2] = low, high
    for i in range(len(features)):
        rows[3 + 2 * i, i], rows[4 + 2 * i, i] = low[i], high[i]
    return rows
