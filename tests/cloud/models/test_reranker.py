from dataclasses import replace

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketrank.cloud.models.presets import PRESETS, UpperConfig
from pocketrank.cloud.models.reranker import UpperHalf
from pocketrank.device.contract import CategoryFeature
from pocketrank.export.parity import draw_inputs
from tests.export.small_run import CONFIG, SPEC, random_upper

Inputs = dict[str, torch.Tensor]

FULL = UpperConfig(
    width=16,
    category_width=4,
    bins=4,
    cross_width=4,
    heads=2,
    head_width=8,
    experts=3,
    expert_width=8,
    towers=(8, 4),
    chosen_max=3,
)
CONFIGS = {"plain": CONFIG, "full": FULL, "no pairs": replace(FULL, pairs=False), "no crossing": replace(FULL, cross_width=0)}


def draw(form: str, n: int, t: int, seed: int = 0) -> Inputs:
    return {k: torch.from_numpy(v) for k, v in draw_inputs(SPEC, form, n, t, seed).items()}  # type: ignore[arg-type]


def scores(model: UpperHalf, inputs: Inputs) -> np.ndarray:
    with torch.no_grad():
        return model(**inputs).numpy()


@pytest.mark.parametrize("config", CONFIGS)
@pytest.mark.parametrize("form", ["split", "self_contained"])
@given(seed=st.integers(0, 50), n=st.integers(1, 12), t=st.integers(0, 10))
@settings(max_examples=10, deadline=None)
def test_the_order_of_candidates_and_what_is_masked_do_not_matter(form: str, config: str, seed: int, n: int, t: int) -> None:
    model = random_upper(split=form == "split", config=CONFIGS[config])
    inputs = draw(form, n, max(t, 1), seed)
    inputs["candidate_mask"][:] = 1
    inputs["event_mask"][:] = float(t > 0)
    expected = scores(model, inputs)
    assert np.isfinite(expected).all()

    order = torch.randperm(n)
    moved = {k: v[:, order] if k.startswith("candidate") else v for k, v in inputs.items()}
    np.testing.assert_allclose(scores(model, moved), expected[:, order.numpy()], atol=1e-6)

    other = draw(form, 3, 4, seed + 1)
    padded = {
        k: torch.cat([v, other[k] * 0 if k.endswith("mask") else other[k]], 1) if k.startswith(("candidate", "event")) else v
        for k, v in inputs.items()
    }
    np.testing.assert_allclose(scores(model, padded)[:, :n], expected, atol=1e-6)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_a_split_form_that_starts_from_the_self_contained_one_scores_alike(config: UpperConfig) -> None:
    own, split = random_upper(split=False, config=config), UpperHalf(config, SPEC, split=True).eval()
    split.start_from(own)
    inputs = draw("split", 12, 10)
    alone = {k: v for k, v in inputs.items() if "vector" not in k}
    np.testing.assert_allclose(scores(split, inputs), scores(own, alone), atol=1e-6)


def test_scores_of_zero_and_one_and_extreme_values_stay_finite() -> None:
    model, inputs = random_upper(split=True, config=FULL), draw("split", 6, 5)
    for value in (0.0, 1.0):
        inputs["candidate_float"][..., : len(SPEC.tasks)] = value
        inputs["event_float"][..., : len(SPEC.tasks)] = value
        inputs["event_gap"][:] = 604_800
        assert np.isfinite(scores(model, inputs)).all()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_feedback_and_its_distance_change_the_scores(config: UpperConfig) -> None:
    model, inputs = random_upper(split=False, config=config), draw("self_contained", 6, 5)
    inputs["event_mask"][:] = 1
    before = scores(model, inputs)
    inputs["event_feedback"][:, -1, 1] = 1 - inputs["event_feedback"][:, -1, 1]
    assert np.abs(scores(model, inputs) - before).max() > 1e-4
    for column in (0, 1):
        before = scores(model, inputs)
        inputs["event_gap"][..., column] += 3
        assert np.abs(scores(model, inputs) - before).max() > 1e-5


def test_only_the_full_model_reads_the_pxtrs_of_watched_items() -> None:
    """A candidate's query does not hold the pXTR of a watched item: that is what the crossing of pairs is for."""
    model, inputs = random_upper(split=False, config=FULL), draw("self_contained", 2, 5)
    states = model.encode_candidates(inputs["candidate_float"], inputs["candidate_category"])
    events = model.encode_events(inputs["event_float"], inputs["event_category"], inputs["event_feedback"])
    moment = {name: inputs[name] for name in ("event_gap", "event_mask", "context")}
    moved = events.clone()
    moved[..., -len(SPEC.tasks) :] += 1
    with torch.no_grad():
        difference = (model.watch(states, moved, **moment) - model.watch(states, events, **moment)).abs().max()
    assert difference > 1e-4


