from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pocketrank.cloud.models.peers.dlcm import Dlcm
from pocketrank.cloud.models.peers.edgerec import EdgeRec
from pocketrank.cloud.models.peers.peer import Peer, PeerConfig
from pocketrank.cloud.models.peers.prm import Prm
from pocketrank.cloud.models.peers.setrank import SetRank
from pocketrank.cloud.models.peers.simple_dnn import SimpleDnn
from pocketrank.device.contract import CategoryFeature, FeatureSpec, FloatFeature

SPEC = FeatureSpec(
    tasks=("long_view", "like"),
    task_weights={"long_view": 1.0},
    candidates_max=6,
    events_max=8,
    vector_width=4,
    list_sizes=(6,),
    candidate_floats=(
        FloatFeature(name="pxtr_long_view", min=0, max=1),
        FloatFeature(name="pxtr_like", min=0, max=1),
        FloatFeature(name="duration_ms", scale=1e-3, min=0, max=1800, default=15),
    ),
    candidate_categories=(CategoryFeature(name="category", size=5),),
    feedback_floats=(
        FloatFeature(name="watch_ms", scale=1e-3, min=0, max=1800),
        FloatFeature(name="like", min=0, max=1),
        FloatFeature(name="volume_change", min=-1, max=1),
    ),
    context_floats=(FloatFeature(name="position", min=0, max=1000), FloatFeature(name="hour", min=0, max=24, default=12)),
)
CONFIG = PeerConfig(width=16, category_width=4, state=8, heads=2, experts=2, expert_width=8, towers=(8,), dropout=0.0)
PEERS: list[type[Peer]] = [SimpleDnn, EdgeRec, Prm, Dlcm, SetRank]  # type: ignore[type-abstract]
LISTS = [Prm, Dlcm, SetRank]
"""Those that know what was shown and no feedback."""

Build = Callable[[PeerConfig, FeatureSpec], Peer]
Inputs = dict[str, Tensor]


def build(peer: Build) -> Peer:
    """With random values in every parameter, none of them zero."""
    torch.manual_seed(0)
    model = peer(CONFIG, SPEC)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return model.eval()


def draw(seed: int, *, batch: int = 3, n: int = 2, t: int = 5) -> Inputs:
    """Random inputs, every event real."""
    g = torch.Generator().manual_seed(seed)

    def floats(features: tuple[FloatFeature, ...], *shape: int) -> Tensor:
        low, high = torch.tensor([[f.min, f.max] for f in features]).T
        return low + (high - low) * torch.rand(*shape, len(features), generator=g)

    return {
        "candidate_float": floats(SPEC.candidate_floats, batch, n),
        "candidate_category": torch.randint(5, (batch, n, 1), generator=g),
        "candidate_mask": torch.ones(batch, n),
        "event_float": floats(SPEC.candidate_floats, batch, t),
        "event_category": torch.randint(5, (batch, t, 1), generator=g),
        "event_feedback": floats(SPEC.feedback_floats, batch, t),
        "event_gap": torch.rand(batch, t, 2, generator=g) * 1000,
        "event_mask": torch.ones(batch, t),
        "context": floats(SPEC.context_floats, batch),
    }


def logits(model: Peer, inputs: Inputs) -> Tensor:
    with torch.no_grad():
        return model(**inputs)


def of_events(inputs: Inputs, change: Callable[[Tensor], Tensor]) -> Inputs:
    return {name: change(value) if name.startswith("event") else value for name, value in inputs.items()}


