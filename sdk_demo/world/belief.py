"""What could be known of a session without looking into the user's head.

A Bayes filter for somebody who knows the catalogue and each user's lasting taste, interests and moods, and sees whether items
were watched. Of the moment's hidden state it follows the focus, exactly; drift and the moods' swings stay at their means, and
satiation is known because it follows from what was watched. So it tells about what a device could win if the cloud's knowledge
were perfect; how long items were watched and the device's signals, which it does not use, could add to that.
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
        """P(effective view) of `items` (row numbers) now, under each focus."""
        topics = len(self.focus)
        guess = state.take(np.zeros(topics, dtype=np.int64))
        guess.intent, guess.feeling = self._path.expected(self._user)
        return self._model.probabilities(guess, np.repeat(items[None], topics, 0))["effective_view"]

    def learn(self, rates: Float[np.ndarray, " topics"], effective: bool) -> None:
        """Take in how the item with these `rates` was watched; then the focus may jump."""
        posterior = self.focus * (rates if effective else 1.0 - rates)
        self.focus = (1.0 - self._jump) * posterior / posterior.sum() + self._jump * self._prior
