"""The split contract: every struct that crosses the wire between cloud and device, and what a bundle promises.

Layout on the wire is columnar: a page holds one `Block` per column group, never an object per candidate. Every top-level
struct carries `version`; a reader ignores fields it does not know and refuses a version it does not know (`codec`).

Units: times in milliseconds since the epoch (`*_ms` instants) or milliseconds (`*_ms` durations), volume in 0..1,
scroll speed in screens per second.

Errors::

    ContractError              something crossed the wire that the contract does not allow
    ├── DecodeError            not MessagePack / JSON of the expected shape; names the path
    ├── VersionError           a struct of a version this reader does not know
    └── BlockError             a block whose bytes, shape and dtype disagree, or a column of the wrong width
"""

from __future__ import annotations

import math
from enum import IntEnum
from typing import Literal

import msgspec

__all__ = [
    "WIRE_VERSION",
    "Block",
    "BlockError",
    "BundleManifest",
    "Candidates",
    "CategoryFeature",
    "Columns",
    "ContractError",
    "DecodeError",
    "Dtype",
    "Ended",
    "FeatureSpec",
    "FeedbackBatch",
    "FeedbackEvent",
    "FeedbackReceipt",
    "FileEntry",
    "FloatFeature",
    "Form",
    "Format",
    "Group",
    "GroupRule",
    "ModelEntry",
    "Network",
    "Orientation",
    "Page",
    "PageRequest",
    "PersonalConfig",
    "Precision",
    "SearchSpec",
    "Stage",
    "TaskPrior",
    "VersionError",
]

WIRE_VERSION = 1
"""Version written into every struct of this release."""

Dtype = Literal["f2", "f4", "i4", "i8", "u1"]
Form = Literal["split", "self_contained"]
Format = Literal["onnx", "tflite", "coreml"]
Precision = Literal["fp32", "fp16", "int8"]
Stage = Literal["whole", "page", "event", "watch", "choose", "search"]
"""The whole model as one graph, or the parts of it that a device runs as their inputs become known (`FeatureSpec`)."""
Group = Literal["new", "casual", "heavy"]
"""Users by how much of them a device remembers (`GroupRule`)."""

_SHIFT_MAX = 20.0  # log-odds, far beyond any use and far from the overflow of a float32


class ContractError(ValueError):
    """Something crossed the wire that the contract does not allow.

    `path` says where (`$.candidates.vector`), `expected` and `got` say what.
    """

    def __init__(self, path: str, expected: str, got: str) -> None:
        super().__init__(f"Expected {expected}, got {got} - at `{path}`")
        self.path, self.expected, self.got = path, expected, got


class DecodeError(ContractError):
    """The bytes are not MessagePack or JSON of the expected shape."""


class VersionError(ContractError):
    """A struct of a version that this reader does not know."""


class BlockError(ContractError):
    """A block whose bytes, shape and dtype disagree, or a column group of the wrong width."""


class Ended(IntEnum):
    """How an impression ended."""

    SWIPE = 0
    COMPLETE = 1
    EXIT = 2
    BACKGROUND = 3


class Orientation(IntEnum):
    """How the phone was held."""

    PORTRAIT = 0
    LANDSCAPE = 1


class Network(IntEnum):
    """What carried the bytes."""

    OFFLINE = 0
    CELLULAR = 1
    WIFI = 2


class _Wire(msgspec.Struct, frozen=True, kw_only=True):
    """Base of every wire struct: immutable, fields by name, unknown fields ignored."""


class _Versioned(_Wire, frozen=True, kw_only=True):
    version: int = WIRE_VERSION


class Block(_Wire, frozen=True, kw_only=True):
    """An n-dimensional little-endian array in row-major order.

    `data` is the raw bytes in MessagePack. In JSON it is a flat list of numbers (null is NaN), so that a page can be read
    with curl. `dtype` is numpy's code without the byte order: f2, f4, i4, i8, u1.
    """

    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes | list[int | float | None]


class Columns(_Wire, frozen=True, kw_only=True):
    """A named group of columns: `values` has shape [rows, len(names)]."""

    names: tuple[str, ...]
    values: Block


class Candidates(_Wire, frozen=True, kw_only=True):
    """The n candidates of a page, columnar, in cloud order.

    `item_id` is i8 [n]; `floats` f4 [n, F] in raw units, pXTRs as `pxtr_<task>`; `categories` i4 [n, C] with 0 = unknown;
    `vector` f2 [n, D], absent when the page carries none.
    """

    item_id: Block
    floats: Columns
    categories: Columns
    vector: Block | None = None


