"""A traced session of a bundle's model: what a `FeedSession` does, by hand."""

from pathlib import Path

import numpy as np

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.device.contract import Ended
from pocketrank.device.model.features import PageArrays
from pocketrank.device.model.history import EventHistory
from pocketrank.device.model.remaining import Remaining
from pocketrank.device.paging import PageDecision
from pocketrank.device.ranking.ranker import Moment, Ranker
from pocketrank.device.reports.trace import Tracer
from pocketrank.export.parity import draw_inputs
from tests.device.worlds import T0, make_event

FIRST_ITEM = 100


def trace_session(path: Path, bundle: Bundle, impressions: int = 4) -> None:
    """Shows the best of six items, one after the other; the user watches ever longer and likes the first one."""
    ranker, spec = Ranker.open(bundle), bundle.spec
    drawn = draw_inputs(spec, "split", 6, 1, seed=5)
    page = PageArrays(
        np.arange(FIRST_ITEM, FIRST_ITEM + 6),
        drawn["candidate_float"][0],
        drawn["candidate_category"][0],
        drawn["candidate_vector"][0],
        drawn["user_vector"],
    )
    held, history = Remaining(page, ranker.rows), EventHistory(spec)
    context, feedback = np.zeros((1, 2), np.float32), np.zeros(len(spec.feedback_floats), np.float32)
    name = f"{bundle.manifest.name}/{bundle.manifest.serial}"
    with Tracer(path) as tracer:
        for at in range(impressions):
            now_ms = T0 + 10_000 * at
            ranker.builder.context(at, now_ms, context[0])
            moment = Moment(held, history, context, now_ms, at)
            ranking = ranker.order("split", moment)
            assert ranking is not None
            order = ranking.order
            inputs, _ = ranker.inputs("split", moment)
            best, item = int(order[0]), int(held.item_id[order[0]])
            tracer.decision(
                ranker, "split", moment, order, shown=item,
                scores=ranker.runtimes["split"]["whole"].run(inputs)[0], page_id="page-1", bundle=name,
                paging=PageDecision(at == 0, 30, "empty" if at == 0 else "continue"),
                strategies=("gap: 103 waits",), spent_ms=0.5,
            )  # fmt: skip
            row = held.take(best)
            event = make_event(item, at, like=at == 0, ended=Ended.COMPLETE)
            ranker.builder.feedback(event, feedback)
            history.append(event.impression_ms, at, feedback, page, row)
            tracer.feedback(event.item_id, event.impression_ms)
