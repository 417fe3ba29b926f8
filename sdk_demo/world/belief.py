"""Bayes filter of a session's hidden state, for an observer who knows items and users perfectly.

The observer knows the catalogue and each user's lasting taste, interests and mean moods, and sees whether items were watched
effectively. Of the session's hidden state, the filter infers the focus exactly; drift and the deviations of moods stay at their
means, and satiation is known because it follows from the watched items. Ranking by it is roughly what a device could gain if
the cloud's knowledge were perfect; watch times and device signals, which the filter does not use, could add to that.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from pocketrank.sdk_demo.world.config import WorldConfig
from pocketrank.sdk_demo.world.response import ResponseModel
from pocketrank.sdk_demo.world.state import State

__all__ = ["FocusBelief"]


class FocusBelief:
    """Probabilities of the focus topics of one session."""

    def __init__(self, config: WorldConfig, model: ResponseModel, user: int) -> None:
        """`user` is a row number."""
        self._model, self._path, self._user = model, model.path, user
        self._jump = config.session.jump_rate
        self._prior = self._path.focus_prior(user)
        self.focus: Float[np.ndarray, " topics"] = self._prior

    def rates(self, state: State, items: Int[np.ndarray, " n"]) -> Float[np.ndarray, "topics n"]:
        """Return P(effective view) of `items` (row numbers) now, for each possible focus."""
        topics = len(self.focus)
        guess = state.take(np.zeros(topics, dtype=np.int64))
        guess.intent, guess.feeling = self._path.expected(self._user)
        return self._model.probabilities(guess, np.repeat(items[None], topics, 0))["effective_view"]

    def learn(self, rates: Float[np.ndarray, " topics"], effective: bool) -> None:
        """Update the belief with whether the item with these `rates` was watched effectively; then the focus may jump."""
        # Bayes' rule, then the transition: with probability `jump` the focus is drawn again.
        posterior = self.focus * (rates if effective else 1.0 - rates)
        self.focus = (1.0 - self._jump) * posterior / posterior.sum() + self._jump * self._prior
