"""The pipeline file: one TOML that says how a page is made, read and checked before serving starts.

::

    [page]        size, time to live, columns sent      [filters]       what may be shown at all
    [limits]      deadlines, queue, sizes               [store]         where vectors are
    [cache]       rankings kept                         [index.NAME]    an index of vectors
    [[stage]]     one step, in order; `use` names it    [[split]]       an older run whose devices are still out

Every table may be absent. Without any `[[stage]]`: retrieve, rank, fuse by the run's task weights, spread over categories.

Errors::

    PipelineError              the file is not a pipeline; says what, and where in the file
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pocketrank.cloud.pipeline.cached import CacheConfig
from pocketrank.cloud.pipeline.filters import FiltersConfig
from pocketrank.cloud.vectors.opening import IndexConfig

__all__ = ["BudgetConfig", "PageConfig", "PipelineConfig", "PipelineError", "SplitConfig", "StoreConfig", "default_stages"]


_TTL_DAYS_MAX = 36_500


class PipelineError(ValueError):
    """The file is not a pipeline. `path` says where in it."""

    def __init__(self, path: str, message: str, file: Path | None = None) -> None:
        super().__init__(f"{message} - at `{path}`" + (f" in {file}" if file else ""))
        self.path, self.message = path, message


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PageConfig(_Table, frozen=True, kw_only=True):
    """What a page is."""

    size_max: int = 100
    """Most candidates that a request may ask for."""
    ttl_ms: int = 600_000
    """A page is stale after this long, on the device's clock."""
    features: tuple[str, ...] | None = None
    """Columns that are sent, of `pxtr_<task>`, `age` (days) and those of the run; all when absent. A device model needs those
    of its feature spec."""

    def __post_init__(self) -> None:
        if self.size_max < 1 or self.ttl_ms < 0:
            raise ValueError(f"expected size_max >= 1 and ttl_ms >= 0, got {self.size_max} and {self.ttl_ms}")


class BudgetConfig(_Table, frozen=True, kw_only=True):
    """What a request may take."""

    page_ms: float = 100.0
    """A page is answered this long after its request came; what cannot be done by then is left out, step by step. A swipe does
    not wait for it, so it may be several times what a page takes."""
    queue_ms: float = 50.0
    """A page that would have to wait longer than this for those before it is refused at once (429). Well below `page_ms`, or
    under overload most pages are out of time when their turn comes: at 200, 12 % of them were whole."""
    store_ms: float = 20.0
    """Longest that a page waits for vectors of a store that is not on this machine."""
    body_max: int = 1 << 20
    """Longest body of a request in bytes, decompressed: some 4,000 feedback events."""
    body_s: float = 10.0
    """Longest that a body may take to come."""

    def __post_init__(self) -> None:
        if not (self.page_ms > 0 and self.queue_ms > 0 and self.store_ms > 0 and self.body_max >= 1 and self.body_s > 0):
            raise ValueError("expected limits above 0")


class StoreConfig(_Table, frozen=True, kw_only=True):
    """Where the vectors of split versions are."""

    url: str | None = None
    """As `pocketrank.cloud.stores.open_store` takes it, such as `valkey://host:6379/0`. None: memory-mapped, in the run's
    folder.
    """
    ttl_days: float | None = None
    """A version that no server has named for so long goes; None: it stays."""

    def __post_init__(self) -> None:
        if self.ttl_days is not None and not 0 < self.ttl_days <= _TTL_DAYS_MAX:
            raise ValueError(f"expected ttl_days above 0, up to {_TTL_DAYS_MAX}, got {self.ttl_days}")


class SplitConfig(_Table, frozen=True, kw_only=True):
    """A split version that devices still have, besides that of the served run."""

    run: str
    """Folder of the run whose lower half it is."""


class PipelineConfig(_Table, frozen=True, kw_only=True):
    """The file."""

    page: PageConfig = PageConfig()
    """What a page is."""
    limits: BudgetConfig = BudgetConfig()
    """What a request may take."""
    filters: FiltersConfig = FiltersConfig()
    """What may be shown."""
    cache: CacheConfig = CacheConfig()
    """Rankings that are kept for when there is no time."""
    store: StoreConfig = StoreConfig()
    """Where vectors are."""
    index: dict[str, IndexConfig] = msgspec.field(default_factory=lambda: {"items": IndexConfig()})
    """Indexes by name; each holds the run's items."""
    split: tuple[SplitConfig, ...] = ()
    """Older versions that are still answered."""
    stage: tuple[dict[str, Any], ...] = ()
    """One table a stage: `use` names it, the rest is its config."""

    @classmethod
    def open(cls, file: Path) -> PipelineConfig:
        """Read a file. Raises `PipelineError`; stages are looked into when they are made (`Pipeline`)."""
        try:
            tables = tomllib.loads(file.read_text("utf-8"))
        except OSError as error:
            raise PipelineError("$", f"Expected a pipeline file, got: {error}", file) from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise PipelineError("$", f"Expected TOML, got: {error}", file) from error
        try:
            return msgspec.convert(tables, cls)
        except msgspec.ValidationError as error:
            what, _, where = str(error).partition(" - at `")
            raise PipelineError(where.rstrip("`") or "$", what, file) from error


def default_stages(task_weights: Mapping[str, float]) -> tuple[dict[str, Any], ...]:
    """The stages of a file that names none."""
    formula = " + ".join(f"{weight!r} * {task}" for task, weight in task_weights.items())
    return ({"use": "retrieve"}, {"use": "rank"}, {"use": "fuse", "formula": formula}, {"use": "spread"})
