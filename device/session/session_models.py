"""The models that a session orders with, and what they remember of it.

Everything that depends on the installed bundle is here, so that a session can change to another bundle: it makes a new
`SessionModels` and replays what was shown and how it was watched.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pocketrank.device.contract import FeatureSpec, FeedbackEvent, Form, Page, SearchSpec
from pocketrank.device.feedback.privacy import PrivacyPolicy
from pocketrank.device.model.features import FeatureBuilder, PageArrays
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.personal import PersonalLayer, labels
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.paging import paging_of
from pocketrank.device.ranking.ranker import Adjust, Moment, Ranker, Ranking
from pocketrank.device.session.shown_items import ShownItem

__all__ = ["SessionModels"]

_NO_FEATURES = FeatureSpec(
    tasks=("none",), task_weights={}, candidates_max=1, events_max=1, vector_width=0, list_sizes=(),
    candidate_floats=(), candidate_categories=(), feedback_floats=(), context_floats=(),
)  # fmt: skip


class SessionModels:
    """A ranker (None: cloud order), the user's own layer over it, and the events of one session as they read them."""

    def __init__(self, ranker: Ranker | None, personal: PersonalLayer | None = None, *, expected: bool = True) -> None:
        """`expected` says whether it is a fallback to have no ranker.

        Raises ValueError for a layer over other tasks than the ranker's.
        """
        if personal is not None and ranker is not None and personal.tasks != ranker.spec.tasks:
            raise ValueError(f"expected a personal layer over {ranker.spec.tasks}, got one over {personal.tasks}")
        self.ranker, self.personal, self._expected = ranker, personal, expected
        self.name = None if ranker is None else ranker.name
        """Name of the bundle."""
        self.paging = paging_of(None if ranker is None else ranker.paging)
        """Policy for when the app gives none: the bundle's, else fixed counts."""
        self.privacy = PrivacyPolicy() if ranker is None else PrivacyPolicy.for_spec(ranker.spec)
        """Policy for when the app gives none: what training these models needs may leave."""
        self.split_version = ranker.split_version if ranker is not None and "split" in ranker.runtimes else None
        """Split version of the pages whose vectors these models can use; None when they use none."""
        self._builder = FeatureBuilder(_NO_FEATURES) if ranker is None else ranker.builder
        spec = self._builder.spec
        self.events_max = spec.events_max
        self.history = EventHistory(spec)
        self.context = np.zeros((1, len(spec.context_floats)), np.float32)
        """[1, Fx] of the last order"""
        self._feedback = np.zeros(len(spec.feedback_floats), np.float32)
        self._category = {c.name: i for i, c in enumerate(spec.candidate_categories)}.get("category")
        scales = {f.name: (i, f.scale) for i, f in enumerate(spec.candidate_floats) if f.scale > 0}
        self._duration = scales.get("duration_ms")

    def read(self, page: Page) -> tuple[PageArrays, Form | None, tuple[str, ...]]:
        """Return the page's arrays, the form that can order it (None: cloud order), and the fallbacks (names of `Counters`).

        Raises `BlockError` when not even the item ids can be read.
        """
        arrays = self._builder.page(page)
        form, fallbacks = self._form(page, arrays)
        # Vectors that the form does not take must not reach a split model later, as features of shown items.
        return arrays if form == "split" else arrays.without_vectors(), form, fallbacks

    def _form(self, page: Page, arrays: PageArrays) -> tuple[Form | None, tuple[str, ...]]:
        ranker = self.ranker
        if ranker is None:
            return None, ("no_model",) if self._expected else ()
        if arrays.problem is not None:
            return None, ("features_bad",)
        taken: tuple[str, ...] = ()
        if "split" in ranker.runtimes:
            if page.candidates.vector is None or page.user_vector is None:
                taken = ("vectors_absent",)
            elif page.split_version != ranker.split_version:
                taken = ("split_mismatch",)
            elif arrays.vector is None:
                taken = ("vectors_bad",)
            else:
                return "split", ()
        return ("self_contained", taken) if "self_contained" in ranker.runtimes else (None, (*taken, "no_model"))

    def hold(self, arrays: PageArrays, form: Form | None) -> Remaining:
        """Return the candidates to show, with the models' work done that depends on the page alone.

        Raises `RuntimeRunError`.
        """
        held = Remaining(arrays, 0 if self.ranker is None else self.ranker.rows)
        if self.ranker is not None and form is not None:
            self.ranker.prepare(form, held)
        return held

    def fork(self) -> None:
        """Go on with copies of the memory, and leave the originals to a run that is late."""
        self.history, self.context = self.history.copy(), self.context.copy()

    def remember(self, event: FeedbackEvent, shown: ShownItem, at_ms: int) -> bool:
        """Take in how an item was watched that was shown at `at_ms`. False when the event is older than all it remembers."""
        if self.personal is not None and shown.shipped is not None:
            category = 0 if self._category is None else int(shown.arrays.categories[shown.row, self._category])
            self.personal.learn(shown.shipped, labels(event, self.personal.tasks, self._duration_ms(shown)), category)
        self._builder.feedback(event, self._feedback)
        return self.history.append(at_ms, event.position, self._feedback, shown.arrays, shown.row)

    def effective(self, event: FeedbackEvent, shown: ShownItem) -> float:
        """Return 1 for an effective view, 0 for another, NaN when that is not known."""
        return float(labels(event, ("effective_view",), self._duration_ms(shown))[0])

    def _duration_ms(self, shown: ShownItem) -> float | None:
        at = self._duration
        return None if at is None else float(shown.arrays.floats[shown.row, at[0]]) / at[1]

    def rank(
        self, form: Form, held: Remaining, now_ms: int, position: int, search: SearchSpec | None = None
    ) -> tuple[Ranking | None, NDArray[np.float32] | None]:
        """Return the ranking of what is held, None when a score is not a finite number, and the shipped model's probabilities
        [n, K] behind it, None without a personal layer.

        `search` replaces the ranker's. Raises `RuntimeRunError`.
        """
        assert self.ranker is not None
        self._builder.context(position, now_ms, self.context[0])
        shipped: list[NDArray[np.float32]] = []
        adjust = None if self.personal is None else self._adjust(self.personal, held, shipped)
        moment = Moment(held, self.history, self.context, now_ms, position)
        ranking = self.ranker.order(form, moment, adjust, search)
        return ranking, shipped[0] if shipped else None

    def _adjust(self, personal: PersonalLayer, held: Remaining, first: list[NDArray[np.float32]]) -> Adjust:
        """Return the layer's adjustment of what is held. A search calls it many times; `first` keeps its first argument."""
        codes = None if self._category is None else held.categories[0, :, self._category]

        def adjust(shipped: NDArray[np.float32]) -> NDArray[np.float32]:
            if not first:
                first.append(shipped.copy())
            return personal.adjust(shipped, None if codes is None else codes[: len(shipped)])

        return adjust
