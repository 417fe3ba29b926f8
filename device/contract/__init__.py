"""The contract between cloud and device: every struct that crosses the wire, and the manifest of a bundle.

The layout on the wire is columnar: a page holds one `Block` per column group, never an object per candidate. Every top-level
struct carries `version`. A reader ignores fields that it does not know and rejects a version that it does not know (`codec`).

Units: fields named `*_ms` are milliseconds, and those that are points in time count from the Unix epoch in UTC. Volume is in
0..1, scroll speed in screens per second. Errors are in `errors`.
"""

from pocketrank.device.contract.bundle import (
    BundleManifest,
    FileEntry,
    Form,
    Format,
    Group,
    GroupRule,
    ModelEntry,
    PersonalConfig,
    Precision,
    Stage,
    TaskPrior,
)
from pocketrank.device.contract.errors import BlockError, ContractError, DecodeError, MismatchError, VersionError
from pocketrank.device.contract.feedback import Ended, FeedbackBatch, FeedbackEvent, FeedbackReceipt, Network, Orientation
from pocketrank.device.contract.golden import Golden, GoldenCase, GoldenTolerance, ScoreRange
from pocketrank.device.contract.page import Candidates, Page, PageRequest
from pocketrank.device.contract.paging import PagePlan, PagingModel, PagingTerm
from pocketrank.device.contract.release import BundleRef, Release, Role, Signature, Signed, in_rollout, key_id, signed_bytes
from pocketrank.device.contract.spec import CategoryFeature, FeatureSpec, FloatFeature, SearchSpec
from pocketrank.device.contract.telemetry import TelemetryReport, Timing
from pocketrank.device.contract.views import EFFECTIVE_VIEW_MS, LONG_VIEW_MS
from pocketrank.device.contract.wire import WIRE_VERSION, Block, Columns, Dtype

__all__ = [
    "EFFECTIVE_VIEW_MS",
    "LONG_VIEW_MS",
    "WIRE_VERSION",
    "Block",
    "BlockError",
    "BundleManifest",
    "BundleRef",
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
    "Golden",
    "GoldenCase",
    "GoldenTolerance",
    "Group",
    "GroupRule",
    "MismatchError",
    "ModelEntry",
    "Network",
    "Orientation",
    "Page",
    "PagePlan",
    "PageRequest",
    "PagingModel",
    "PagingTerm",
    "PersonalConfig",
    "Precision",
    "Release",
    "Role",
    "ScoreRange",
    "SearchSpec",
    "Signature",
    "Signed",
    "Stage",
    "TaskPrior",
    "TelemetryReport",
    "Timing",
    "VersionError",
    "in_rollout",
    "key_id",
    "signed_bytes",
]
