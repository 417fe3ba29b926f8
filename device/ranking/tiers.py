"""Tiers: a short self-benchmark selects the precision, threads and search that this device can run in time.

A tier is the best order that the device can compute within a budget. The search matters most: in the published experiment
(Gong et al., CIKM 2022) the adaptive beam gained 1.28 % effective views and the greedy order .91 %, while precision hardly
mattered (fp16 and int8 lost at most .0002 AUC here). So for one model after another the searches are tried, best first::

    full      the bundle's own search
    narrow    half its beam, step by step
    greedy    the best next item; the only search of a bundle without one
    cloud     no model: cloud order

The benchmark measures whole orders by the bundle's own models, each with a full list of random features and one new event, as
at a swipe. How long a search takes depends on the page; `pocketrank.device.ranking.watchdog` handles pages on which it takes
too long.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice, product
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.bundle.files import BundleError, CorruptBundleError, NoSuchModelError
from pocketrank.device.contract import FloatFeature, Form, Format, Group, Precision, SearchSpec
from pocketrank.device.files import write_atomically
from pocketrank.device.model.features import PageArrays
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.model.search import GREEDY
from pocketrank.device.ranking.ranker import Moment, Ranker, Ranking
from pocketrank.device.runtimes import ModelRuntimeError

__all__ = ["Chosen", "Tier", "TierConfig", "TierName", "choose_tier", "keep_tier"]

TierName: TypeAlias = Literal["full", "narrow", "greedy", "cloud"]

_GAP_MS = 9_000  # time between two impressions of the self-benchmark
_SPREAD = 1.0  # range of its features around their defaults, where their own limits are wider


@dataclass(frozen=True)
class TierConfig:
    """Settings of the self-benchmark: what is tried, and when it is fast enough. Raises ValueError for numbers out of range."""

    budget_ms: float = 16.0
    """Longest time that all but `slow` orders of a tier may take. The default is one frame of a 60 Hz screen."""
    runs: int = 10
    """Number of orders that are measured for each search."""
    slow: int = 1
    """How many of them may take longer. With ten runs the budget holds for the 90th percentile."""
    limit_ms: float = 150.0
    """Time after the first model was opened at which nothing more is started. Opening a model took 50 to 110 ms here, ten
    orders 3 to 10 ms."""
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    """Precisions to try, best first."""
    threads: tuple[int, ...] = (1, 2)
    """Thread counts to try, fewest first: more are tried only when fewer cannot run the best search in time. Models as small as
    ours gain nothing: on a busy machine the fastest tenth of orders took 16 to 18 % longer on two threads."""

    def __post_init__(self) -> None:
        known = bool(self.precisions and self.threads) and min(self.threads) >= 1
        if not (known and 0 <= 2 * self.slow < self.runs and self.budget_ms > 0 and self.limit_ms > 0):
            raise ValueError(f"expected precisions, threads from 1, 0 <= 2 slow < runs and limits above 0, got {self}")


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """How this device orders candidates with this bundle. It is plain data, which can be stored as JSON."""

    name: TierName
    format: Format = "onnx"
    precision: Precision = "fp32"
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    search: SearchSpec | None = None
    """None is the bundle's own search."""
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    """Number of swipes for which one order is used."""
    median_ms: float = 0.0
    slow_ms: float = 0.0
    """Longest time of an order, without the slowest ones (`TierConfig.slow`)."""

    def saving(self) -> Tier:
        """Return the tier for battery saver, with half the work or less: greedy, or half as many orders if greedy already."""
        if self.name in ("full", "narrow"):
            return replace(self, name="greedy", search=GREEDY)
        return replace(self, every=2 * self.every)

    def due(self, position: int) -> bool:
        """Return whether the swipe at `position` computes a new order."""
        return position % self.every == 0

    def open(self, bundle: Bundle, group: Group | None = None) -> Ranker | None:
        """Open the tier's ranker. None in cloud order. Raises as `Ranker.open` does."""
        if self.name == "cloud":
            return None
        return Ranker.open(bundle, self.format, self.precision, self.search, group, self.threads)

    def sharing(self, ranker: Ranker) -> Ranker:
        """Return a ranker with this tier's search and the open models of `ranker`, whose tier may differ in the search only.

        The two may take turns within a page. Raises `RuntimeLoadError` if the models cannot do the search.
        """
        return Ranker(ranker.spec, ranker.split_version, ranker.runtimes, self.search)


class Chosen(NamedTuple):
    """A tier and its open ranker, which is None in cloud order."""

    tier: Tier
    ranker: Ranker | None


