"""Configuration of a server, apart from the pipeline file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pocketrank.cloud.pages.state_snapshot import SnapshotConfig
from pocketrank.cloud.pages.user_state import EVENTS_MAX, SEEN_MAX
from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.serving.access.limits import LimitsConfig
from pocketrank.cloud.serving.access.user_keys import UserKeysConfig
from pocketrank.cloud.serving.bundles.store import BundleStoreConfig
from pocketrank.cloud.serving.http.cors import CorsConfig
from pocketrank.cloud.serving.load.price import PriceConfig
from pocketrank.cloud.serving.process.server import ServerConfig
from pocketrank.cloud.serving.routes.health import HealthConfig
from pocketrank.cloud.serving.telemetry.devices import DeviceTelemetryConfig
from pocketrank.cloud.serving.telemetry.features import DriftConfig
from pocketrank.cloud.serving.telemetry.logs import LoggingConfig
from pocketrank.cloud.serving.telemetry.tracing import TracingConfig
from pocketrank.cloud.streams.sqlite import SqliteLogConfig
from pocketrank.cloud.streams.sqlite_events import SqliteEventsConfig

__all__ = ["ServingConfig"]


@dataclass(frozen=True)
class ServingConfig:
    """Configuration of a server. Worker processes receive it, so all of it can be pickled."""

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    """Stages and limits of a page."""
    folder: Path = Path()
    """Folder of the pipeline file: relative paths and a user's own modules are looked up from here."""
    workers: int = 1
    """Number of processes; about one per core."""
    tokens: Path | None = None
    """File of tokens (`pocketrank token`). Without it and `user_keys`, whoever can connect is served."""
    user_keys: UserKeysConfig | None = None
    """Keys of the app's backend, which signs tokens for single users. None accepts no such tokens."""
    bundles: BundleStoreConfig = field(default_factory=BundleStoreConfig)
    """Keys and limits of uploaded bundles."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """Rates and sizes that a caller may use."""
    upload_stall_s: float = 30.0
    """Longest wait for the next bytes of an uploaded file."""
    cors: CorsConfig = field(default_factory=CorsConfig)
    """Web pages that may call the server from a browser."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """TLS, and the shutdown of a process."""
    logs: LoggingConfig = field(default_factory=LoggingConfig)
    """Format and volume of the log."""
    tracing: TracingConfig = field(default_factory=TracingConfig)
    """Destination of traces, and how many are recorded."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """Checks of readiness."""
    hung_s: float = 30.0
    """How long a call of a user's own stage or channel may hang before its worker ends in order and is replaced, in seconds. A
    server of one process goes on without what hangs."""
    former_runs: int = 4
    """Number of runs, served before the active one of a registry, whose split versions are still served to devices with their
    bundles. Each takes the memory of its user tower; its vectors are mapped."""
    registry_check_s: float = 1.0
    """Pause in seconds between two looks at which run is active."""
    user_events_max: int = EVENTS_MAX
    """Events that are kept of all users, 48 bytes each. Beyond it the users go whose feedback is oldest."""
    seen_max: int = SEEN_MAX
    """Number of a user's latest events kept, at least the run's `history_max`. An item may be shown again once its events fell
    out."""
    price: PriceConfig = field(default_factory=PriceConfig)
    """Compute price of a page as load rises."""
    log: SqliteLogConfig = field(default_factory=SqliteLogConfig)
    """Storage of feedback."""
    events: SqliteEventsConfig = field(default_factory=SqliteEventsConfig)
    """Storage of the other topics: pages as served, changes of the catalogue, samples, parameters."""
    keeps_pages: bool = True
    """Whether every page is kept as it was served. Without them nothing can be learned from feedback."""
    learns: bool = False
    """Whether a process beside the server learns from feedback (`pocketrank learn`)."""
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    """How often the states of all users are written beside the log, which bounds the next start."""
    feedback_waiting: int = 8192
    """Events of feedback that may wait for the disk, some 10 MB. Those that exceed them are refused (429), so that a slow disk
    does not fill the memory."""
    telemetry: DeviceTelemetryConfig = field(default_factory=DeviceTelemetryConfig)
    """Limits of the telemetry that devices report."""
    drift: DriftConfig = field(default_factory=DriftConfig)
    """Which pages are compared with the rows of training."""
