"""The users of the simulated world: long-term taste, habits, and attributes that depend on them through noise."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Int32, Int64

from pocketrank.cloud.data import schema
from pocketrank.sdk_demo.world.catalogue import Items, unit_rows
from pocketrank.sdk_demo.world.config import WorldConfig

__all__ = ["MOODS", "Users", "make_users"]

MOODS = ("sound", "patience", "impatience")
"""Hidden moods of a session: listening to sound, patient with long items, in a hurry."""

_AGE_BANDS = 5
_REGIONS = 8
_TIERS = 3


@dataclass(frozen=True)
class Users:
    """The users, columnar; row u is the user with id u + 1.

    `categories` holds age band, region, phone tier and declared interest (codes from 1); `floats` holds activity, account age
    and two questionnaire scores. All other columns are hidden: no log holds them.
    """

    user_id: Int64[np.ndarray, " users"]
    categories: Int32[np.ndarray, "users attributes"]
    floats: Float32[np.ndarray, "users numbers"]
    taste: Float[np.ndarray, "users d"]
    interest: Float[np.ndarray, "users topics"]
    mood_bias: Float[np.ndarray, "users moods"]
    wifi: Float[np.ndarray, " users"]
    activity: Float[np.ndarray, " users"]

    def __len__(self) -> int:
        return len(self.user_id)

    def table(self) -> pa.Table:
        """Return the log's user table (`pocketrank.cloud.data.schema.USERS`)."""
        return pa.table(
            {"user_id": self.user_id, "categories": list(self.categories), "floats": list(self.floats)},
            schema=schema.USERS,
        )


def make_users(config: WorldConfig, items: Items, rng: np.random.Generator) -> Users:
    """Draw the users."""
    c = config.users
    topics, d = items.centres.shape
    # Each user likes a few topics, chosen by the ranks of a random matrix.
    liked = np.argsort(rng.random((c.count, topics)), axis=1)[:, : c.interests]
    weights = rng.dirichlet(np.full(c.interests, c.interest_concentration), c.count)
    interest = np.zeros((c.count, topics))
    np.put_along_axis(interest, liked, weights, axis=1)
    noise = unit_rows(rng.standard_normal((c.count, d))) * c.taste_noise
    taste = unit_rows(interest @ items.centres + noise)

    mood_bias = rng.normal(0.0, c.mood_bias, (c.count, len(MOODS)))
    wifi = np.clip(c.wifi_share + rng.normal(0.0, c.wifi_spread, c.count), 0.0, 1.0)
    log_activity = rng.normal(0.0, c.activity_sigma, c.count)
    activity = np.exp(log_activity - c.activity_sigma**2 / 2)  # mean 1

    def reading(x: Float[np.ndarray, " users"]) -> Float[np.ndarray, " users"]:
        """Return a hidden value with noise, standardised."""
        noisy = x / (x.std() + 1e-9) + rng.normal(0.0, c.attribute_noise, c.count)
        centred: Float[np.ndarray, " users"] = noisy - noisy.mean()
        spread = float(centred.std()) + 1e-9
        return centred / spread

    def code(x: Float[np.ndarray, " users"], size: int) -> Int64[np.ndarray, " users"]:
        """Return codes 1..size of equally large groups."""
        rank = np.empty(c.count, dtype=np.int64)
        rank[np.argsort(x)] = np.arange(c.count)
        return 1 + rank * size // c.count

    directions = unit_rows(rng.standard_normal((4, d)))
    declared = np.where(rng.random(c.count) < c.declared_share, interest.argmax(axis=1), rng.integers(0, topics, c.count)) + 1
    categories = np.stack(
        [
            code(reading(taste @ directions[0]), _AGE_BANDS),
            code(reading(taste @ directions[1]), _REGIONS),
            code(reading(wifi), _TIERS),
            declared,
        ],
        axis=1,
    )
    floats = np.stack(
        [reading(log_activity), rng.standard_normal(c.count), reading(taste @ directions[2]), reading(taste @ directions[3])],
        axis=1,
    )
    return Users(
        user_id=np.arange(1, c.count + 1, dtype=np.int64),
        categories=categories.astype(np.int32),
        floats=floats.astype(np.float32),
        taste=taste,
        interest=interest,
        mood_bias=mood_bias,
        wifi=wifi,
        activity=activity,
    )
