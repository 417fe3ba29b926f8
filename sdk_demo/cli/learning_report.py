"""What `pocketrank learn` shows: a line now and then, and metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pocketrank.sdk_demo.cli.output import print_line

if TYPE_CHECKING:
    from prometheus_client import Metric

    from pocketrank.cloud.training.learning import Progress

__all__ = ["LearningReport"]

_LINE_S = 10.0
_COUNTERS = (
    "join_pages", "join_events", "join_samples", "join_corrections", "join_negatives", "join_duplicates", "join_late",
    "join_no_page", "join_without_page", "join_other_item", "join_lost_pages", "join_expired", "join_unreadable",
    "join_forgotten", "train_samples", "train_steps", "train_skipped",
    "train_unreadable", "train_increments", "train_snapshots", "train_rows", "train_rollbacks", "discarded_gradients",
)  # fmt: skip


class LearningReport:
    """Receiver of the progress of a process that learns. On `metrics_port`, if any, Prometheus finds all of it."""

    def __init__(self, console: Console, metrics_port: int | None = None) -> None:
        self._console, self._said_at = console, monotonic()
        self.last: dict[str, Any] = {}
        """All counters, as they were last."""
        if metrics_port is not None:
            from prometheus_client import CollectorRegistry, start_http_server

            registry = CollectorRegistry()
            registry.register(self)
            server, _ = start_http_server(metrics_port, "127.0.0.1", registry)
            print_line(console, f"metrics on http://127.0.0.1:{server.server_port}/metrics")

    def __call__(self, progress: Progress) -> None:
        """Take notice of the progress."""
        self.last = dict(progress.plain())
        if progress.learner is not None:
            self.last["event_age_s"] = (
                max(0.0, time() - progress.learner.event_ms / 1000) if progress.learner.event_ms else None
            )
        if monotonic() - self._said_at >= _LINE_S:
            self._said_at = monotonic()
            shown = self.last
            parts = [f"{shown[name]} {what}" for name, what in _SHOWN.items() if name in shown]
            if shown.get("train_is_paused"):
                parts.append("paused: what is predicted is not what is observed")
            print_line(self._console, ", ".join(parts))

    def collect(self) -> Iterator[Metric]:
        """Return all counters as Prometheus's metrics."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        for name, value in self.last.items():
            label = f"pocketrank_learn_{name}"
            if isinstance(value, dict):
                family = GaugeMetricFamily(label, f"Of the last window, by task: {name}.", labels=["task"])
                for task, of_task in value.items():
                    family.add_metric([task], of_task)
                yield family
            elif name in _COUNTERS:
                yield CounterMetricFamily(label, f"`{name}` since the process started.", value=value)
            elif value is not None:
                yield GaugeMetricFamily(label, f"`{name}` now.", value=float(value))


_SHOWN = {
    "join_events": "events",
    "join_samples": "samples joined",
    "train_samples": "learned",
    "sequence": "increments",
    "item_rows": "rows of items",
    "user_rows": "rows of users",
}
