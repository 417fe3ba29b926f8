"""What this device can do in time: a short self-benchmark picks precision, threads and search.

A tier is the best order that the device makes within a budget. The search counts most: in the published experiment (Gong et
al., CIKM 2022) the adaptive beam brought +1.28 % effective views and the greedy order +.91 %, while precision hardly mattered
(fp16 and int8 lost at most .0002 AUC here). So for one model after the other the searches are tried, best first::

    full      the bundle's own search
    narrow    half its beam, step by step
    greedy    the best next item; all there is where a bundle has no search
    cloud     no model: cloud order

What is measured are whole orders by the bundle's own models, with full lists of random features and one new event each, as in a
swipe. How far a search goes depends on what it finds: `pocketrank.device.ranking.watchdog` is for pages on which it goes too
far.
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

from pocketrank.device.bundle.bundle import Bundle, BundleError, NoSuchModelError
from pocketrank.device.contract import FloatFeature, Form, Format, Group, Precision, SearchSpec
from pocketrank.device.files import write_atomically
from pocketrank.device.model.features import PageArrays
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.model.search import GREEDY
from pocketrank.device.ranking.ranker import Ranker, Ranking
from pocketrank.device.runtimes import ModelRuntimeError

__all__ = ["Chosen", "Tier", "TierConfig", "TierName", "choose_tier", "keep_tier"]

TierName: TypeAlias = Literal["full", "narrow", "greedy", "cloud"]

_GAP_MS = 9_000  # between two impressions of the self-benchmark
_SPREAD = 1.0  # of its features around their defaults, where their own limits are wider
_NONE = 9  # more than there are searches


@dataclass(frozen=True)
class TierConfig:
    """What is tried and what is enough. Raises ValueError for numbers out of range."""

    budget_ms: float = 16.0
    """What nearly all orders of a tier take at most: one frame of a screen of 60 Hz."""
    runs: int = 10
    """Orders that are measured of each search."""
    slow: int = 1
    """How many of them may take longer; with ten runs the budget holds for the 90th percentile."""
    limit_ms: float = 150.0
    """Nothing more is begun so long after the first model is open. Opening one took 50 to 110 ms here, ten orders 3 to 10."""
    precisions: tuple[Precision, ...] = ("fp32", "fp16", "int8")
    """Best first."""
    threads: tuple[int, ...] = (1, 2)
    """Fewest first: more threads are only tried when fewer do not make the best search in time. Models as small as ours gain
    nothing: on a busy machine the fastest tenth of orders took 16 to 18 % longer on two."""

    def __post_init__(self) -> None:
        known = bool(self.precisions and self.threads) and min(self.threads) >= 1
        if not (known and 0 <= 2 * self.slow < self.runs and self.budget_ms > 0 and self.limit_ms > 0):
            raise ValueError(f"expected precisions, threads from 1, 0 <= 2 slow < runs and limits above 0, got {self}")


class Tier(msgspec.Struct, frozen=True, kw_only=True):
    """How this device makes orders of this bundle; plain data, to be kept as JSON."""

    name: TierName
    format: Format = "onnx"
    precision: Precision = "fp32"
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    search: SearchSpec | None = None
    """None: the bundle's own."""
    every: Annotated[int, msgspec.Meta(ge=1)] = 1
    """An order is made at every so many swipes; the others go on in the last one."""
    median_ms: float = 0.0
    slow_ms: float = 0.0
    """The longest that counted (`TierConfig.slow`)."""

    def saving(self) -> Tier:
        """The tier under battery saver, half the work or less: greedy; or every second order, where greedy is what there is."""
        if self.name in ("full", "narrow"):
            return replace(self, name="greedy", search=GREEDY)
        return replace(self, every=2 * self.every)

    def due(self, position: int) -> bool:
        """Whether the swipe at `position` makes a new order."""
        return position % self.every == 0

    def open(self, bundle: Bundle, group: Group | None = None) -> Ranker | None:
        """The tier's ranker, None in cloud order. Raises as `Ranker.open` does."""
        if self.name == "cloud":
            return None
        return Ranker.open(bundle, self.format, self.precision, self.search, group, self.threads)

    def sharing(self, ranker: Ranker) -> Ranker:
        """A ranker with this tier's search and the models of `ranker`, opened by a tier that differs in no more than that.

        The two may take turns within a page. Raises `RuntimeLoadError` where the models cannot do the search.
        """
        return Ranker(ranker.spec, ranker.split_version, ranker.runtimes, self.search)


