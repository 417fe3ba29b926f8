from collections.abc import Callable, Iterator

import pytest

from pocketrank.cloud.stores.memory import MemoryStore
from pocketrank.cloud.stores.table import TableConfig
from tests.cloud.stores.conformance import StoreConformance


class Clock:
    """Clock that a test advances."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestMemoryStore(StoreConformance):
    @pytest.fixture
    def store(self, clock: Clock) -> Iterator[MemoryStore]:
        # Little room and grace, so that every test makes tables grow and reuses rows.
        opened = MemoryStore(TableConfig(grace_rows=512, chunk_rows=128, rows_min=8), clock)
        yield opened
        opened.close()

    @pytest.fixture
    def let_expire(self, clock: Clock) -> Callable[[], None]:
        def passes() -> None:
            clock.now += self.TTL_S + 1

        return passes


@pytest.mark.parametrize(
    "wrong", [{"grace_rows": 10}, {"chunk_rows": 0}, {"growth": 1.0}, {"rows_min": 0}], ids=lambda wrong: next(iter(wrong))
)
def test_invalid_room_is_rejected(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="Expected grace_rows"):
        TableConfig(**wrong)  # type: ignore[arg-type]
