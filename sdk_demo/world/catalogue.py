"""The items of the simulated world: topics, authors, durations, sound tracks, upload times and vectors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from jaxtyping import Float, Float32, Int32, Int64

from pocketrank.cloud.data import schema
from pocketrank.sdk_demo.world.config import WorldConfig

__all__ = ["DAY_MS", "Items", "make_items", "unit_rows"]

DAY_MS = 86_400_000
"""Milliseconds in a day."""


@dataclass(frozen=True)
class Items:
    """The catalogue, columnar; row i is the item with id i + 1, in order of upload.

    `quality` and `centres` are hidden: no log holds them. All other columns are in the log's item table.
    """

    item_id: Int64[np.ndarray, " items"]
    author_id: Int64[np.ndarray, " items"]
    category: Int32[np.ndarray, " items"]
    duration_ms: Int64[np.ndarray, " items"]
    upload_ms: Int64[np.ndarray, " items"]
    music_id: Int64[np.ndarray, " items"]
    vector: Float32[np.ndarray, "items d"]
    quality: Float[np.ndarray, " items"]
    centres: Float[np.ndarray, "topics d"]

    def __len__(self) -> int:
        return len(self.item_id)

    def table(self) -> pa.Table:
        """Return the log's item table (`pocketrank.cloud.data.schema.ITEMS`)."""
        return pa.table(
            {
                "item_id": self.item_id,
                "duration_ms": self.duration_ms,
                "author_id": self.author_id,
                "category": self.category,
                "music_id": self.music_id,
                "upload_ms": self.upload_ms,
                "vector": list(self.vector),
                **{name: pa.nulls(len(self), schema.ITEMS.field(name).type) for name in ("categories", "floats")},
            },
            schema=schema.ITEMS,
        )


def unit_rows(x: Float[np.ndarray, "rows d"]) -> Float[np.ndarray, "rows d"]:
    """Return the rows scaled to length 1."""
    unit: Float[np.ndarray, "rows d"] = x / np.linalg.norm(x, axis=1, keepdims=True)
    return unit


def make_items(config: WorldConfig, rng: np.random.Generator) -> Items:
    """Draw a catalogue."""
    c = config.catalogue
    d = c.vector_width
    centres = unit_rows(rng.standard_normal((c.topics, d)))

    # Authors have a home topic, a style and a quality; an item varies around its author.
    home = rng.integers(0, c.topics, c.authors)
    style = unit_rows(rng.standard_normal((c.authors, d))) * c.author_spread
    author_quality = rng.normal(0.0, c.author_quality, c.authors)
    # A few authors upload many items, most of them few.
    output = rng.pareto(c.author_tail, c.authors) + 0.2
    author = rng.choice(c.authors, c.items, p=output / output.sum())
    # The first items cover all topics, so that no topic is empty with few authors; the others are of the home topic.
    topic = np.where(np.arange(c.items) < c.topics, np.arange(c.items) % c.topics, home[author])
    own = unit_rows(rng.standard_normal((c.items, d))) * c.item_spread
    vector = unit_rows(centres[topic] + style[author] + own).astype(np.float32)
    quality = author_quality[author] + rng.normal(0.0, c.item_quality, c.items)

    # Durations are log-normal within a topic.
    is_long = np.arange(c.topics) >= c.topics - c.long_topics
    topic_log = rng.normal(0.0, c.duration_topic_sigma, c.topics) + np.where(is_long, np.log(c.duration_long_factor), 0.0)
    log_s = np.log(c.duration_median_s) + topic_log[topic] + rng.normal(0.0, c.duration_sigma, c.items)
    duration_s = np.clip(np.exp(log_s), c.duration_min_s, c.duration_max_s)

    # Items of music topics share popular tracks; the square favours the first ones.
    popular = max(1, c.music_tracks // 2)
    track = np.where(
        topic < c.music_topics,
        (popular * rng.random(c.items) ** 2).astype(np.int64),
        rng.integers(0, c.music_tracks, c.items),
    )
    # Upload times are sorted and topics are not, so that ids follow time and reveal nothing else.
    order = rng.permutation(c.items)
    online = round(c.items * c.initial_share)
    before = rng.random(online) * c.initial_days
    during = rng.random(c.items - online) * config.log.days
    days = np.sort(np.concatenate((-before, during)))
    return Items(
        item_id=np.arange(1, c.items + 1, dtype=np.int64),
        author_id=(author[order] + 1).astype(np.int64),
        category=(topic[order] + 1).astype(np.int32),
        duration_ms=np.round(duration_s[order] * 1000).astype(np.int64),
        upload_ms=(config.log.start_ms + np.floor(days * DAY_MS)).astype(np.int64),
        music_id=(track[order] + 1).astype(np.int64),
        vector=vector[order],
        quality=quality[order],
        centres=centres,
    )
