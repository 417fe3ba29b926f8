"""The profile of a run's inputs from training rows, and the same counts of the rows of another log.

Both are of uniform samples of at most `ROWS_MAX` rows and as many lists, so that memory does not grow with the log.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank.cloud.data.category_columns import category_of
from pocketrank.cloud.data.entities import Entities
from pocketrank.cloud.data.log import Log
from pocketrank.cloud.data.sample_stream import SampleStream, WindowConfig
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import CATEGORIES, DataError
from pocketrank.cloud.published.profile import Profile, ProfiledFeature
from pocketrank.cloud.published.published import Published, PublishedError
from pocketrank.cloud.time_zones import DAY_MS
from pocketrank.cloud.training.device_model import item_columns
from pocketrank.cloud.training.passes import held_out_rows
from pocketrank.cloud.training.run import Run

__all__ = ["ROWS_MAX", "ProfileSample", "code_texts", "log_profile", "run_profile"]

ROWS_MAX = 100_000
"""Rows of a sample. With so many the PSI of two samples of the same is about 0.0002."""

Columns = dict[str, NDArray[Any]]


class _Reservoir:
    """Uniform sample of at most `size` rows, which come part by part: those with the smallest random keys."""

    def __init__(self, size: int) -> None:
        self._size, self._rng = size, np.random.default_rng(0)
        self._keys = np.zeros(0)
        self._limit = 1.0
        self.columns: Columns = {}
        """[n] by name"""

    def add(self, rows: int, columns: Callable[[NDArray[np.int64]], Columns]) -> None:
        """Sample of the next rows, whose `columns` are computed for those that are chosen."""
        keys = self._rng.random(rows)
        chosen = np.flatnonzero(keys < self._limit)
        self._keys = np.concatenate([self._keys, keys[chosen]])
        parts = columns(chosen)
        kept = np.argsort(self._keys)[: self._size]
        self._keys = self._keys[kept]
        if len(kept) == self._size:
            self._limit = float(self._keys[-1])
        self.columns = {name: np.concatenate([self.columns.get(name, part[:0]), part])[kept] for name, part in parts.items()}

    def __len__(self) -> int:
        return len(self._keys)


class ProfileSample:
    """Sample of the inputs of rows and lists of a log, window by window."""

    def __init__(
        self, entities: Entities, known: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None, size: int = ROWS_MAX
    ) -> None:
        """`entities` are the items and users of the log. `known` are the ids of items and of users that a run knows, by default
        all of them.
        """
        self._entities = entities
        self._floats, self._codes = item_columns(entities)
        self._item_known, self._user_known = np.arange(len(entities.item_ids)) > 0, np.arange(len(entities.user_ids)) > 0
        if known is not None:
            self._item_known &= np.isin(entities.item_ids, known[0])
            self._user_known &= np.isin(entities.user_ids, known[1])
        self._rows, self._lists = _Reservoir(size), _Reservoir(size)

    def add(self, samples: Samples, rows: NDArray[np.int64]) -> None:
        """Sample of `rows` [r] of a window, and of their lists."""
        lists = np.unique(samples.row_list[rows])
        self._rows.add(len(rows), lambda chosen: self._candidates(samples, rows[chosen]))
        self._lists.add(len(lists), lambda chosen: self._requests(samples, lists[chosen]))

    @property
    def pages(self) -> int:
        """Number of lists in the sample."""
        return len(self._lists)

    @property
    def columns(self) -> Columns:
        """The sample: of pages [p] and of candidates [r], by the names of their features."""
        return self._lists.columns | self._rows.columns

    def profile(self, ids: pa.Table) -> Profile:
        """Return the profile of what was added. `ids` are the dictionaries of the log."""
        features = []
        for of, columns in (("page", self._lists.columns), ("candidate", self._rows.columns)):
            for name, values in columns.items():
                one = ProfiledFeature.fit(name, of, values)  # type: ignore[arg-type]
                if one.codes:
                    one = replace(one, texts=tuple(code_texts(ids, self._entities, name, np.array(one.codes))))
                features.append(one)
        return Profile(pages=self.pages, features=tuple(features))

    def _candidates(self, samples: Samples, rows: NDArray[np.int64]) -> Columns:
        """Return the columns that a page carries of the items that rows showed."""
        s, event = samples, samples.row_event[rows]
        item, upload_ms = s.event_item[event], self._entities.item_upload_ms
        columns: Columns = {f"pxtr_{task}": s.event_pxtr[event, k] for k, task in enumerate(s.config.tasks)}
        names = ("duration_ms", *s.item_float_names)
        columns |= {name: self._floats[item, k] for k, name in enumerate(names)}
        upload_day = np.where(upload_ms > np.iinfo(np.int64).min, upload_ms / DAY_MS, np.nan)
        columns.setdefault("age", (s.event_ms[event] / DAY_MS - upload_day[item]).astype(np.float32))
        names = ("category", "author", *s.item_category_names)
        columns |= {name: self._codes[item, k].astype(np.int64) for k, name in enumerate(names)}
        features = s.config.features
        columns |= {features.names[place]: s.event_statistics[event, place] for place in features.device}
        return columns | {"item.known": _known(self._item_known[item])}

    def _requests(self, samples: Samples, lists: NDArray[np.int64]) -> Columns:
        """Return what serving knows when it makes the page of a list."""
        s, user, end = samples, samples.list_user[lists], samples.list_event[lists]
        length = np.minimum(end - s.user_start[user], s.config.history_max)
        sums = np.concatenate([np.zeros((1, s.event_history.shape[1])), np.cumsum(s.event_history, 0, np.float64)])
        means = (sums[end] - sums[end - length]) / np.where(length > 0, length, np.nan)[:, None]
        names = [f"history.{name}" for name in s.history_feedback]
        return {
            "user.known": _known(self._user_known[user]),
            "history.length": length.astype(np.float32),
            **dict(zip(names, means.astype(np.float32).T, strict=True)),  # as exact as serving computes them
            "request.scene": s.list_scene[lists, 0].astype(np.int64),
            "request.hour": s.list_hour[lists, 0].astype(np.int64),
        }


def _known(known: NDArray[np.bool_]) -> NDArray[np.float32]:
    return np.where(known, np.float32(1), np.float32(np.nan))


def code_texts(ids: pa.Table, entities: Entities, name: str, codes: NDArray[np.int64]) -> list[str]:
    """Return what codes [n] of a feature stand for: the text of a category, the id of an author, or the code itself.

    Other logs may have other codes for the same texts. `ids` are the dictionaries of the log, `entities` its items.
    """
    if name.startswith("request."):  # scene and hour, whose codes begin behind that of the unknown
        return [str(code - 1) for code in codes.tolist()]
    kind = name if name == "category" else f"items.{category_of(name)}"
    if name == "author":  # its codes are those of a training alone
        known, first = np.unique(entities.item_author, return_index=True)
        kind, codes = "author_id", entities.item_author_id[first[known.searchsorted(codes)]]
    rows = ids.filter(pc.and_(pc.equal(ids["kind"], kind), pc.is_in(ids["code"], pa.array(codes))))
    texts = dict(zip(rows["code"].to_pylist(), rows["text"].to_pylist(), strict=True))
    return [texts.get(code, str(code)) for code in codes.tolist()]


def run_profile(run: Run) -> Profile:
    """Return the profile of a run. Raises `PublishedError` for one without."""
    profile = Profile.open(run.published)
    if profile is None:
        what = "Expected a run with a profile of its inputs, got one that was published without"
        raise PublishedError(f"{what} - at {run.folder}. Train it again.")
    return profile


def log_profile(run: Run, log: Log, since: date | None = None, windows: WindowConfig | None = None) -> Profile:
    """Return the counts of the rows of a log from the day `since` on, in the bins of the profile of a run.

    Earlier rows are the history of users. The scores of a run with a ranker are left out, because the log has others or none.
    Raises `PublishedError` for a run without a profile, `DataError` for a log without rows or labels.
    """
    profile = run_profile(run)
    published, record = Published.open(run.published)
    config = SampleConfig(
        tasks=record.tasks,
        time_zone=record.time_zone,
        test_from=since,
        history_max=record.history_max,
        features=record.features.config,
    )
    stream = SampleStream(log, config, windows or WindowConfig())
    facts = stream.facts
    stream.facts = dataclasses.replace(facts, statistics=facts.statistics.with_means(record.features.means))
    sample = ProfileSample(stream.facts, (published.item_id, published.user_id))
    for span in stream.spans():
        for shard in range(span.shards):
            samples = span.build(shard)
            sample.add(samples, np.arange(len(samples.row_event)) if since is None else held_out_rows(samples))
            span.done(samples)
    if not sample.pages:
        raise DataError(log.name, f"expected impressions from {since} on, got none")
    columns = {
        name: values
        for name, values in sample.columns.items()
        if not name.startswith("pxtr_") or (not record.ranker and name in log.scores)
    }
    ids = log.ids_of(("author_id", CATEGORIES))
    for one in profile.features:
        if one.codes is not None and one.name in columns and one.of == "candidate":
            columns[one.name] = _as_trained(one, columns[one.name], ids, stream.facts)
    return profile.counted(columns, sample.pages)


def _as_trained(feature: ProfiledFeature, codes: NDArray[np.int64], ids: pa.Table, entities: Entities) -> NDArray[np.int64]:
    """Return the codes [n] of a log as those of the profile. Those that are not in it are one code that is not, either."""
    assert feature.codes is not None
    own, place = np.unique(codes, return_inverse=True)
    of_text: Mapping[str, int] = dict(zip(feature.texts, feature.codes, strict=True))
    other = max(feature.codes, default=0) + 1
    texts: Sequence[str] = code_texts(ids, entities, feature.name, own)
    return np.where(own < 1, 0, [of_text.get(text, other) for text in texts])[place]
