"""The simulated world: its catalogue, its users, simulated logs, and live sessions."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np

from pocketrank.cloud.data.schema import ImpressionLog
from pocketrank.sdk_demo.world import luck
from pocketrank.sdk_demo.world.catalogue import DAY_MS, Items, make_items
from pocketrank.sdk_demo.world.config import WorldConfig
from pocketrank.sdk_demo.world.errors import UnknownIdError, WorldError
from pocketrank.sdk_demo.world.response import ResponseModel
from pocketrank.sdk_demo.world.session import SESSION_TAG, UserSession
from pocketrank.sdk_demo.world.simulate import simulate_log
from pocketrank.sdk_demo.world.users import Users, make_users

__all__ = ["World"]


class World:
    """A simulated world. It is determined by `config` and `seed` (by default `config.seed`).

    `items` and `users` are columnar; ids are row number + 1. Raises `WorldError` for a negative seed.
    """

    def __init__(self, config: WorldConfig, seed: int | None = None) -> None:
        self.config = config if seed is None else msgspec.structs.replace(config, seed=_seed(seed))
        root = np.random.SeedSequence([self.config.seed, 0x3012D])
        for_items, for_users = (np.random.Generator(np.random.PCG64(s)) for s in root.spawn(2))
        self.items: Items = make_items(self.config, for_items)
        self.users: Users = make_users(self.config, self.items, for_users)
        self._model = ResponseModel(self.config, self.items, self.users)

    def simulate_log(self, *, seed: int, progress: Callable[[float], None] | None = None) -> ImpressionLog:
        """Simulate all users under the logging policy and return the log in the schema that models train on.

        `progress` is called with the share done, 0..1. The last pages and sessions may end minutes after the log.
        """
        return simulate_log(self.config, self.items, self.users, self._model, seed=_seed(seed), progress=progress)

    def session(self, user_id: int, *, seed: int, start_ms: int | None = None) -> UserSession:
        """Return a live session. By default it starts in the evening after the log, at a time drawn from user and seed.

        Raises `UnknownIdError` for a user that this world does not have.
        """
        if not 1 <= user_id <= len(self.users):
            raise UnknownIdError("user_id", f"an id in 1..{len(self.users)}", str(user_id))
        user = user_id - 1
        key = luck.keys_from(self.config.seed, _seed(seed), SESSION_TAG, user)
        log = self.config.log
        if start_ms is None:
            after = log.start_ms + int(np.ceil(log.days)) * DAY_MS
            # A uniform hour with the deviation of the log's evenings.
            hour = log.evening_hour + np.sqrt(12.0) * log.evening_spread * (luck.uniforms(key, 1)[0, 0] - 0.5)
            start_ms = after + int(hour * 3_600_000)
        state = self._model.path.start(key, np.array([user]), np.array([start_ms]))
        return UserSession(self.config, self._model, state, len(self.items))


def _seed(seed: int) -> int:
    if seed < 0:
        raise WorldError("seed", "an integer >= 0", str(seed))
    return seed
