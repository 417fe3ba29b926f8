"""How a device builds the model's inputs, and how it searches with the model."""

from __future__ import annotations

from pocketrank.device.contract.wire import Versioned, Wire

__all__ = ["CategoryFeature", "FeatureSpec", "FloatFeature", "SearchSpec"]


class FloatFeature(Wire, frozen=True, kw_only=True):
    """A float input: raw value x `scale`, clipped to [`min`, `max`]; a missing or NaN value becomes `default`."""

    name: str
    min: float
    max: float
    default: float = 0.0
    scale: float = 1.0


class CategoryFeature(Wire, frozen=True, kw_only=True):
    """A categorical input with codes 0..size-1; 0 is unknown and so is every code out of range."""

    name: str
    size: int


class SearchSpec(Wire, frozen=True, kw_only=True):
    """How far and how wide to look for the list that is shown next (`pocketrank.device.model.search`). The defaults are those
    of Gong et al. (CIKM 2022). Raises ValueError for numbers out of range.

    `beam` lists are kept at each step. The search ends after `steps_max` steps; or earlier, once lists have the `list_size`
    that becomes visible with the next swipe (1 is a full-screen feed) and the worst list kept has at least `stability` of the
    best one's reward.
    """

    beam: int = 4
    list_size: int = 1
    steps_max: int = 5
    stability: float = 0.95

    def __post_init__(self) -> None:
        if self.beam < 1 or not 1 <= self.list_size <= self.steps_max or not 0 <= self.stability <= 1:
            raise ValueError(f"expected beam >= 1, 1 <= list_size <= steps_max and stability in 0..1, got {self}")


class FeatureSpec(Versioned, frozen=True, kw_only=True):
    """How a device builds the model's inputs: from this text, not from code.

    With N candidates, T events, Fc = len(candidate_floats), C = len(candidate_categories), Fb = len(feedback_floats),
    Fx = len(context_floats), D = vector_width, the inputs are, in this order::

        candidate_float     f32 [1, N, Fc]     candidate_category  i32 [1, N, C]
        candidate_vector    f32 [1, N, D]      candidate_mask      f32 [1, N]       1 = real, 0 = padding
        event_float         f32 [1, T, Fc]     event_category      i32 [1, T, C]    the shown items' own features
        event_vector        f32 [1, T, D]      event_feedback      f32 [1, T, Fb]   from `FeedbackEvent` by name
        event_gap           f32 [1, T, 2]      seconds since the impression, positions since it
        event_mask          f32 [1, T]         context             f32 [1, Fx]      `position`, `hour` (0..24, UTC)
        user_vector         f32 [1, D]

    The self-contained form has neither `candidate_vector`, `event_vector` nor `user_vector`. The one output is `scores` f32 [1,
    N, len(tasks)], probabilities. Candidates are ordered by the sum of `task_weights` x score, or by a `search` for the best
    list, in which the probability of `survival_task` says how likely what follows an item is seen at all. Events are ordered
    oldest first and padded at the front or at the back alike. `list_sizes` are the candidate counts that a format with static
    shapes was compiled for; a list is padded to the next one.

    The same model in stages, each run when its inputs become known. The vectors are the split form's::

        page      candidate_float, candidate_category, candidate_vector, user_vector  →  page_state f32 [1, N, S]
        event     event_float, event_category, event_vector, event_feedback  →  event_state f32 [1, T, E]
        watch     page_state, event_state, event_gap, event_mask, context, user_vector  →  ready f32 [1, N, M], scores
        choose    ready, page_state, chosen i32 [B, L], chosen_mask f32 [B, L]  →  scores f32 [B, N, len(tasks)]
        search    the inputs of watch, candidate_mask  →  order i32 [1, steps_max], -1 behind the list's end, and scores

    `choose` scores every candidate as the next of B lists; `chosen` are places in the page, the last chosen one last, padded at
    the front, where `chosen_mask` is 0. `search` is the whole list search in one graph.
    """

    tasks: tuple[str, ...]
    task_weights: dict[str, float]
    candidates_max: int
    events_max: int
    vector_width: int
    list_sizes: tuple[int, ...]
    candidate_floats: tuple[FloatFeature, ...]
    candidate_categories: tuple[CategoryFeature, ...]
    feedback_floats: tuple[FloatFeature, ...]
    context_floats: tuple[FloatFeature, ...]
    survival_task: str | None = None
    search: SearchSpec | None = None
