import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from pocketrank.device.bundle.bundle import Bundle, write_manifest
from pocketrank.device.contract import ModelEntry, Precision, SearchSpec, Stage
from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.model.search import GREEDY
from pocketrank.device.ranking.ranker import Moment, Ranker
from pocketrank.device.ranking.tiers import Tier, TierConfig, choose_tier, keep_tier
from tests.device.worlds import SPEC, SPLIT, T0, make_bundle, make_page, onnx_model

SEARCH = SearchSpec(beam=4, list_size=1, steps_max=3)
SLOW_MS, FAST_MS = 20.0, 0.25
PATIENT = TierConfig(budget_ms=16, limit_ms=1e6, threads=(1,))
THREADS = dataclasses.replace(PATIENT, threads=(1, 2))
SCORES = "w = Constant<value = float[3,2] {1.0,0.0,0.5,1.0,0.2,0.3}>() scores = MatMul(page_state, w)"
"""The graphs of `staged`: a candidate's scores are sums of its features, whatever came before."""


def graph(inputs: str, outputs: str, body: str) -> onnx.ModelProto:
    return onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> g ({inputs}) => ({outputs}) {{{body}}}')


def staged(
    folder: Path, choose: str | None = "B,L", in_graph: bool = False, precisions: tuple[Precision, ...] = ("fp32",)
) -> Bundle:
    """A bundle of stages; `choose` is the shape of its lists."""
    stages: dict[Stage, onnx.ModelProto] = {
        "whole": onnx_model(SPEC, "self_contained"),
        "page": graph("float[1,N,3] candidate_float", "float[1,N,3] page_state", "page_state = Identity(candidate_float)"),
        "event": graph("float[1,T,3] event_float", "float[1,T,3] event_state", "event_state = Identity(event_float)"),
        "watch": graph(
            "float[1,N,3] page_state", "float[1,N,2] scores, float[1,N,3] ready", SCORES + " ready = Identity(page_state)"
        ),
    }
    if choose is not None:
        stages["choose"] = graph(
            f"float[1,N,3] ready, float[1,N,3] page_state, int32[{choose}] chosen, float[{choose}] chosen_mask",
            "float[B,N,2] several",
            SCORES + " one = Constant<value_ints = [1,2]>() two = Constant<value_ints = [1]>()"
            " sums = ReduceSum<keepdims = 0>(chosen_mask, two) lists = Unsqueeze(sums, one)"
            " none = Sub(lists, lists) several = Add(none, scores)",
        )
    if in_graph:
        stages["search"] = graph(
            "float[1,N,3] page_state",
            "int32[1,3] order, float[1,N,2] scores",
            SCORES + " order = Constant<value = int32[1,3] {0,-1,-1}>()",
        )
    models = []
    for precision in precisions:
        for stage, model in stages.items():
            path = f"{precision}.{stage}.onnx"
            onnx.save(model, folder / path)
            models.append(
                ModelEntry(form="self_contained", format="onnx", precision=precision, path=path, bytes=0, stage=stage)
            )
    spec = replace(SPEC, search=SEARCH)
    write_manifest(folder, name="staged", serial=1, split_version=SPLIT, spec=spec, models=models, created_ms=T0)
    return Bundle.open(folder)


class Looks:
    """A clock that goes on by so many ms at each look. The first look comes before the first run, each run is two, and so is
    one before each model but the first."""

    def __init__(self, *phases: tuple[int, float]) -> None:
        """`phases` are numbers of looks and their ms; the last one goes on."""
        self.looks = self.ns = 0
        self._ms = iter([ms for looks, ms in phases for _ in range(looks)])
        self._last = phases[-1][1]

    def __call__(self) -> int:
        self.looks += 1
        self.ns += int(1e6 * next(self._ms, self._last))
        return self.ns


def slow_runs(number: int) -> Looks:
    """Two slow runs tell that a search does not fit."""
    return Looks((1 + 2 * number, SLOW_MS), (1, FAST_MS))


NARROW = replace(SEARCH, beam=2)


@pytest.mark.parametrize(
    ("slow", "name", "search"),
    [(0, "full", None), (1, "full", None), (2, "narrow", NARROW), (3, "narrow", NARROW), (4, "greedy", GREEDY)],
)
def test_the_best_search_that_fits_is_chosen(tmp_path: Path, slow: int, name: str, search: SearchSpec | None) -> None:
    tier, ranker = choose_tier(staged(tmp_path), config=PATIENT, clock=slow_runs(slow))
    assert (tier.name, tier.search, tier.threads, tier.precision) == (name, search, 1, "fp32")
    assert (tier.median_ms, tier.slow_ms) == (FAST_MS, FAST_MS)
    assert ranker is not None
    assert ranker.search == (search or SEARCH)


def test_more_threads_and_then_less_precision_are_tried_for_a_better_search(tmp_path: Path) -> None:
    bundle = staged(tmp_path, precisions=("fp32", "int8"))
    # fp32: only the greedy order fits, in ten runs; on two threads neither of the better ones does, or the best one does.
    for then, found in (((8, SLOW_MS), ("full", "int8", 1)), ((1, FAST_MS), ("full", "fp32", 2))):
        clock = Looks((9, SLOW_MS), (21, FAST_MS), then, (1, FAST_MS))
        tier, _ = choose_tier(bundle, config=THREADS, clock=clock)
        assert (tier.name, tier.precision, tier.threads) == found