def choose_tier(
    bundle: Bundle,
    format: Format = "onnx",
    config: TierConfig | None = None,
    *,
    group: Group | None = None,
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Chosen:
    """Return the best tier of the bundle's models of `format` that fits the budget.

    A model that fails is skipped. When no model is left, the tier is `cloud`. `clock` returns nanoseconds.
    """
    config = config or TierConfig()
    best, until = Chosen(Tier(name="cloud"), None), 0
    rank: int | None = None  # of the best search so far
    for precision, threads in product(config.precisions, config.threads):
        if rank == 0 or (until and clock() >= until):
            break
        tier = Tier(name="full", format=format, precision=precision, threads=threads)
        try:
            opened = Ranker.open(bundle, format, precision, None, group, threads)
            bench = _Bench(opened)
        except (NoSuchModelError, CorruptBundleError, ModelRuntimeError):
            continue
        until = until or clock() + int(config.limit_ms * 1e6)
        # Only searches that would be better than the best so far.
        for i, (candidate, longest) in enumerate(islice(_searches(tier, opened), rank)):
            try:
                ranker = candidate.sharing(opened)
                measured = ranker if longest is None else replace(candidate, search=longest).sharing(opened)
                times = bench(measured, config, clock, until)
            except ModelRuntimeError:
                continue
            if times is not None:
                best, rank = Chosen(replace(candidate, median_ms=times[0], slow_ms=times[1]), ranker), i
                break
    return best


def keep_tier(
    file: Path,
    bundle: Bundle,
    format: Format = "onnx",
    config: TierConfig | None = None,
    *,
    group: Group | None = None,
    device: str = "",
    clock: Callable[[], int] = time.perf_counter_ns,
) -> Chosen:
    """Return the tier stored in `file` for this bundle, device and config, or else choose one (`choose_tier`) and store it.

    `device` is what the app knows of the device, such as its model and system version. Cloud order is not stored, since the
    device may just have been busy. A file that cannot be read counts as missing, and a failure to write it is ignored.
    """
    config = config or TierConfig()
    digests = [entry.sha256 for entry in bundle.manifest.files]
    known = (digests, format, repr(config), group, device, platform.machine(), os.cpu_count())
    key = sha256(msgspec.json.encode(known)).hexdigest()
    with suppress(OSError, TypeError, ValueError, BundleError, ModelRuntimeError):  # msgspec's own errors are ValueErrors
        kept, tier = msgspec.json.decode(file.read_bytes(), type=tuple[str, Tier])
        if kept == key:
            return Chosen(tier, tier.open(bundle, group))
    chosen = choose_tier(bundle, format, config, group=group, clock=clock)
    if chosen.ranker is not None:
        with suppress(OSError):  # it is measured again next time
            write_atomically(file, msgspec.json.encode((key, chosen.tier)))
    return chosen


def _searches(tier: Tier, ranker: Ranker) -> Iterator[tuple[Tier, SearchSpec | None]]:
    """Return `tier` with each search that the models can do, best first, and the search to measure in its place.

    That is the longest that the search can become. None measures the search itself: one in a graph has its own length.
    """
    own = ranker.search
    stages = set.intersection(*(set(stages) for stages in ranker.runtimes.values()))
    if own.steps_max > 1 and stages & {"search", "choose"}:
        yield tier, None if "search" in stages else _longest(own)
        if own.beam > 1 and "choose" in stages:
            narrow = replace(own, beam=own.beam // 2)
            yield replace(tier, name="narrow", search=narrow), _longest(narrow)
    yield replace(tier, name="greedy", search=GREEDY), GREEDY


def _longest(search: SearchSpec) -> SearchSpec:
    return replace(search, list_size=search.steps_max)


class _Bench:
    """Self-benchmark: the arrays of a session with full lists, of random features within their limits."""

    def __init__(self, ranker: Ranker) -> None:
        """Raises `RuntimeRunError`."""
        spec, rng = ranker.spec, np.random.default_rng(0)
        n = spec.candidates_max
        self._form: Form = "split" if "split" in ranker.runtimes else "self_contained"

        def floats(features: tuple[FloatFeature, ...], rows: int) -> NDArray[np.float32]:
            low = [max(f.min, f.default - _SPREAD) for f in features]
            high = [min(f.max, f.default + _SPREAD) for f in features]
            return rng.uniform(low, high, (rows, len(features))).astype(np.float32)

        self._page = PageArrays(
            item_id=np.arange(n),
            floats=floats(spec.candidate_floats, n),
            categories=rng.integers(
                0, [c.size for c in spec.candidate_categories], (n, len(spec.candidate_categories)), np.int32
            ),
            vector=rng.normal(size=(n, spec.vector_width)).astype(np.float32),
            user_vector=rng.normal(size=(1, spec.vector_width)).astype(np.float32),
        )
        self._feedback = floats(spec.feedback_floats, spec.events_max)
        self._remaining, self._history, self._position = Remaining(self._page, ranker.rows), EventHistory(spec), 0
        self._context = np.zeros((1, len(spec.context_floats)), np.float32)
        ranker.prepare(self._form, self._remaining)
        for _ in range(spec.events_max):
            self._swipe()
        self._order(ranker)  # computes the states of all events, of which a swipe computes one

    def _swipe(self) -> None:
        at = self._position
        row = at % len(self._page.item_id)
        self._history.append(at * _GAP_MS, at, self._feedback[at % len(self._feedback)], self._page, row)
        self._position += 1

    def _order(self, ranker: Ranker) -> Ranking | None:
        now_ms = self._position * _GAP_MS
        return ranker.order(self._form, Moment(self._remaining, self._history, self._context, now_ms, self._position))

    def __call__(self, ranker: Ranker, config: TierConfig, clock: Callable[[], int], until: int) -> tuple[float, float] | None:
        """Return the median time of an order and the longest one that counts, in ms.

        None when the orders exceed the budget, when no time is left to measure them, and when scores are not finite. Raises
        `RuntimeRunError`.
        """
        times: list[float] = []
        while len(times) < config.runs:
            self._swipe()
            begin = clock()
            order = self._order(ranker)
            end = clock()
            times.append((end - begin) / 1e6)
            too_slow = sum(ms > config.budget_ms for ms in times) > config.slow
            if order is None or too_slow or (end >= until and len(times) < config.runs):
                return None
        times.sort()
        return times[(len(times) - 1) // 2], times[-1 - config.slow]
