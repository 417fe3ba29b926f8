"""The feature spec: how a device builds the model's inputs, and how it searches with the model."""

from __future__ import annotations

from msgspec import UNSET, UnsetType

from pocketrank.device.contract.wire import Versioned, Wire

__all__ = ["CategoryFeature", "FeatureSpec", "FloatFeature", "SearchSpec"]


class FloatFeature(Wire, frozen=True, kw_only=True):
    """A float input: the raw value times `scale`, clipped to [`min`, `max`]. A missing value or NaN becomes `default`."""

    name: str
    min: float
    max: float
    default: float = 0.0
    """Already scaled, and within [`min`, `max`]."""
    scale: float = 1.0


class CategoryFeature(Wire, frozen=True, kw_only=True):
    """A categorical input with the codes 0..size-1. Code 0 is unknown, and every code out of range becomes 0."""

    name: str
    size: int


class SearchSpec(Wire, frozen=True, kw_only=True):
    """How wide and how far to search for the list to show next (`pocketrank.device.model.search`).

    The search ends after `steps_max` steps, or earlier: once the lists have `list_size` items and the worst list of the beam
    has at least `stability` of the best list's reward. The defaults are those of Gong et al. (CIKM 2022). Raises ValueError for
    numbers out of range.
    """

    beam: int = 4
    """Lists that are kept at each step."""
    list_size: int = 1
    """Items that become visible with the next swipe. 1 is a full-screen feed."""
    steps_max: int = 5
    """Longest list that is searched for."""
    stability: float = 0.95
    """Share of the best list's reward, 0 to 1. A lower share ends the search earlier."""

    def __post_init__(self) -> None:
        if self.beam < 1 or not 1 <= self.list_size <= self.steps_max or not 0 <= self.stability <= 1:
            raise ValueError(f"expected beam >= 1, 1 <= list_size <= steps_max and stability in 0..1, got {self}")


class FeatureSpec(Versioned, frozen=True, kw_only=True):
    """How a device builds the model's inputs: from this struct, not from code.

    With N candidates, T events, Fc = len(candidate_floats), C = len(candidate_categories), Fb = len(feedback_floats),
    Fx = len(context_floats), D = vector_width, the inputs are, in this order::

        candidate_float     f32 [1, N, Fc]     candidate_category  i32 [1, N, C]
        candidate_vector    f32 [1, N, D]      candidate_mask      f32 [1, N]       1 = real, 0 = padding
        event_float         f32 [1, T, Fc]     event_category      i32 [1, T, C]    features of the items that were shown
        event_vector        f32 [1, T, D]      event_feedback      f32 [1, T, Fb]   fields of `FeedbackEvent`, by name
        event_gap           f32 [1, T, 2]      seconds since the impression, positions since the impression
        event_mask          f32 [1, T]         context             f32 [1, Fx]      `position` and `hour`, by name
        user_vector         f32 [1, D]

    The raw values of the context features are whole numbers. `position` counts the impressions so far in the session. `hour` is
    the hour of the day in UTC by the device's clock, 0 to 23: floor(now_ms / 3,600,000) mod 24. It has no fraction, and the
    user's time zone has no part in it.

    The self-contained form has neither `candidate_vector`, `event_vector` nor `user_vector`. Events are ordered oldest first. A
    model MUST return the same scores whether they are padded at the front or at the back.

    The one output is `scores` f32 [1, N, len(tasks)], which are probabilities. Candidates are ordered by the sum of
    `task_weights` times scores; or by a `search` for the best list, where the score of `survival_task` is the probability that
    the user goes on to what follows an item.

    The same model may come in stages, each of which runs once its inputs are known. The vectors are those of the split form::

        page      candidate_float, candidate_category, candidate_vector, user_vector  →  page_state f32 [1, N, S]
        event     event_float, event_category, event_vector, event_feedback  →  event_state f32 [1, T, E]
        watch     page_state, event_state, event_gap, event_mask, context, user_vector  →  ready f32 [1, N, M], scores
        choose    ready, page_state, chosen i32 [B, L], chosen_mask f32 [B, L]  →  scores f32 [B, N, len(tasks)]
        search    the inputs of watch, candidate_mask  →  order i32 [1, steps_max], -1 behind the list's end, and scores

    `choose` scores every candidate as the next item of each of B lists. `chosen` holds places in the page, the item chosen last
    at the end, padded at the front, where `chosen_mask` is 0. `search` is the whole list search in one graph.
    """

    tasks: tuple[str, ...]
    task_weights: dict[str, float]
    """Weight of each task in an item's reward. A task without a weight has weight 0."""
    candidates_max: int
    """Most candidates that the model orders. The others follow in cloud order."""
    events_max: int
    """Most events that the model reads. The newest are kept."""
    vector_width: int
    list_sizes: tuple[int, ...]
    """Candidate counts that a format with static shapes is compiled for, ascending. A list is padded to the next of them."""
    candidate_floats: tuple[FloatFeature, ...]
    candidate_categories: tuple[CategoryFeature, ...]
    feedback_floats: tuple[FloatFeature, ...]
    context_floats: tuple[FloatFeature, ...]
    survival_task: str | None = None
    search: SearchSpec | None = None
    """None takes the best next item and searches for no list."""
    numbering: str | UnsetType = UNSET
    """Name of the codes of `candidate_categories`; those of a page with another name are not read (`Candidates.numbering`).
    Left out where they have none."""