class TestChosen:
    """The list search's part: who was chosen before, in which order, and padding."""

    model = random_upper(split=False, config=FULL)

    def choose(self, chosen: list[int], pad: int = 0) -> torch.Tensor:
        inputs, model = draw("self_contained", 6, 5), self.model
        states = model.encode_candidates(inputs["candidate_float"], inputs["candidate_category"])
        events = model.encode_events(inputs["event_float"], inputs["event_category"], inputs["event_feedback"])
        ready = model.watch(states, events, inputs["event_gap"], inputs["event_mask"], inputs["context"])
        places = torch.tensor([[0] * pad + chosen], dtype=torch.long)
        mask = torch.tensor([[0.0] * pad + [1.0] * len(chosen)])
        with torch.no_grad():
            return model.choose(ready, states, states[:, places[0]], mask)

    @pytest.mark.parametrize("chosen", [[], [3], [3, 1], [0, 1, 2, 3, 4]])
    @pytest.mark.parametrize("pad", [0, 1, 4])
    def test_padding_changes_nothing(self, chosen: list[int], pad: int) -> None:
        if not chosen and not pad:
            inputs = draw("self_contained", 6, 5)
            np.testing.assert_allclose(torch.sigmoid(self.choose([], 2)), scores(self.model, inputs), atol=1e-6)
        else:
            np.testing.assert_allclose(self.choose(chosen, pad), self.choose(chosen, 2), atol=1e-6)

    def test_the_chosen_and_their_order_matter_up_to_the_largest_distance(self) -> None:
        assert (self.choose([3, 1]) - self.choose([1, 3])).abs().max() > 1e-4
        assert (self.choose([3]) - self.choose([4])).abs().max() > 1e-4
        far = self.choose([0, 5, 1, 2, 3]) - self.choose([5, 0, 1, 2, 3])
        assert far.abs().max() < 1e-6


GENRES = msgspec.structs.replace(
    SPEC,
    candidate_categories=(
        *SPEC.candidate_categories,
        *(CategoryFeature(name=f"genres[{place}]", size=7) for place in range(3)),
    ),
)
"""With a category of three values, in columns 1 to 3."""


class TestSeveralValues:
    """A category of several values: the mean of its known values, from one table."""

    @staticmethod
    def scores(model: UpperHalf, genres: list[list[int]]) -> np.ndarray:
        """Scores of candidates that differ in their genres alone; the same event has the first of them."""
        n = len(genres)
        inputs = {k: torch.from_numpy(v) for k, v in draw_inputs(GENRES, "self_contained", 1, 1, 0).items()}
        inputs |= {k: v.expand(-1, n, *[-1] * (v.ndim - 2)).clone() for k, v in inputs.items() if k.startswith("candidate")}
        for name in ("candidate_mask", "event_mask"):
            inputs[name][:] = 1
        inputs["candidate_float"][..., : len(SPEC.tasks)] = 0.5  # where scores are far from 0 and 1
        inputs["candidate_category"][0, :, 1:] = torch.tensor(genres)
        inputs["event_category"][0, :, 1:] = torch.tensor(genres[:1])
        return scores(model, inputs)[0]

    @pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
    def test_the_order_of_values_and_the_places_of_unknown_ones_do_not_matter(self, config: UpperConfig) -> None:
        model = random_upper(split=False, spec=GENRES, config=config)
        first, *others = self.scores(model, [[2, 5, 6], [5, 6, 2], [6, 5, 2]])
        np.testing.assert_allclose(others, [first] * 2, atol=1e-6)
        first, *others = self.scores(model, [[2, 5, 0], [0, 5, 2], [5, 0, 2]])
        np.testing.assert_allclose(others, [first] * 2, atol=1e-6)
        different = self.scores(model, [[2, 5, 0], [2, 0, 0], [2, 5, 6], [0, 0, 0]])
        assert len(np.unique(different[:, 0].round(4))) == 4

    def test_columns_share_a_table_and_its_width(self) -> None:
        spec = msgspec.structs.replace(GENRES, candidate_categories=GENRES.candidate_categories[:2])
        one, three = (random_upper(split=True, spec=spec, config=FULL) for spec in (spec, GENRES))
        assert {k: v.shape for k, v in one.state_dict().items()} == {k: v.shape for k, v in three.state_dict().items()}
        assert three.state_dict()["categories.1.weight"].shape == (7, FULL.category_width)

    def test_one_value_is_as_a_category_without_others(self) -> None:
        columns = (*SPEC.candidate_categories, CategoryFeature(name="genres[0]", size=7))
        alone = random_upper(split=False, spec=msgspec.structs.replace(SPEC, candidate_categories=columns), config=FULL)
        model = UpperHalf(FULL, GENRES, split=False).eval()
        model.load_state_dict(alone.state_dict())
        inputs = draw("self_contained", 4, 3)
        one = {k: v.clone() for k, v in inputs.items()}
        for kind, codes in (("candidate", [0, 1, 5, 6]), ("event", [0, 3, 3])):
            own, genre = inputs[f"{kind}_category"], torch.tensor(codes)[None, :, None]
            one[f"{kind}_category"] = torch.cat([own, genre], -1)
            inputs[f"{kind}_category"] = torch.cat([own, genre, genre * 0, genre * 0], -1)
        np.testing.assert_allclose(scores(model, inputs), scores(alone, one), atol=1e-6)


def test_presets_have_their_documented_sizes() -> None:
    million = sum(p.numel() for p in UpperHalf(PRESETS["paper"], SPEC, split=True).parameters())
    assert 4 * million < 6e6
    assert 4 * sum(p.numel() for p in UpperHalf(PRESETS["tiny"], SPEC, split=True).parameters()) < 5e5