class FeedbackEvent(_Versioned, frozen=True, kw_only=True):
    """One finished impression: what was shown, how it was watched, what the user did, what only the device saw.

    The names of the numeric fields are the names of the model's feedback features (`FeatureSpec.feedback_floats`) and of the
    columns of the impression log. A device-only field that the platform cannot tell is None. `experiment` is that of the
    page request.
    """

    event_id: str
    user_id: int
    session_id: str
    item_id: int
    position: int
    impression_ms: int
    watch_ms: int
    page_id: str | None = None
    experiment: str | None = None
    ended: Ended = Ended.SWIPE
    click: bool = False
    like: bool = False
    follow: bool = False
    comment: bool = False
    share: bool = False
    profile_enter: bool = False
    dislike: bool = False
    volume: float | None = None
    volume_change: float | None = None
    muted: bool | None = None
    orientation: Orientation | None = None
    playback_rate: float | None = None
    pauses: int | None = None
    seeks: int | None = None
    scroll_speed: float | None = None
    network: Network | None = None
    buffering_ms: int | None = None
    battery_saver: bool | None = None
    backgrounded: bool | None = None


class PageRequest(_Versioned, frozen=True, kw_only=True):
    """What a device sends to ask for a page.

    `size` is the number of candidates wanted. `feedback` is what happened since the last call. `exclude` lists items that
    are not wanted: what this session has shown. `split_version` is that of the installed bundle; None asks for a page
    without vectors. What a user does within an `experiment` is known to later requests of the same experiment only, so that
    its arms do not teach one another.
    """

    request_id: str
    user_id: int
    session_id: str
    now_ms: int
    size: int
    scene: int = 0
    split_version: str | None = None
    feedback: tuple[FeedbackEvent, ...] = ()
    exclude: tuple[int, ...] = ()
    experiment: str | None = None


class Page(_Versioned, frozen=True, kw_only=True):
    """A page of candidates in cloud order with all that the device model needs.

    `split_version` names the lower half that produced the vectors; when it is None the page has none and `split_reason` says
    why. `user_vector` is f2 [D]. `compute_price` is the cloud's relative price of one more page (1.0 = normal load). After
    `ttl_ms` from `created_ms` the page is stale.
    """

    page_id: str
    request_id: str
    created_ms: int
    ttl_ms: int
    candidates: Candidates
    compute_price: float = 1.0
    user_vector: Block | None = None
    split_version: str | None = None
    split_reason: str | None = None


class FeedbackBatch(_Versioned, frozen=True, kw_only=True):
    """Events uploaded together."""

    events: tuple[FeedbackEvent, ...]


class FeedbackReceipt(_Versioned, frozen=True, kw_only=True):
    """The cloud's answer to a batch: `accepted` are new and durable, `duplicates` were known by event id."""

    accepted: int
    duplicates: int


class FloatFeature(_Wire, frozen=True, kw_only=True):
    """A float input: raw value x `scale`, clipped to [`min`, `max`]; a missing or NaN value becomes `default`."""

    name: str
    min: float
    max: float
    default: float = 0.0
    scale: float = 1.0


class CategoryFeature(_Wire, frozen=True, kw_only=True):
    """A categorical input with codes 0..size-1; 0 is unknown and so is every code out of range."""

    name: str
    size: int


class SearchSpec(_Wire, frozen=True, kw_only=True):
    """How far and how wide to look for the list that is shown next (`device.search`). The defaults are those of Gong et al.
    (CIKM 2022). Raises ValueError for numbers out of range.

    `beam` lists are kept at each step. The search ends after `steps_max` steps; or earlier, once lists have the `list_size`
    that becomes visible with the next swipe (1 is a full-screen feed) and the worst list kept has at least `stability` of the
    best one's reward.
    """

    beam: int = 4
    list_size: int = 1
    steps_max: int = 5
    stability: float = 0.95

    def __post_init__(self) -> None:
        if self.beam < 1 or not 1 <= self.list_size <= self.steps_max or not 0 <= self.stability <= 1:
            raise ValueError(f"expected beam >= 1, 1 <= list_size <= steps_max and stability in 0..1, got {self}")


