"""The models that a session uses from its next page on, and why there may be none."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pocketrank.device.model.personal import PersonalLayer
from pocketrank.device.ranking.ranker import Ranker
from pocketrank.device.session.session_models import SessionModels

if TYPE_CHECKING:
    from pocketrank.device.updates import Updates

__all__ = ["NextModels"]

_LOG = logging.getLogger("pocketrank.device")
_NOT_GIVEN = "no ranker was given; set `SessionConfig.expects_model` to False if that is intended"


class NextModels:
    """Models by `updates`, or else those that the app gives. `models` may be read by any thread."""

    def __init__(
        self,
        ranker: Ranker | None,
        personal: PersonalLayer | None,
        updates: Updates | None,
        *,
        user_id: int,
        session_id: str,
        expected: bool,
    ) -> None:
        """Raises ValueError for a layer of another user or over other tasks than the ranker's."""
        self._updates, self._user_id, self._session_id, self._expected = updates, user_id, session_id, expected
        self._no_ranker = _NOT_GIVEN
        self._warned: set[str] = set()
        self.models = self._made(ranker if updates is None else self._newest(updates), personal)

    def use(self, ranker: Ranker | None, personal: PersonalLayer | None) -> None:
        """Change to the app's models. Raises ValueError as the constructor does."""
        self.models, self._no_ranker = self._made(ranker, personal), _NOT_GIVEN

    def refresh(self) -> None:
        """Change to the models that `updates` has now. To be called between two pages."""
        if self._updates is not None and (ranker := self._newest(self._updates)) is not self.models.ranker:
            self.models = self._made(ranker, None)

    def warn(self, models: SessionModels, fallbacks: tuple[str, ...]) -> None:
        """Log why a page has no model, once for each reason: at every page, the log would hold nothing else."""
        reason = self._no_ranker if models.ranker is None else f"the ranker has no model for this page ({fallbacks[0]})"
        if reason not in self._warned:
            self._warned.add(reason)
            _LOG.warning("Session %s shows pages in cloud order: %s", self._session_id, reason)

    def _newest(self, updates: Updates) -> Ranker | None:
        current = updates.current()
        self._no_ranker = f"`updates` has no bundle to rank with ({current.why})"
        return current.ranker

    def _made(self, ranker: Ranker | None, personal: PersonalLayer | None) -> SessionModels:
        if personal is not None and personal.user_id != self._user_id:
            raise ValueError(f"expected the personal layer of user {self._user_id}, got that of {personal.user_id}")
        return SessionModels(ranker, personal, expected=self._expected)
