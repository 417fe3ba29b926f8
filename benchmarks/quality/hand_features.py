"""Features of an impression made by hand, and LightGBM on them.

Each row is what could be known the moment before it was shown: rates of item, author and category as of its day, on test days
as of the first of them, as for all models; what the full ranker said; the user's attributes; and how the user took the last
items, events of the log and of before it alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import lightgbm
import numpy as np
from jaxtyping import Float
from numpy.typing import NDArray

from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.samples import Samples

__all__ = ["TreeConfig", "Trees", "hand_features"]

WINDOWS = (3, 10, 20)
"""Last events that are counted, as in the data's own first try."""
PXTR_MIN = 1e-4
"""pXTRs are clipped before a logit, as in the device model."""


@dataclass(frozen=True)
class TreeConfig:
    """Boosted trees; the numbers that are not tuned are usual ones for some hundred thousand rows."""

    objective: str
    """`lambdarank` (Burges 2010) or `binary`."""
    learning_rate: float
    """Of each tree."""
    trees: int
    """How many."""
    leaves: int = 31
    """Of a tree; LightGBM's default."""
    leaf_rows: int = 100
    """Fewest rows of a leaf: likes are one row in sixty."""
    share: float = 0.8
    """Of the features for each tree."""
    list_rows: int = 64
    """Rows of a list, neighbours in time whoever saw them. In lists of one user, of whom each row knows more than the row
    before, a tree learns that what was liked is not liked again: on this data its AUC falls below one half.
    """


class Trees:
    """One model per task."""

    def __init__(self, config: TreeConfig) -> None:
        self.config = config
        self._boosters: list[lightgbm.Booster] = []

    def fit(
        self,
        features: Float[NDArray[np.float32], "r f"],
        labels: Float[NDArray[np.float32], "r k"],
        time: NDArray[np.int64],
        seed: int,
    ) -> None:
        """Learn each column of `labels`, NaN being unknown; `time` [r] orders the rows."""
        c = self.config
        options = {
            "objective": c.objective,
            "learning_rate": c.learning_rate,
            "num_leaves": c.leaves,
            "min_data_in_leaf": c.leaf_rows,
            "feature_fraction": c.share,
            "lambdarank_truncation_level": c.list_rows,
            "seed": seed,
            "num_threads": 1,
            "deterministic": True,
            "verbose": -1,
        }
        order = np.argsort(time, kind="stable")
        for y in labels.T:
            known = order[~np.isnan(y[order])]
            group = np.bincount(np.arange(len(known)) // c.list_rows) if c.objective == "lambdarank" else None
            data = lightgbm.Dataset(features[known], y[known], group=group)
            self._boosters.append(lightgbm.train(options, data, c.trees))

    def predict(self, features: Float[NDArray[np.float32], "r f"]) -> Float[NDArray[np.float32], "r k"]:
        """Scores; probabilities only with the objective `binary`."""
        return np.stack([np.asarray(b.predict(features, num_threads=1)) for b in self._boosters], 1).astype(np.float32)


def hand_features(samples: Samples, statistics: ItemStatistics, *, fresh: bool = True) -> Float[NDArray[np.float32], "r f"]:
    """One line per row of `samples`; those not `fresh` know of the events before their list's request alone."""
    s = samples
    at = s.row_list, s.row_slot
    event, user = s.row_event, s.event_user[s.row_event]
    item = s.event_item[event]
    day = np.minimum(s.event_day[event], s.learn_until)
    of_item = np.empty((len(event), statistics.width), np.float32)
    for d in np.unique(day):
        of_item[day == d] = statistics.as_of(int(d))[item[day == d]]
    score = s.event_pxtr[event].clip(PXTR_MIN, 1 - PXTR_MIN)
    moment = np.stack([s.list_hour[at], s.list_scene[at], s.row_position, s.row_event - s.user_start[user]], 1)
    columns = [
        np.log(score / (1 - score)),
        of_item,
        s.user_categories[user],
        s.user_floats[user],
        moment,
        _taken(s, event if fresh else s.list_event[s.row_list]),
    ]
    return np.concatenate(columns, 1).astype(np.float32)


def _taken(s: Samples, until: NDArray[np.int64]) -> NDArray[np.float32]:
    """How the last events before `until` were taken: all, those of the same category, of the same author; and how long ago."""
    event = s.row_event
    first, item = s.user_start[s.event_user[event]], s.event_item[event]
    names = list(HISTORY_FEEDBACK)
    logged = s.event_history[:, names.index("logged")]
    duration = s.item_duration_s[s.event_item]
    watched = np.expm1(s.event_history[:, names.index("watch_log")])
    share = np.where(duration > 0, np.minimum(watched / np.maximum(duration, 1), 2), 0) * logged
    signals = np.concatenate([s.event_history, share[:, None]], 1)  # e g
    total = {name: np.zeros((len(event), signals.shape[1] + 1), np.float32) for name in ("all", "category", "author")}
    out: list[NDArray[np.floating]] = []
    for back in range(1, max(WINDOWS) + 1):
        at = np.maximum(until - back, 0)
        real = until - back >= first
        signal = np.concatenate([np.ones((len(at), 1), np.float32), signals[at]], 1)
        for name, code in (("all", None), ("category", s.item_category), ("author", s.item_author)):
            alike = real if code is None else real & (code[s.event_item[at]] == code[item]) & (code[item] > 0)
            total[name] += signal * alike[:, None]
        if back in WINDOWS:
            out += [sums / np.where(np.arange(sums.shape[1]) == 0, 1, sums[:, :1] + 1) for sums in total.values()]
        if back in (1, WINDOWS[0]):
            seconds = (s.event_ms[event] - s.event_ms[at]) / 1000
            known = real & (logged[at] > 0)
            out.append(np.where(known, np.log1p(np.maximum(seconds, 0)), np.nan)[:, None])
    return np.concatenate(out, 1).astype(np.float32)
