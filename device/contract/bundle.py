"""The manifest of a bundle: its files, its models and how a device uses them."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from pocketrank.device.contract.paging import PagingModel
from pocketrank.device.contract.wire import Addressed, Wire

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
"""The whole model as one graph, or one of the stages that a device runs as their inputs become known (`FeatureSpec`)."""
Group = Literal["new", "casual", "heavy"]
"""Groups of users by the number of their events that a device remembers (`GroupRule`)."""

_SHIFT_MAX = 20.0  # log-odds, far beyond any use and far from the overflow of a float32


class FileEntry(Wire, frozen=True, kw_only=True):
    """A file of a bundle: its path relative to the bundle, with `/`, its size in bytes, and its SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


class ModelEntry(Wire, frozen=True, kw_only=True):
    """One exported graph of a bundle.

    A format whose files hold several graphs (LiteRT's signatures) has an entry for each stage, all with the same path.
    """

    form: Form
    format: Format
    precision: Precision
    path: str
    """A file, or a folder for Core ML."""
    bytes: int
    """Size of the file, or of everything in the folder."""
    stage: Stage = "whole"
    group: Group | None = None
    """The group of users that the model is for. None serves every group without a model of its own in this form, format and
    precision."""


class GroupRule(Wire, frozen=True, kw_only=True):
    """Thresholds between the groups of users, in events that a device remembers.

    The defaults divide KuaiRand-Pure as `benchmarks.personal` does. Raises ValueError for numbers out of order.
    """

    casual_from: int = 20
    """A user with fewer events is new."""
    heavy_from: int = 60
    """A user with at least so many is heavy. Users between the two are casual."""

    def __post_init__(self) -> None:
        if not 0 <= self.casual_from <= self.heavy_from:
            raise ValueError(f"expected 0 <= casual_from <= heavy_from, got {self.casual_from} and {self.heavy_from}")


class TaskPrior(Wire, frozen=True, kw_only=True):
    """How far users differ from the shipped model in one task, as standard deviations in log-odds.

    Users differ more in rare actions than in views, so each task has its own. `benchmarks.personal` fits them to a log; the
    defaults are what it fits for click and long_view on KuaiRand-Pure.
    """

    user: float = 0.2
    """Deviation of a user over all items."""
    category: float = 0.4
    """Further deviation of a user for the items of one category."""


class PersonalConfig(Wire, frozen=True, kw_only=True):
    """How a user's own last layer (`pocketrank.device.model.personal`) adapts to the user. The default adapts nothing.

    Raises ValueError for numbers out of range.
    """

    tasks: dict[str, TaskPrior] = msgspec.field(default_factory=dict)
    """Tasks that adapt. All others stay as shipped."""
    forget: float = 0.03
    """Share of what was learned that each impression removes. .03 is a memory of some 33 impressions. Values from .02 to .1 did
    about as well; with 0 a third of the gain in log loss was lost in the simulated world."""
    drift_max: float = 2.0
    """Largest distance of a task's weights from the shipped model, in standard deviations of the prior. Replayed users seldom
    reached 1.5, and a bound there changed nothing. It is meant for a user who is like no other, or is not human."""
    buckets: int = 32
    """Number of categories that have weights of their own; codes are taken modulo this number. With 16 for the 24 categories of
    the simulated world a quarter of the gain in log loss was lost, with 8 more than half; for the 43 of KuaiRand 64 were no
    better."""

    def __post_init__(self) -> None:
        sizes = [size for prior in self.tasks.values() for size in (prior.user, prior.category)]
        widest = max([0.0, *(math.hypot(prior.user, prior.category) for prior in self.tasks.values())])
        numbers = (*sizes, self.forget, self.drift_max)
        if not (all(math.isfinite(x) and x >= 0 for x in numbers) and widest * self.drift_max <= _SHIFT_MAX):
            raise ValueError(f"expected deviations, forget and drift_max from 0, and no shift beyond {_SHIFT_MAX}, got {self}")
        if not 1 <= self.buckets <= 4096:
            raise ValueError(f"expected 1 to 4096 buckets, got {self.buckets}")


class BundleManifest(Addressed, frozen=True, kw_only=True):
    """Contents of a bundle: the file `manifest.json` at its root."""

    name: str
    serial: int
    """Grows with each release."""
    created_ms: int
    split_version: str
    """Split version of the pages whose vectors the split models accept."""
    spec: str
    """Path of the feature spec."""
    files: tuple[FileEntry, ...]
    """Every file of the bundle except the manifest."""
    models: tuple[ModelEntry, ...]
    expires_ms: int | None = None
    """When devices stop using the bundle. None is never."""
    personal: PersonalConfig | None = None
    """How a user's own last layer adapts. None gives users no layer of their own."""
    groups: GroupRule | None = None
    """Which users the models with a `group` are for. None puts users in no group."""
    paging: PagingModel | None = None
    """When to ask for a page. None asks after a fixed number of impressions."""