class FeatureSpec(_Versioned, frozen=True, kw_only=True):
    """How a device builds the model's inputs: from this text, not from code.

    With N candidates, T events, Fc = len(candidate_floats), C = len(candidate_categories), Fb = len(feedback_floats),
    Fx = len(context_floats), D = vector_width, the inputs are, in this order::

        candidate_float     f32 [1, N, Fc]     candidate_category  i32 [1, N, C]
        candidate_vector    f32 [1, N, D]      candidate_mask      f32 [1, N]       1 = real, 0 = padding
        event_float         f32 [1, T, Fc]     event_category      i32 [1, T, C]    the shown items' own features
        event_vector        f32 [1, T, D]      event_feedback      f32 [1, T, Fb]   from `FeedbackEvent` by name
        event_gap           f32 [1, T, 2]      seconds since the impression, positions since it
        event_mask          f32 [1, T]         context             f32 [1, Fx]      `position`, `hour` (0..24, UTC)
        user_vector         f32 [1, D]

    The self-contained form has neither `candidate_vector`, `event_vector` nor `user_vector`. The one output is `scores` f32 [1,
    N, len(tasks)], probabilities. Candidates are ordered by the sum of `task_weights` x score, or by a `search` for the best
    list, in which the probability of `survival_task` says how likely what follows an item is seen at all. Events are ordered
    oldest first and padded at the front or at the back alike. `list_sizes` are the candidate counts that a format with static
    shapes was compiled for; a list is padded to the next one.

    The same model in stages, each run when its inputs become known. The vectors are the split form's::

        page      candidate_float, candidate_category, candidate_vector, user_vector  →  page_state f32 [1, N, S]
        event     event_float, event_category, event_vector, event_feedback  →  event_state f32 [1, T, E]
        watch     page_state, event_state, event_gap, event_mask, context, user_vector  →  ready f32 [1, N, M], scores
        choose    ready, page_state, chosen i32 [B, L], chosen_mask f32 [B, L]  →  scores f32 [B, N, len(tasks)]
        search    the inputs of watch, candidate_mask  →  order i32 [1, steps_max], -1 behind the list's end, and scores

    `choose` scores every candidate as the next of B lists; `chosen` are places in the page, the last chosen one last, padded at
    the front, where `chosen_mask` is 0. `search` is the whole list search in one graph.
    """

    tasks: tuple[str, ...]
    task_weights: dict[str, float]
    candidates_max: int
    events_max: int
    vector_width: int
    list_sizes: tuple[int, ...]
    candidate_floats: tuple[FloatFeature, ...]
    candidate_categories: tuple[CategoryFeature, ...]
    feedback_floats: tuple[FloatFeature, ...]
    context_floats: tuple[FloatFeature, ...]
    survival_task: str | None = None
    search: SearchSpec | None = None


class FileEntry(_Wire, frozen=True, kw_only=True):
    """A file of a bundle: path relative to the bundle with `/`, size in bytes, SHA-256 in hex."""

    path: str
    bytes: int
    sha256: str


class ModelEntry(_Wire, frozen=True, kw_only=True):
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


class GroupRule(_Wire, frozen=True, kw_only=True):
    """Which group a user is in: new below `casual_from` events that a device remembers, heavy from `heavy_from` on, casual
    between. The defaults part KuaiRand-Pure as `benchmarks.personal` does. Raises ValueError for numbers out of order.
    """

    casual_from: int = 20
    heavy_from: int = 60

    def __post_init__(self) -> None:
        if not 0 <= self.casual_from <= self.heavy_from:
            raise ValueError(f"expected 0 <= casual_from <= heavy_from, got {self.casual_from} and {self.heavy_from}")


class TaskPrior(_Wire, frozen=True, kw_only=True):
    """How far users are from the shipped model in one task: standard deviations in log-odds.

    Rare actions tell users apart more than views do, so these are per task; `benchmarks.personal` fits them to a log. The
    defaults are what it fits for click and long_view on KuaiRand-Pure.
    """

    user: float = 0.2
    """Of a user as a whole."""
    category: float = 0.4
    """Of a user's taste for a category, beyond that."""


class PersonalConfig(_Wire, frozen=True, kw_only=True):
    """What of a user's own last layer (`device.personal`) adapts, and how far. The default adapts nothing. Raises ValueError
    for numbers out of range.
    """

    tasks: dict[str, TaskPrior] = {}
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


class BundleManifest(_Versioned, frozen=True, kw_only=True):
    """What a bundle holds: `manifest.json` at its root. `spec` is the path of the feature spec.

    `serial` grows with each release. `split_version` is that of the pages whose vectors the split models accept. `personal`
    says how a user's own last layer adapts, `groups` which users the models with a `group` are for; None: there is none.
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
