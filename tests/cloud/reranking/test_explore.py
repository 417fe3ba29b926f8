from contextlib import closing
from pathlib import Path
from time import time

import numpy as np
import pytest

from pocketrank.cloud.pages.engine import fill_stores, open_engine
from pocketrank.cloud.pages.live_run import LiveRun
from pocketrank.cloud.pages.maker import PageMaker
from pocketrank.cloud.reranking.explore import ExploreConfig
from pocketrank.cloud.streams.event_log import NewRecord
from pocketrank.cloud.streams.messages import ItemChange
from pocketrank.cloud.streams.sqlite_events import SqliteEventLog
from pocketrank.cloud.training.run import Run
from pocketrank.device.codec import from_block, to_msgpack
from tests.cloud.serving.live import piped, request
from tests.cloud.small_published import small_run

_TOML = """
[limits]
page_ms = 60_000
[[stage]]
use = "retrieve"
channel = [{ use = "popular", quota = 50 }, { use = "fresh", quota = 10 }]
[[stage]]
use = "rank"
[[stage]]
use = "fuse"
formula = "long_view"
[[stage]]
use = "explore"
share = 0.25
"""


def test_new_items_get_their_share_and_the_page_says_which(tmp_path: Path) -> None:
    run, config = Run.open(small_run(tmp_path / "run").folder), piped(tmp_path / "pipeline", _TOML)
    fill_stores(run, config)
    with open_engine(run, config, threads=1) as engine, closing(SqliteEventLog(tmp_path / "events")) as log:
        new = list(range(1 << 40, (1 << 40) + 8))
        for item in new:
            change = ItemChange(item_id=item, changed_ms=0, duration_ms=1000, upload_ms=int(1000 * time()))
            log.append("items", [NewRecord(item, to_msgpack(change))])
        LiveRun(engine, run.published, log, "").follow(lambda change: change())
        maker = PageMaker(engine, config.pipeline)
        shares, firsts = [], []
        for number in range(300):
            asked = request(size=20, request_id=str(number))
            made = maker.make(asked)
            items = from_block(made.page.candidates.item_id)
            exploring = made.candidates.exploring
            if exploring is None:
                shares.append(0.0)
                continue
            assert np.isin(items[exploring], new).all()
            assert sorted(items.tolist()) == sorted(set(items.tolist())), "no item twice"
            scores = made.candidates.score
            assert scores is not None
            assert (np.diff(scores[~exploring]) <= 0).all(), "all others keep their order"
            again = maker.make(asked)
            assert from_block(again.page.candidates.item_id).tolist() == items.tolist()
            shares.append(float(exploring.mean()))
            firsts += items[exploring].tolist()
    assert np.mean(shares) == pytest.approx(0.25, abs=0.03)
    counts = np.array([firsts.count(item) for item in new])
    assert counts.min() > 0.6 * counts.mean(), "each has the same chance"


@pytest.mark.parametrize("wrong", [{"share": 1.5}, {"share": -0.1}, {"age_hours": 0.0}])
def test_a_share_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="share from 0 to 1"):
        ExploreConfig(**wrong)  # type: ignore[arg-type]
