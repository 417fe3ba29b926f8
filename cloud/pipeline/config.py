"""The pipeline file: TOML that defines how a page is made. It is read and checked before serving starts.

::

    [page]        size, time to live, columns sent      [filters]       which items may be shown at all
    [limits]      deadlines, queue, sizes               [store]         where vectors are stored
    [cache]       rankings kept                         [index.NAME]    an index of vectors
    [[stage]]     one step, in order; `use` names it    [[split]]       an older run that devices still use

Every table may be absent. A file without any `[[stage]]` gets the default stages: retrieve, rank, fuse by the run's task
weights, spread over categories.

Errors::

    PipelineError              the file is not a valid pipeline; says what is wrong, and where in the file
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
    """The file is not a valid pipeline. `path` says where in it, as a JSONPath."""

    def __init__(self, path: str, message: str, file: Path | None = None) -> None:
        super().__init__(f"{message} - at `{path}`" + (f" in {file}" if file else ""))
        self.path, self.message = path, message


class _Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class PageConfig(_Table, frozen=True, kw_only=True):
    """Size, time to live and columns of a page."""

    size_max: int = 100
    """Maximum number of candidates that a request may ask for."""
    ttl_ms: int = 600_000
    """Time after which a page is stale, on the device's clock."""
    features: tuple[str, ...] | None = None
    """Columns to send: `pxtr_<task>`, `age` (days) and the columns of the run; all when absent. A device model needs those of
    its feature spec."""

    def __post_init__(self) -> None:
        if self.size_max < 1 or self.ttl_ms < 0:
            raise ValueError(f"Expected size_max >= 1 and ttl_ms >= 0, got {self.size_max} and {self.ttl_ms}")


class BudgetConfig(_Table, frozen=True, kw_only=True):
    """Times and sizes that a request may take."""

    page_ms: float = 100.0
    """Time from the arrival of a request to its page. What cannot be done by then is left out, step by step. No swipe waits for
    a page, so this may be several times what a page takes."""
    queue_ms: float = 50.0
    """Maximum wait in the queue. A request that would wait longer is refused at once (429). Keep it well below `page_ms`:
    otherwise most pages are out of time under overload when their turn comes. At 200, 12 % of them were whole."""
    store_ms: float = 20.0
    """Maximum time that a page waits for vectors of a store on another machine."""
    body_max: int = 1 << 20
    """Maximum size of a request's body in bytes after decompression: about 4,000 feedback events."""
    body_s: float = 10.0
    """Maximum time in seconds until a body has arrived."""
    events_max: int = 1000
    """Maximum number of feedback events in a request. Devices send up to 256, and halve what is refused."""
    exclude_max: int = 10_000
    """Maximum number of items that a request excludes."""

    def __post_init__(self) -> None:
        times, sizes = (
            (self.page_ms, self.queue_ms, self.store_ms, self.body_s),
            (self.body_max, self.events_max, self.exclude_max),
        )
        if not all(limit > 0 for limit in (*times, *sizes)):
            raise ValueError("Expected limits above 0")


class StoreConfig(_Table, frozen=True, kw_only=True):
    """Store of the vectors of split versions."""

    url: str | None = None
    """Address for `pocketrank.cloud.stores.open_store`, such as `valkey://host:6379/0`. None: memory-mapped files in the run's
    folder."""
    ttl_days: float | None = None
    """Time to live of a version after the last server that uses it has stopped; None keeps it for ever."""

    def __post_init__(self) -> None:
        if self.ttl_days is not None and not 0 < self.ttl_days <= _TTL_DAYS_MAX:
            raise ValueError(f"Expected ttl_days above 0, up to {_TTL_DAYS_MAX}, got {self.ttl_days}")


class SplitConfig(_Table, frozen=True, kw_only=True):
    """Older split version that devices still use."""

    run: str
    """Folder of the run that the version's lower half is from."""


class PipelineConfig(_Table, frozen=True, kw_only=True):
    """The whole pipeline file."""

    page: PageConfig = PageConfig()
    """Size, time to live and columns of a page."""
    limits: BudgetConfig = BudgetConfig()
    """Times and sizes that a request may take."""
    filters: FiltersConfig = FiltersConfig()
    """Which items may be shown."""
    cache: CacheConfig = CacheConfig()
    """Rankings that are kept for pages that there is no time to rank."""
    store: StoreConfig = StoreConfig()
    """Store of the vectors."""
    index: dict[str, IndexConfig] = msgspec.field(default_factory=lambda: {"items": IndexConfig()})
    """Indexes by name; each holds the run's items."""
    split: tuple[SplitConfig, ...] = ()
    """Older split versions that are still served."""
    stage: tuple[dict[str, Any], ...] = ()
    """One table for each stage: `use` names it, the rest is its config."""

    @classmethod
    def open(cls, file: Path) -> PipelineConfig:
        """Read a file. Raises `PipelineError`. The tables of stages are checked later, when `Pipeline` makes them."""
        try:
            tables = tomllib.loads(file.read_text("utf-8-sig"))  # some editors begin a file with the mark of its encoding
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
    """Return the stages of a file that names none."""
    formula = " + ".join(f"{weight!r} * {task}" for task, weight in task_weights.items())
    return ({"use": "retrieve"}, {"use": "rank"}, {"use": "fuse", "formula": formula}, {"use": "spread"})
