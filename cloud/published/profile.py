"""The profile of a run's inputs: how each was distributed in training, and how far another sample has drifted from it.

::

    profile.json             `Profile`; optional: runs of before have none

The values of a feature are counted in bins. The first is for unknown ones: NaN in a number, a code below 1 in a category. A
number has the deciles of training as bounds, a category a bin for each of its most frequent codes and one for all others.

Features of a candidate have the names of a page's columns, and `item.known`; those of a page are `user.known`,
`history.length`, the mean of each kind of feedback in the history (`history.like`), `request.scene` and `request.hour`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from pocketrank.cloud.files import write_atomically
from pocketrank.cloud.published.published import PublishedError

__all__ = ["LARGE", "MODERATE", "Bins", "InputProfiles", "Profile", "ProfiledFeature", "drift", "psi"]

PROFILE_FORMAT = 1
QUANTILES = 10
"""Bins of a number, each with as many training rows, unless values repeat."""
CODES_MAX = 24
"""Codes of a category that have bins of their own; all hours of a day fit."""
MODERATE, LARGE = 0.1, 0.25
"""PSI from which on a change is moderate, and from which on it is large (Siddiqi, Credit Risk Scorecards, 2006)."""
NOISE_MAX = MODERATE / 2
"""PSI that equal distributions may be expected to have by chance; where samples are too small for it, there is no verdict."""
_SHARE_MIN = 1e-4
"""Share that an empty bin counts as, because the logarithm of 0 is infinite."""
_FILE = "profile.json"
_KINDS = (np.float32, np.float64)


class ProfiledFeature(msgspec.Struct, frozen=True, kw_only=True):
    """One feature: its bins, and how many values were in each. `edges` are those of a number, `codes` those of a category."""

    name: str
    of: Literal["page", "candidate"]
    """Whether a page has one value, or each of its candidates has."""
    edges: tuple[float, ...] = ()
    """Upper bounds of the bins, ascending and included; the last bin has none."""
    codes: tuple[int, ...] | None = None
    """Codes with a bin of their own, the most frequent ones, ascending; None for a number."""
    texts: tuple[str, ...] = ()
    """What the codes stand for."""
    counts: tuple[int, ...] = ()
    """Values in each bin: unknown ones, then those of `edges`, or of `codes` and of all other codes."""

    @classmethod
    def fit(cls, name: str, of: Literal["page", "candidate"], values: NDArray[Any]) -> ProfiledFeature:
        """Return the feature with bins for `values` [n]; integers are codes of a category, floats are numbers."""
        if np.issubdtype(values.dtype, np.integer):
            codes, counts = np.unique(values[values > 0], return_counts=True)
            top = np.sort(codes[np.argsort(-counts, kind="stable")[:CODES_MAX]]).tolist()
            return cls(name=name, of=of, codes=tuple(top), texts=tuple(map(str, top))).counted(values)
        known = np.sort(values[np.isfinite(values)])
        edges = known[(np.arange(1, QUANTILES) * len(known)) // QUANTILES] if len(known) else known
        # A value that is several deciles has a bin of its own, so that values below it are no part of it.
        repeated = edges[1:][edges[1:] == edges[:-1]]
        edges = np.unique(np.concatenate([edges, np.nextafter(repeated, repeated.dtype.type(-np.inf))]))
        return cls(name=name, of=of, edges=tuple(edges.tolist())).counted(values)

    @property
    def bins(self) -> int:
        """Number of bins."""
        return 2 + len(self.edges if self.codes is None else self.codes)

    def counted(self, values: NDArray[Any]) -> ProfiledFeature:
        """Return the same bins with the counts of `values` [n]."""
        return replace(self, counts=tuple(np.bincount(Bins([self])(values[:, None])[:, 0], minlength=self.bins).tolist()))

    @property
    def rows(self) -> int:
        """Number of values that were counted."""
        return sum(self.counts)

    @property
    def coverage(self) -> float | None:
        """Share of the values that are known; None without values."""
        return 1 - self.counts[0] / self.rows if self.rows else None

    def labels(self) -> list[str]:
        """Return a text for each bin."""
        if self.codes is not None:
            return ["unknown", *self.texts, "others"]
        texts = [f"{edge:.4g}" if abs(edge) < 1000 else f"{edge:,.0f}" for edge in self.edges]
        if not texts:
            return ["unknown", "known"]
        # Where an edge is just below the next one, that value has a bin of its own.
        alone = [any(np.nextafter(kind(low), kind(high)) == high for kind in _KINDS) for low, high in pairwise(self.edges)]
        labels = ["unknown"]
        for place, text in enumerate(texts):
            end = f"< {texts[place + 1]}" if place < len(alone) and alone[place] else text
            if place and alone[place - 1]:
                labels.append(text)
            elif place:
                labels.append(f"{texts[place - 1]} to {end}")
            else:
                labels.append(f"≤ {text}" if end == text else end)
        return [*labels, f"> {texts[-1]}"]


class Bins:
    """Bins of F features, which are all numbers or all categories."""

    def __init__(self, features: Sequence[ProfiledFeature]) -> None:
        rows = [one.edges if one.codes is None else one.codes for one in features]
        self._are_codes = any(one.codes is not None for one in features)
        self._table = np.full((len(rows), max(map(len, rows), default=0) + 1), np.inf)  # [F, B]
        for values, row in zip(self._table, rows, strict=True):
            values[: len(row)] = row
        self._last = np.array([1 + len(row) for row in rows])  # [F]

    def __call__(self, values: NDArray[Any]) -> NDArray[np.int64]:
        """Return the bin [n, F] of each value [n, F]."""
        if self._are_codes:
            same = values[:, :, None] == self._table
            place = np.where(same.any(2), 1 + same.argmax(2), self._last)
            return place * (values > 0)
        place = 1 + (values[:, :, None] > self._table).sum(2)
        return np.asarray(place * ~np.isnan(values))


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """A sample of inputs, counted."""

    format: int = PROFILE_FORMAT
    pages: int
    """Pages that were counted. In training a page is a list: the candidates of a request, or consecutive rows of a user."""
    features: tuple[ProfiledFeature, ...]

    def counted(self, columns: Mapping[str, NDArray[Any]], pages: int) -> Profile:
        """Return the counts of other columns in the bins of this profile. Features that are not among them are left out."""
        found = tuple(one.counted(columns[one.name]) for one in self.features if one.name in columns)
        return Profile(pages=pages, features=found)

    def save(self, folder: Path) -> None:
        """Write the profile into `folder`. Raises OSError."""
        write_atomically(folder / _FILE, msgspec.json.format(msgspec.json.encode(self)))

    @classmethod
    def open(cls, folder: Path) -> Profile | None:
        """Return the profile in `folder`, None where there is none. Raises `PublishedError`."""
        path = folder / _FILE
        try:
            profile = msgspec.json.decode(path.read_bytes(), type=cls)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PublishedError(f"Expected the profile of a run's inputs, got: {error} - at {path}") from error
        profile.check(str(path))
        return profile

    def check(self, where: str) -> None:
        """Raise `PublishedError`, naming `where`, for another format and for counts that are not those of the bins."""
        if self.format != PROFILE_FORMAT:
            raise PublishedError(f"Expected a profile of format {PROFILE_FORMAT}, got {self.format} - at {where}")
        for one in self.features:
            ascending = list(one.edges) == sorted(set(one.edges))
            if not ascending or len(one.counts) != one.bins or min(one.counts) < 0 or len(one.texts) != len(one.codes or ()):
                raise PublishedError(f"Expected ascending edges and {one.bins} counts, got others - at `{one.name}` in {where}")


class InputProfiles(msgspec.Struct, frozen=True, kw_only=True):
    """What a server answers at `/drift`: the inputs of its pages beside those of training."""

    run: str
    """Name of the run that is served."""
    window_s: float
    """Age in seconds of the oldest pages that are counted."""
    training: Profile
    serving: Profile


def psi(training: Sequence[int], serving: Sequence[int]) -> float:
    """Return the population stability index of two counts [B] in the same bins: sum((q - p) ln(q / p)) over the shares p, q.

    It is 0 for equal shares, and symmetric: Jeffreys' divergence (Kullback and Leibler 1951). Each side has at least one value.
    """
    p, q = (np.maximum(np.array(counts) / sum(counts), _SHARE_MIN) for counts in (training, serving))
    return float(((q - p) * np.log(q / p)).sum())


def drift(training: Profile, serving: Profile) -> dict[str, Any]:
    """Return how far the features of `serving` have drifted from `training`, whose bins they are counted in, as plain values.

    - `pages`: pages counted in `training` and `serving`;
    - `features`: by name, the largest `psi` first: `of`, `psi`, `verdict`, and in `training` and `serving` the number of
      `rows`, the `coverage`, and the `shares` of the `bins`.

    The `verdict` is `stable`, `moderate` or `large`; `too few` where samples as small as these have a PSI of more than
    `NOISE_MAX` by chance; and `not counted` for a feature that `serving` does not have. In the last two there is no `psi`.
    Raises `PublishedError` for other bins.
    """
    others = {one.name: one for one in serving.features}
    found = [_feature(one, others.get(one.name), training.pages, serving.pages) for one in training.features]
    found.sort(key=lambda one: (one["psi"] is None, one["verdict"] != "too few", -(one["psi"] or 0)))
    return {
        "pages": {"training": training.pages, "serving": serving.pages},
        "features": {one.pop("name"): one for one in found},
    }


def _feature(training: ProfiledFeature, serving: ProfiledFeature | None, *pages: int) -> dict[str, Any]:
    value, verdict = None, "not counted"
    if serving is not None:
        if replace(serving, counts=training.counts, texts=training.texts) != training:
            raise PublishedError(f"Expected the bins of the run's profile, got others - at `{training.name}`")
        verdict = "too few"
        # Where nothing has changed, PSI is about (B - 1)(1/n + 1/m) in the mean (Yurdakul, Statistical Properties of Population
        # Stability Index, 2018). The candidates of a page are alike, so n and m are pages.
        bins = sum(p + q > 0 for p, q in zip(training.counts, serving.counts, strict=True))
        noise = max(1, bins - 1) * sum(1 / n if n else math.inf for n in pages)
        if training.rows and serving.rows and noise <= NOISE_MAX:
            value = psi(training.counts, serving.counts)
            verdict = "stable" if value < MODERATE else "moderate" if value < LARGE else "large"
    return {
        "name": training.name,
        "of": training.of,
        "psi": value,
        "verdict": verdict,
        "bins": training.labels(),
        "training": _side(training),
        "serving": None if serving is None else _side(serving),
    }


def _side(feature: ProfiledFeature) -> dict[str, Any]:
    rows = feature.rows
    shares = [count / rows if rows else 0.0 for count in feature.counts]
    return {"rows": rows, "coverage": feature.coverage, "shares": shares}