@pytest.mark.parametrize("peer", PEERS)
@given(seed=st.integers(0, 50), n=st.integers(1, 4), t=st.integers(0, 12), hidden=st.integers(0, 12))
@settings(max_examples=15, deadline=None)
def test_every_length_is_finite_and_what_is_masked_changes_nothing(peer: Build, seed: int, n: int, t: int, hidden: int) -> None:
    """Also with no event, with one, and with more than the spec's."""
    model, inputs = build(peer), draw(seed, n=n, t=max(t, 1))
    inputs["event_mask"][:] = float(t > 0)
    expected = logits(model, inputs)
    assert expected.shape == (3, n, 2)
    assert torch.isfinite(expected).all()

    other = draw(seed + 1, n=n, t=hidden)
    other["event_mask"][:] = 0
    t = max(t, 1)
    place = torch.argsort(torch.rand(t + hidden, generator=torch.Generator().manual_seed(seed)))
    place[place < t] = torch.arange(t)  # masked ones anywhere, real ones in their order
    both = {name: torch.cat([inputs[name], other[name]], 1)[:, place] for name in inputs if name.startswith("event")}
    torch.testing.assert_close(logits(model, inputs | both), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("peer", PEERS)
def test_candidates_do_not_depend_on_one_another(peer: Build) -> None:
    model, inputs = build(peer), draw(1, n=4)
    order = torch.tensor([2, 0, 3, 1])
    moved = {name: value[:, order] if name.startswith("candidate") else value for name, value in inputs.items()}
    torch.testing.assert_close(logits(model, moved), logits(model, inputs)[:, order], atol=1e-4, rtol=1e-4)
    alone = {name: value[:, :1] if name.startswith("candidate") else value for name, value in inputs.items()}
    torch.testing.assert_close(logits(model, alone), logits(model, inputs)[:, :1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("peer", PEERS)
def test_the_order_of_events_matters_to_sequences_and_not_to_sets(peer: Build) -> None:
    model, inputs = build(peer), draw(2)
    changed = (logits(model, of_events(inputs, lambda x: x.flip(1))) - logits(model, inputs)).abs().max()
    if peer in (SimpleDnn, SetRank):
        assert changed < 1e-5
    else:
        assert changed > 1e-4


@pytest.mark.parametrize("peer", PEERS)
def test_what_was_shown_matters_and_feedback_only_to_those_that_know_it(peer: Build) -> None:
    model, inputs = build(peer), draw(3)
    before = logits(model, inputs)
    shown = inputs | {"event_category": (inputs["event_category"] + 1) % 5, "event_float": draw(4)["event_float"]}
    assert (logits(model, shown) - before).abs().max() > 1e-4
    taken = inputs | {"event_feedback": draw(5)["event_feedback"], "event_gap": draw(5)["event_gap"]}
    if peer in LISTS:
        torch.testing.assert_close(logits(model, taken), before)
    else:
        assert (logits(model, taken) - before).abs().max() > 1e-4


@pytest.mark.parametrize("peer", PEERS)
def test_scores_of_exactly_zero_and_one_and_absurd_values_stay_finite(peer: Build) -> None:
    model, inputs = build(peer), draw(6)
    for value in (0.0, 1.0):
        inputs["candidate_float"][..., :2] = inputs["event_float"][..., :2] = value
        inputs["event_gap"][:] = 604_800
        assert torch.isfinite(logits(model, inputs)).all()


@pytest.mark.parametrize("peer", PEERS)
def test_a_planted_signal_is_learned(peer: Build) -> None:
    """A candidate is taken when the last event has its category; for those that know feedback, when that one was liked too."""
    torch.manual_seed(0)
    model = peer(CONFIG, SPEC)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)

    def drawn(seed: int) -> tuple[Inputs, Tensor]:
        inputs = draw(seed, batch=256, n=1, t=1)
        inputs["candidate_category"] %= 2
        inputs["event_category"] %= 2
        inputs["event_feedback"][..., 1].round_()
        if peer in LISTS:
            label = inputs["candidate_category"][:, 0, 0] == inputs["event_category"][:, 0, 0]
        else:
            label = inputs["event_feedback"][:, 0, 1] == 1
        return inputs, label.float()

    for step in range(80):
        inputs, label = drawn(step)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(**inputs)[:, 0, 0], label)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    inputs, label = drawn(1000)
    assert ((logits(model.eval(), inputs)[:, 0, 0] > 0) == (label > 0)).float().mean() > 0.9