def test_a_search_that_the_models_cannot_do_is_passed_over(tmp_path: Path) -> None:
    tier, _ = choose_tier(staged(tmp_path, choose="4,3"), config=PATIENT, clock=slow_runs(2))
    assert tier.name == "greedy"


def test_a_search_in_the_graph_is_measured_as_it_is(tmp_path: Path) -> None:
    tier, ranker = choose_tier(staged(tmp_path, choose="4,3", in_graph=True), config=PATIENT, clock=slow_runs(0))
    assert (tier.name, tier.search) == ("full", None)
    assert ranker is not None
    assert _order(ranker)[0] == 0
    greedy = _order(tier.saving().sharing(ranker))
    assert greedy[0] != 0
    assert greedy == _order(Ranker.open(Bundle.open(tmp_path), search=GREEDY))


def test_without_a_search_the_greedy_order_is_the_best_there_is(tmp_path: Path) -> None:
    tier, _ = choose_tier(make_bundle(tmp_path), config=PATIENT, clock=slow_runs(0))
    assert (tier.name, tier.search) == ("greedy", GREEDY)


def test_nothing_that_fits_is_cloud_order(tmp_path: Path) -> None:
    bundle = staged(tmp_path)
    for config in (PATIENT, TierConfig()):
        tier, ranker = choose_tier(bundle, config=config, clock=slow_runs(1000))
        assert (tier.name, ranker, tier.open(bundle)) == ("cloud", None, None)
    assert choose_tier(bundle, "tflite").tier.name == "cloud"  # nothing of that format
    for entry in bundle.manifest.models:
        (tmp_path / entry.path).write_bytes(b"junk")
    assert choose_tier(bundle).tier.name == "cloud"


def test_a_model_whose_scores_are_not_finite_is_skipped(tmp_path: Path) -> None:
    assert choose_tier(make_bundle(tmp_path, poison=float("nan")), config=PATIENT).tier.name == "cloud"


def test_the_benchmark_ends_when_its_time_is_up(tmp_path: Path) -> None:
    clock = Looks((1, 40.0))
    tier, _ = choose_tier(staged(tmp_path), config=TierConfig(budget_ms=50, limit_ms=150), clock=clock)
    assert tier.name == "cloud"
    assert clock.looks < 12


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return staged(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("small"), forms=("self_contained",))


@given(st.lists(st.floats(0, 40), min_size=1, max_size=30), st.integers(1, 6), st.floats(1, 30))
@settings(max_examples=20)
def test_what_is_chosen_fits(small: Bundle, looks: list[float], runs: int, budget_ms: float) -> None:
    config = TierConfig(budget_ms=budget_ms, runs=runs, slow=(runs - 1) // 2, threads=(1,))
    tier, ranker = choose_tier(small, config=config, clock=Looks(*[(1, ms) for ms in looks]))
    assert (tier.name == "cloud") == (ranker is None)
    assert tier.median_ms <= tier.slow_ms <= budget_ms + 1e-5


def test_a_tier_is_kept_until_something_changes(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "tier.json"

    def kept(slow: int = 0, of: Bundle = bundle, config: TierConfig = PATIENT, device: str = "phone") -> tuple[str, bool]:
        clock = slow_runs(slow)
        tier, ranker = keep_tier(file, of, config=config, device=device, clock=clock)
        assert ranker is not None
        assert ranker.search == (tier.search or SEARCH)
        return tier.name, clock.looks > 0

    assert kept(2) == ("narrow", True)
    assert kept() == ("narrow", False)
    assert kept(0, config=THREADS) == ("full", True)
    assert kept(0, device="other") == ("full", True)
    (tmp_path / "other").mkdir()
    assert kept(2, staged(tmp_path / "other", choose="B,3"), device="other") == ("narrow", True)
    for junk in (b"", b"{}", b"\xff", file.read_bytes()[:-9], file.read_bytes().replace(b'"every":1', b'"every":0')):
        file.write_bytes(junk)
        assert kept(4) == ("greedy", True)
    assert kept() == ("greedy", False)
    assert list(tmp_path.glob("tier.json*")) == [file]


def test_cloud_order_is_not_kept_and_neither_is_what_cannot_be(bundle: Bundle, tmp_path: Path) -> None:
    assert keep_tier(tmp_path / "tier.json", bundle, config=PATIENT, clock=slow_runs(1000)).tier.name == "cloud"
    assert not (tmp_path / "tier.json").exists()
    assert keep_tier(tmp_path / "nowhere" / "tier.json", bundle, config=PATIENT, clock=slow_runs(0)).tier.name == "full"


def test_a_battery_saver_halves_the_work() -> None:
    full = Tier(name="full")
    assert [full.due(position) for position in range(4)] == [True] * 4
    greedy = full.saving()
    assert (greedy.name, greedy.search, greedy.every) == ("greedy", GREEDY, 1)
    assert [greedy.saving().due(position) for position in range(4)] == [True, False] * 2


@pytest.mark.parametrize(
    "wrong", [{"precisions": ()}, {"threads": (0,)}, {"runs": 1}, {"slow": -1}, {"budget_ms": 0}, {"limit_ms": 0}]
)
def test_configs_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected precisions, threads"):
        TierConfig(**wrong)


def _order(ranker: Ranker) -> list[int]:
    held = Remaining(FeatureBuilder(SPEC).page(make_page([1, 2, 3, 4, 5])), ranker.rows)
    ranker.prepare("self_contained", held)
    ranking = ranker.order("self_contained", Moment(held, EventHistory(SPEC), np.zeros((1, 2), np.float32), T0, 0))
    assert ranking is not None
    return [int(place) for place in ranking.order]
