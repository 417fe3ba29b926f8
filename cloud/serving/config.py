"""How a server serves: what is not in the pipeline file."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pocketrank.cloud.pages.user_state import StateConfig
from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.serving.access.limits import LimitsConfig
from pocketrank.cloud.serving.http.cors import CorsConfig
from pocketrank.cloud.serving.load.price import PriceConfig
from pocketrank.cloud.serving.process.server import ServerConfig
from pocketrank.cloud.serving.routes.health import HealthConfig
from pocketrank.cloud.serving.routes.uploads import UploadsConfig
from pocketrank.cloud.serving.telemetry.devices import DeviceTelemetryConfig
from pocketrank.cloud.serving.telemetry.logs import LoggingConfig
from pocketrank.cloud.serving.telemetry.tracing import TracingConfig
from pocketrank.cloud.streams.sqlite import SqliteLogConfig

__all__ = ["ServingConfig"]


@dataclass(frozen=True)
class ServingConfig:
    """A server. It is handed to worker processes, so all of it can be pickled."""

    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    """How a page is made."""
    folder: Path = Path()
    """Where relative paths and a user's own modules of the pipeline start: the folder of its file."""
    workers: int = 1
    """Processes; about one a core."""
    tokens: Path | None = None
    """File of tokens (`pocketrank token`). None leaves the server open to whoever reaches it."""
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    """What a caller may ask for."""
    uploads: UploadsConfig = field(default_factory=UploadsConfig)
    """How bundles are taken."""
    cors: CorsConfig = field(default_factory=CorsConfig)
    """Web pages that may call from a browser."""
    server: ServerConfig = field(default_factory=ServerConfig)
    """TLS, and how a process ends."""
    logs: LoggingConfig = field(default_factory=LoggingConfig)
    """What is said, and how."""
    tracing: TracingConfig = field(default_factory=TracingConfig)
    """Where traces go, if anywhere."""
    health: HealthConfig = field(default_factory=HealthConfig)
    """How readiness is found out."""
    state: StateConfig = field(default_factory=StateConfig)
    """What is kept of a user."""
    price: PriceConfig = field(default_factory=PriceConfig)
    """What a page costs as load rises."""
    log: SqliteLogConfig = field(default_factory=SqliteLogConfig)
    """How feedback is kept."""
    feedback_waiting: int = 256
    """Batches of feedback that may wait for the disk; the next is refused (429), for a disk that has fallen behind must not
    fill the memory."""
    telemetry: DeviceTelemetryConfig = field(default_factory=DeviceTelemetryConfig)
    """How much is kept of what devices tell of themselves."""
