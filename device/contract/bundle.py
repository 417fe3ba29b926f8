"""What a bundle promises."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from pocketrank.device.contract.paging import PagingModel
from pocketrank.device.contract.wire import Versioned, Wire

__all__ = [
    "BundleManifest",
    "FileEntry",
    "Form",
    "Format",
    "Group",
    "GroupRule",
    "ModelEntry",
    "PersonalConfig",
    "Precision",
    "Stage",
    "TaskPrior",
]

Form = Literal["split", "self_contained"]
Format = Literal["onnx", "tflite", "coreml"]
Precision = Literal["fp32", "fp16", "int8"]
Stage = Literal["whole", "page", "event", "watch", "choose", "search"]
"""The whole model as one graph, or the parts of it that a device runs as their inputs become known (`FeatureSpec`)."""
Group = Literal["new", "casual", "heavy"]
"""Users by how much of them a device remembers (`GroupRule`)."""

_SHIFT_MAX = 20.0  # log-odds, far beyond any use and far from the overflow of a float32


class FileEntry(Wire, frozen=True, kw_only=True):
    """A file of a bundle: path relative to the bundle with `/`, size in bytes, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


class ModelEntry(Wire, frozen=True, kw_only=True):
    """One exported graph of a bundle. `path` is a file, or a folder for Core ML; `bytes` counts all of it.

    A format whose files hold several graphs (LiteRT's signatures) has an entry for each stage with the same path.
    """

    form: Form
    format: Format
    precision: Precision
    path: str
    bytes: int
    stage: Stage = "whole"
    group: Group | None = None
    """Whom it is for; None: all whose group has no model of its own in this form, format and precision."""


class GroupRule(Wire, frozen=True, kw_only=True):
    """Which group a user is in: new below `casual_from` events that a device remembers, heavy from `heavy_from` on, casual
    between. The defaults part KuaiRand-Pure as `benchmarks.personal` does. Raises ValueError for numbers out of order.
    """

    casual_from: int = 20
    heavy_from: int = 60

    def __post_init__(self) -> None:
        if not 0 <= self.casual_from <= self.heavy_from:
            raise ValueError(f"expected 0 <= casual_from <= heavy_from, got {self.casual_from} and {self.heavy_from}")


class TaskPrior(Wire, frozen=True, kw_only=True):
    """How far users are from the shipped model in one task: standard deviations in log-odds.

    Rare actions tell users apart more than views do, so these are per task; `benchmarks.personal` fits them to a log. The
    defaults are what it fits for click and long_view on KuaiRand-Pure.
    """

    user: float = 0.2
    """Of a user as a whole."""
    category: float = 0.4
    """Of a user's taste for a category, beyond that."""


class PersonalConfig(Wire, frozen=True, kw_only=True):
    """What of a user's own last layer (`pocketrank.device.model.personal`) adapts, and how far. The default adapts nothing.
    Raises ValueError for numbers out of range.
    """

    tasks: dict[str, TaskPrior] = msgspec.field(default_factory=dict)
    """Tasks that adapt. All others stay as shipped."""
    forget: float = 0.03
    """Share of what was learned that an impression takes away: a memory of some 33 impressions. From .02 to .1 all do about as
    well; with none a third of the gain in log loss was lost in the simulated world."""
    drift_max: float = 2.0
    """Farthest that a task's weights may be from the shipped model, in standard deviations of the prior. Replayed users seldom
    came to 1.5, and a bound there changed nothing; it is for the user who is not like any other, or not human."""
    buckets: int = 32
    """Categories that are told apart: codes are folded onto so many. With 16 for the 24 categories of the simulated world a
    quarter of the gain in log loss was lost, with 8 more than half; for the 43 of KuaiRand 64 were no better."""

    def __post_init__(self) -> None:
        sizes = [size for prior in self.tasks.values() for size in (prior.user, prior.category)]
        widest = max([0.0, *(math.hypot(prior.user, prior.category) for prior in self.tasks.values())])
        numbers = (*sizes, self.forget, self.drift_max)
        if not (all(math.isfinite(x) and x >= 0 for x in numbers) and widest * self.drift_max <= _SHIFT_MAX):
            raise ValueError(f"expected deviations, forget and drift_max from 0, and no shift beyond {_SHIFT_MAX}, got {self}")
        if not 1 <= self.buckets <= 4096:
            raise ValueError(f"expected 1 to 4096 buckets, got {self.buckets}")


class BundleManifest(Versioned, frozen=True, kw_only=True):
    """What a bundle holds: `manifest.json` at its root. `spec` is the path of the feature spec.

    `serial` grows with each release. `split_version` is that of the pages whose vectors the split models accept. `personal`
    says how a user's own last layer adapts, `groups` which users the models with a `group` are for, `paging` when to ask for a
    page; None: there is none.
    """

    name: str
    serial: int
    created_ms: int
    split_version: str
    spec: str
    files: tuple[FileEntry, ...]
    models: tuple[ModelEntry, ...]
    expires_ms: int | None = None
    personal: PersonalConfig | None = None
    groups: GroupRule | None = None
    paging: PagingModel | None = None