class Chosen(NamedTuple):
    """A tier and its ranker, which is open; None in cloud order."""

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
    """The best tier of the bundle's models of `format` that fits the budget. A model that fails is passed over, and the tier is
    `cloud` when nothing is left. `clock` tells nanoseconds.
    """
    config = config or TierConfig()
    best, rank, until = Chosen(Tier(name="cloud"), None), _NONE, 0
    for precision, threads in product(config.precisions, config.threads):
        if rank == 0 or (until and clock() >= until):
            break
        tier = Tier(name="full", format=format, precision=precision, threads=threads)
        try:
            opened = Ranker.open(bundle, format, precision, None, group, threads)
            bench = _Bench(opened)
        except (NoSuchModelError, ModelRuntimeError):
            continue
        until = until or clock() + int(config.limit_ms * 1e6)
        for i, (candidate, longest) in enumerate(islice(_searches(tier, opened), rank)):  # the others would be no better
            try:
                ranker = candidate.sharing(opened)
                times = bench(
                    ranker if longest is None else replace(candidate, search=longest).sharing(opened), config, clock, until
                )
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
    """The tier in `file` if it is of this bundle, device and config, else what `choose_tier` finds, which is then kept there.

    `device` is what the app knows of it: model, system version. Cloud order is not kept: it may have been a busy moment. A file
    that cannot be read is as none, and one that cannot be written is left.
    """
    config = config or TierConfig()
    digests = [entry.sha256 for entry in bundle.manifest.files]
    known = (digests, format, repr(config), group, device, platform.machine(), os.cpu_count())
    key = sha256(msgspec.json.encode(known)).hexdigest()
    try:
        kept = msgspec.json.decode(file.read_bytes(), type=_Kept)
        if kept.key == key:
            return Chosen(kept.tier, kept.tier.open(bundle, group))
    except (OSError, TypeError, ValueError, BundleError, ModelRuntimeError):  # msgspec's own errors are ValueErrors
        pass
    chosen = choose_tier(bundle, format, config, group=group, clock=clock)
    if chosen.ranker is not None:
        with suppress(OSError):  # it is measured again next time
            write_atomically(file, msgspec.json.encode(_Kept(key=key, tier=chosen.tier)))
    return chosen


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    key: str
    tier: Tier


def _searches(tier: Tier, ranker: Ranker) -> Iterator[tuple[Tier, SearchSpec | None]]:
    """`tier` with each search that the models may do, best first, and what to measure of it.

    That is the longest that a search can become, except in a graph, which was made for one search and does it as it does.
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
    """A session's arrays with full lists, by random features within their limits."""

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
        self._held, self._history, self._position = Remaining(self._page, ranker.rows), EventHistory(spec), 0
        self._context = np.zeros((1, len(spec.context_floats)), np.float32)
        ranker.prepare(self._form, self._held)
        for _ in range(spec.events_max):
            self._swipe()
        self._order(ranker)  # makes the states of all events; a swipe makes that of one

    def _swipe(self) -> None:
        at = self._position
        row = at % len(self._page.item_id)
        self._history.append(at * _GAP_MS, at, self._feedback[at % len(self._feedback)], self._page, row)
        self._position += 1

    def _order(self, ranker: Ranker) -> Ranking | None:
        now_ms = self._position * _GAP_MS
        return ranker.order(self._form, self._held, self._history, self._context, now_ms, self._position)

    def __call__(self, ranker: Ranker, config: TierConfig, clock: Callable[[], int], until: int) -> tuple[float, float] | None:
        """Median and the longest time that counts, in ms; None when the budget or the time left is not enough, or scores are
        no numbers. Raises `RuntimeRunError`.
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
