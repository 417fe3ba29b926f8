"""What a session reports on itself.

`telemetry` counts and times for the team that ships the app, and leaves the device; `trace` writes each decision down for
developers, and stays on it. A module belongs here when it describes what the SDK did and no order depends on it.
"""

from pocketrank.device.reports.telemetry import Telemetry, TelemetryConfig
from pocketrank.device.reports.trace import TraceError, Tracer, read_trace

__all__ = ["Telemetry", "TelemetryConfig", "TraceError", "Tracer", "read_trace"]
