"""Pages of a published run without HTTP: what the routes do with a request, one after the other."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from pocketrank.cloud.pages.engine import PageEngine, fill_stores, open_engine
from pocketrank.cloud.pages.intake import FeedbackIntake
from pocketrank.cloud.pages.maker import PageMaker, PageObserver
from pocketrank.cloud.pages.user_state import SEEN_MAX
from pocketrank.cloud.pipeline.config import BudgetConfig, PipelineConfig
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.streams.sqlite import SqliteFeedbackLog
from pocketrank.cloud.training.run import Run
from pocketrank.device.contract import FeedbackEvent, Page, PageRequest
from tests.cloud.events import accept


class Pages:
    """Feedback in, then the page."""

    def __init__(
        self, engine: PageEngine, config: PipelineConfig, log: SqliteFeedbackLog, observer: PageObserver | None = None
    ) -> None:
        self.engine = engine
        self._intake = FeedbackIntake(log, engine.states)
        self._make = PageMaker(engine, config, observer=observer)

    def feedback(self, events: Sequence[FeedbackEvent]) -> None:
        """Take feedback that comes alone."""
        accept(self._intake, events)

    def __call__(self, request: PageRequest, since: float | None = None) -> Page:
        self._make.check(request)
        accept(self._intake, request.feedback)
        return self._make(request, since)


class SeenPages(PageObserver):
    """Observer that keeps what is reported of pages."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.seconds: list[float] = []
        self.pages: list[tuple[int, int, str | None]] = []
        self.reasons: list[str] = []

    def stage(self, name: str, seconds: float) -> None:
        assert seconds >= 0
        self.stages.append(name)
        self.seconds.append(seconds)

    def page(self, retrieved: int, returned: int, without_vectors: str | None) -> None:
        self.pages.append((retrieved, returned, without_vectors))

    def degraded(self, reason: str) -> None:
        self.reasons.append(reason)


def stages(
    candidates: int = 20, formula: str = "long_view + like", most: int | None = None, **rank: Any
) -> tuple[dict[str, Any], ...]:
    """The stages of a pipeline over a small run."""
    rules = () if most is None else ({"use": "spread", "max_per_category": most},)
    return (
        {"use": "retrieve", "candidates": candidates},
        {"use": "rank", **rank},
        {"use": "fuse", "formula": formula},
        *rules,
    )


@contextmanager
def pages(
    run: Path,
    db: Path,
    config: PipelineConfig | None = None,
    *,
    seen_max: int = SEEN_MAX,
    observer: PageObserver | None = None,
) -> Iterator[Pages]:
    """Pages of the run in `run`, feedback in `db`; paths of `config` start at `run`."""
    config = config or PipelineConfig(stage=stages())
    if config.limits == BudgetConfig():  # no page is late because the machine has other things to do
        config = msgspec.structs.replace(config, limits=BudgetConfig(page_ms=60_000))
    serving = ServingConfig(pipeline=config, folder=run, seen_max=seen_max)
    opened = Run.open(run)
    fill_stores(opened, serving)
    with open_engine(opened, serving) as engine, closing(SqliteFeedbackLog(db)) as log:
        yield Pages(engine, config, log, observer)
