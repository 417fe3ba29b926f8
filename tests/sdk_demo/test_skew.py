"""Training and serving must build the same inputs from the same past: the log's rows on one side, the real SDK on the other."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from numpy.typing import NDArray

from pocketrank.cloud.data.features import BehaviourSequence, FeatureConfig, Statistic
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import SampleStream, WindowConfig, build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import ImpressionLog
from pocketrank.cloud.models.full_ranker import FullRanker as CloudRanker
from pocketrank.cloud.models.full_ranker import FullRankerConfig
from pocketrank.cloud.pipeline.config import PipelineConfig
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.training.device_model import DeviceModel, DeviceModelConfig, device_spec, item_columns
from pocketrank.cloud.training.publish import publish_window
from pocketrank.cloud.training.ranker import RankerInputs
from pocketrank.device import FeedSession, Ranker
from pocketrank.device.codec import read_page, to_block
from pocketrank.device.contract import Candidates, Columns, Ended, FeedbackEvent, Network, Orientation, Page, PageRequest
from pocketrank.device.model.features import FeatureBuilder
from pocketrank.device.runtimes import INPUT_NAMES, Runtime
from pocketrank.sdk_demo.world import TASK_WEIGHTS, World
from tests.cloud.serving.pages import pages, stages
from tests.cloud.small_published import small_run
from tests.sdk_demo.world.worlds import small

VECTORS = {"candidate_vector", "event_vector", "user_vector"}
FIELDS = set(FeedbackEvent.__struct_fields__)
KINDS = {"ended": Ended, "orientation": Orientation, "network": Network}
OWN_CATEGORIES = ("brand", "shape", "genres[0]", "genres[1]", "genres[2]")
"""Of which the last is one of several values."""
UNKNOWN = ("volume", "muted", "orientation", "playback_rate", "pauses", "network", "buffering_ms")


class Clock:
    """Stands where the log says."""

    now_ms = 0

    def __call__(self) -> int:
        return self.now_ms


class TorchRuntime(Runtime):
    """The upper half itself, which remembers what it was last asked."""

    input_names = INPUT_NAMES["split"]
    list_sizes = None
    events = None

    def __init__(self, model: DeviceModel) -> None:
        self._upper = model.upper.eval()
        self.last: dict[str, NDArray[Any]] = {}

    def run_all(self, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        self.last = {name: np.array(value) for name, value in inputs.items()}
        with torch.no_grad():
            return [self._upper(**{n: torch.from_numpy(v) for n, v in self.last.items()}).numpy()]


@pytest.fixture(scope="module")
def log() -> ImpressionLog:
    """A world's log with what real ones have: sessions numbered per user, signals missing, two swipes in a millisecond."""
    log = World(small(users=40, items=900)).simulate_log(seed=1)
    table, rng = log.impressions, np.random.default_rng(0)
    n = len(table)
    for name in UNKNOWN:
        known = pa.array(rng.random(n) > 0.3)
        table = _set(table, name, pc.if_else(known, table[name], pa.scalar(None, table.schema.field(name).type)))
    user, session, position = (table[c].to_numpy() for c in ("user_id", "session_id", "position"))
    own = np.empty(n, np.int64)
    for u in np.unique(user):
        of_user = user == u
        own[of_user] = np.unique(session[of_user], return_inverse=True)[1] + 7
    table = _set(table, "session_id", pa.array(own))
    ms, by = table["impression_ms"].to_numpy().copy(), np.lexsort((position, session))
    follows = np.flatnonzero((session[by][1:] == session[by][:-1]) & (position[by][1:] % 7 == 3)) + 1
    ms[by[follows]] = ms[by[follows - 1]]
    table = _set(table, "impression_ms", pa.array(ms))
    table = _set(table, "scene", pa.array(table["page_id"].to_numpy().astype(np.int32) % 3))
    order = np.lexsort((table["item_id"].to_numpy(), user, ms))
    # And items have more attributes than those that every log has.
    m = len(log.items)
    prices = rng.lognormal(3, 1, m)
    # Up to three of six genres, the known ones first.
    genres = [[*rng.permutation(6)[:n] + 1, *[0] * (3 - n)] for n in rng.integers(0, 4, m)]
    own = {
        "categories": pa.array(np.column_stack([rng.integers(0, [4, 9], (m, 2)), genres]).tolist(), pa.list_(pa.int32())),
        "floats": pa.array(
            [[p if p > 8 else np.nan, s] for p, s in zip(prices, rng.random(m), strict=True)], pa.list_(pa.float32())
        ),
    }
    items = log.items
    for name, values in own.items():
        items = _set(items, name, values)
    named = {"item_categories": OWN_CATEGORIES, "item_floats": ("price", "sharpness"), "numbering": "c0de"}
    return replace(log, impressions=table.take(pa.array(order)), items=items, **named)


def _set(table: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    i = table.schema.get_field_index(name)
    return table.set_column(i, table.schema.field(i), values)


@pytest.fixture(scope="module")
def samples(log: ImpressionLog) -> Samples:
    # days that begin elsewhere than UTC's, so that no hour agrees by chance
    on_device = (Statistic(of="author", days=(1, 7), rates=("like",), device=True),)
    features = FeatureConfig(statistics=(Statistic(of="item"), *on_device))
    config = SampleConfig(tasks=tuple(TASK_WEIGHTS), time_zone="Asia/Shanghai", events_max=12, features=features)
    return build_samples(log, config)


@pytest.fixture(scope="module")
def statistics(samples: Samples) -> ItemStatistics:
    return ItemStatistics(samples)


@pytest.fixture(scope="module")
def model(samples: Samples, statistics: ItemStatistics) -> DeviceModel:
    torch.manual_seed(0)
    config = DeviceModelConfig()
    spec = device_spec(samples, config, TASK_WEIGHTS)
    scored = samples.with_pxtr(list_pxtr(samples)[samples.row_list, samples.row_slot])
    return DeviceModel(scored, statistics, spec, config, split=True).eval()


def list_pxtr(samples: Samples) -> NDArray[np.float32]:
    """Scores [L, N, K] of all candidates, shown or not."""
    return np.random.default_rng(0).random(samples.list_labels.shape, np.float32)


def page_of(model: DeviceModel, number: int) -> Page:
    """List `number` as the cloud would have sent it: raw columns, and vectors in fp16."""
    s, day = model.samples, int(model.samples.list_day[number])
    item = s.list_item[number][s.list_item[number] > 0]
    row = int(np.flatnonzero(s.row_list == number)[0])
    assert model.lower is not None
    with torch.no_grad():
        user_vector = model.arguments(torch.tensor([row]))["user_vector"][0].numpy()
        known = torch.from_numpy(model.statistics[day - model.first_day].numpy()[item])
        vector = model.lower.items(torch.as_tensor(item), known).numpy()
    numbers, codes = item_columns(s)
    features = s.config.features
    moment = s.list_statistics[number, : len(item), list(features.device)].T
    floats = np.concatenate([list_pxtr(s)[number, : len(item)], numbers[item], moment], 1)
    names = (*(f"pxtr_{t}" for t in s.config.tasks), "duration_ms", "price", "sharpness")
    names += tuple(features.names[place] for place in features.device)
    return Page(
        page_id=str(number),
        request_id=str(number),
        created_ms=0,
        ttl_ms=1,
        candidates=Candidates(
            item_id=to_block(s.item_ids[item], "i8"),
            floats=Columns(names=names, values=to_block(floats, "f4")),
            categories=Columns(names=("category", "author", *OWN_CATEGORIES), values=to_block(codes[item], "i4")),
            vector=to_block(vector, "f2"),
        ),
        user_vector=to_block(user_vector, "f2"),
        split_version="v",
    )


def event_of(row: dict[str, Any]) -> FeedbackEvent:
    """A log row as the device reports it; what the log does not know, the device did not tell."""
    values: dict[str, Any] = {k: KINDS[k](v) if k in KINDS else v for k, v in row.items() if k in FIELDS and v is not None}
    return FeedbackEvent(
        **values | {"event_id": f"{row['user_id']}/{row['session_id']}/{row['position']}", "session_id": "s", "page_id": None}
    )


def sessions(log: ImpressionLog) -> Iterator[list[dict[str, Any]]]:
    """Each session's impressions in the order of their positions."""
    by_session: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in log.impressions.to_pylist():
        by_session.setdefault((row["user_id"], row["session_id"]), []).append(row)
    for rows in by_session.values():
        yield sorted(rows, key=lambda row: int(row["position"]))


def test_the_device_model_learns_from_what_the_device_will_feed_it(
    log: ImpressionLog, samples: Samples, model: DeviceModel
) -> None:
    runtime = TorchRuntime(model)
    ranker = Ranker(model.spec, "v", {"split": {"whole": runtime}})
    place = {
        (int(samples.user_ids[samples.event_user[e]]), int(samples.item_ids[samples.event_item[e]])): r
        for r, e in enumerate(samples.row_event)
    }
    assert len(place) == len(samples.row_event)
    longest = sorted(sessions(log), key=len)[-6:]
    compared = 0
    for number, impressions in enumerate(longest):
        clock = Clock()
        feed = FeedSession(ranker, user_id=impressions[0]["user_id"], session_id=str(number), clock=clock)
        for impression in impressions:
            clock.now_ms = impression["impression_ms"]
            row = place[impression["user_id"], impression["item_id"]]
            page = str(samples.row_list[row])
            if feed.page_id != page:  # what the last one still held is not shown any more
                assert feed.take(page_of(model, int(page)))
            left = sorted(feed.remaining.tolist())
            if len(left) > 1:
                with torch.no_grad():
                    trained = {k: v.numpy() for k, v in model.arguments(torch.tensor([row])).items()}
                _same_inputs(runtime.last, trained)
                compared += 1
            assert impression["item_id"] in left
            assert feed.feedback(event_of(impression))
        counters = feed.counters
        assert counters.events == len(impressions) == counters.shown_elsewhere
        assert counters.events_bad + counters.events_late + counters.columns_missing + counters.vectors_bad == 0
    assert compared > 50
    assert max(len(s) for s in longest) > samples.config.events_max


def _same_inputs(served: dict[str, NDArray[Any]], trained: dict[str, NDArray[Any]]) -> None:
    assert set(served) == set(trained) == set(INPUT_NAMES["split"])
    # a device ranks all that is left, a sample is the one item that was shown
    served = dict(served)
    distance = np.abs(served["candidate_float"] - trained["candidate_float"]).max(2)
    distance += np.abs(served["candidate_vector"] - trained["candidate_vector"]).max(2)
    for name in ("candidate_float", "candidate_category", "candidate_vector", "candidate_mask"):
        served[name] = served[name][:, [distance.argmin()]]
    for name, got in served.items():
        expected = trained[name]
        assert got.shape == expected.shape, name
        if name.startswith("event") and name != "event_mask":  # masked rows may hold anything
            real = trained["event_mask"].astype(bool)
            got, expected = got[real], expected[real]
        tolerance = 4e-3 if name in VECTORS else 1e-5
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=tolerance, err_msg=name)


def test_the_cloud_ranks_live_users_on_what_its_ranker_learned_from(
    log: ImpressionLog, samples: Samples, tmp_path: Path
) -> None:
    """A run is published in the middle of the log; what follows reaches serving as feedback, and training as a longer log."""
    ms = log.impressions["impression_ms"].to_numpy()
    cut = int(np.quantile(ms, 0.6))
    config = replace(samples.config, features=FeatureConfig())
    samples = build_samples(log, config)
    before = build_samples(replace(log, impressions=log.impressions.filter(pa.array(ms < cut))), config)
    statistics = ItemStatistics(before)
    torch.manual_seed(1)
    ranker = CloudRanker(FullRankerConfig(), before, statistics.width).eval()
    spec = device_spec(before, DeviceModelConfig(), TASK_WEIGHTS)
    model = DeviceModel(before, statistics, spec, DeviceModelConfig(), split=True).eval()
    run = small_run(tmp_path / "run")
    publish_window(ranker, model, run.folder / "published", simulated=True)
    _, record = Published.open(run.folder / "published")
    formula = " + ".join(before.config.tasks)
    closing = ExitStack()
    make_page = closing.enter_context(
        pages(run.folder, tmp_path / "feedback.db", PipelineConfig(stage=stages(40, formula, most=3)))
    )
    states = make_page.engine.states
    inputs = RankerInputs(samples, statistics)
    compared = grown = 0
    for session in sorted(sessions(log), key=lambda rows: int(rows[0]["impression_ms"])):
        if session[0]["impression_ms"] < cut:  # what of it came later is feedback all the same
            make_page.feedback([event_of(row) for row in session if row["impression_ms"] >= cut])
            continue
        known, page_id = len(states(session[0]["user_id"]).history.item), None
        waiting: list[FeedbackEvent] = []
        for row in session:
            if row["page_id"] != page_id:
                page_id = row["page_id"]
                page = make_page(
                    PageRequest(
                        request_id="r",
                        user_id=row["user_id"],
                        session_id="s",
                        now_ms=row["impression_ms"],
                        size=10,
                        scene=row["scene"],
                        split_version=record.split_version,
                        feedback=tuple(waiting),
                    )
                )
                waiting = []
                _same_scores(page, row, samples, inputs, ranker, model, before.days)
                compared += 1
                grown += len(states(row["user_id"]).history.item) > known
            waiting.append(event_of(row))
        make_page.feedback(waiting)
    closing.close()
    assert compared > 50
    assert grown > 10


def _same_scores(
    page: Page,
    row: dict[str, Any],
    samples: Samples,
    inputs: RankerInputs,
    ranker: CloudRanker,
    model: DeviceModel,
    day: int,
) -> None:
    """The page's pXTRs and user vector are those of the models on training's inputs for the page that the log has."""
    event = np.flatnonzero(
        (samples.user_ids[samples.event_user] == row["user_id"]) & (samples.item_ids[samples.event_item] == row["item_id"])
    )
    number = torch.as_tensor(samples.row_list[np.searchsorted(samples.row_event, event)])
    user, past, feedback, mask, _, scene, hour, *_ = _known(inputs.rows(ranker, number, day))
    arrays = read_page(page)
    item = torch.as_tensor(np.searchsorted(samples.item_ids, arrays.item_id))[None]
    assert model.lower is not None
    statistics = torch.from_numpy(inputs.statistics.as_of(day))
    n = item.shape[1]
    assert n == 10
    assert (scene == scene[0, 0]).all()
    assert (hour == hour[0, 0]).all()
    with torch.no_grad():
        parts = [_half(part) for part in ranker.item_parts(ranker.item_rows(item, statistics[item]))]
        moment = scene[:, :1].expand(1, n), hour[:, :1].expand(1, n)
        expected = torch.sigmoid(ranker.logits(user, _half(past), feedback, parts, *moment, history_mask=mask))
        window, known = inputs.window(inputs.list_user[number], inputs.list_event[number], model.config.lower.history_max)
        vectors = model.lower.items(inputs.item[window], statistics[inputs.item[window]])
        user_vector = model.lower.users(model.lower.user(inputs.list_user[number]), vectors, inputs.feedback[window], known)
    assert page.candidates.numbering == model.spec.numbering == "c0de"
    served = model_categories(page, model)
    np.testing.assert_array_equal(served, model.categories[item[0]])
    assert (served[:, -3] > 0).any()
    np.testing.assert_allclose(arrays.floats[:, : len(TASK_WEIGHTS)], expected[0].numpy(), atol=1e-5)
    assert arrays.user_vector is not None
    np.testing.assert_allclose(arrays.user_vector, user_vector[0].numpy(), atol=4e-3)


def model_categories(page: Page, model: DeviceModel) -> NDArray[np.int32]:
    """The codes of a page as a device reads them."""
    return FeatureBuilder(model.spec).page(page).categories


def _known(arguments: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    return [argument for argument in arguments if argument is not None]


def _half(x: torch.Tensor) -> torch.Tensor:
    """As rows of items are published."""
    return x.half().float()


def test_features_of_the_moment_are_served_as_they_were_trained(log: ImpressionLog, tmp_path: Path) -> None:
    """A run is published in the middle of the log; the rest arrives in the order of time, and each page asks what is known."""
    features = FeatureConfig(
        user_events=60,
        statistics=(
            Statistic(of="item", days=(1, 2), rates=("like", "long_view")),
            Statistic(of="author", days=(7,), rates=("watch_log", "follow"), device=True),
            Statistic(of="brand", days=(3,)),
            Statistic(of="user", days=(1, 30), rates=("engaged",)),
            Statistic(of=("user", "category"), days=(7,), rates=("like", "share")),
        ),
        sequences=(BehaviourSequence(behaviour="engaged", length=5), BehaviourSequence(behaviour="like", length=8)),
    )
    config = SampleConfig(tasks=tuple(TASK_WEIGHTS), time_zone="Asia/Shanghai", events_max=12, features=features)
    ms = log.impressions["impression_ms"].to_numpy()
    cut = int(np.quantile(ms, 0.5))
    before = build_samples(replace(log, impressions=log.impressions.filter(pa.array(ms < cut))), config)
    stream = SampleStream(log, config, WindowConfig(rows=2**62, events=2**62))
    stream.facts = replace(
        stream.facts, statistics=before.statistics
    )  # whose means are those of the first impressions, and here all are first
    (span,) = stream.spans()
    s = span.build(0)
    statistics = ItemStatistics(before)
    torch.manual_seed(1)
    ranker = CloudRanker(FullRankerConfig(), before, statistics.width).eval()
    spec = device_spec(before, DeviceModelConfig(), TASK_WEIGHTS)
    run = small_run(tmp_path / "run")
    model = DeviceModel(before, statistics, spec, DeviceModelConfig(), split=True).eval()
    publish_window(ranker, model, run.folder / "published", simulated=True)
    inputs = RankerInputs(s, statistics)

    begins = s.event_ms[s.list_event]
    later = np.flatnonzero((begins > cut) & ~np.isin(begins, s.event_ms[s.list_event - 1]))  # without ties
    rows = sorted((row for row in log.impressions.to_pylist() if row["impression_ms"] >= cut), key=_moment)
    sent = compared = 0
    seen = set[int]()
    with pages(run.folder, tmp_path / "feedback.db", PipelineConfig(stage=stages(40, "like", most=3))) as make_page:
        engine = make_page.engine
        assert engine.moment is not None
        for number in later[np.argsort(begins[later])].tolist():
            new = []
            while sent < len(rows) and rows[sent]["impression_ms"] < begins[number]:
                new.append(event_of(rows[sent]))
                sent += 1
            make_page.feedback(new)
            user, item = int(s.list_user[number]), s.list_item[number][s.list_item[number] > 0].astype(np.int64)
            state = engine.states(int(s.user_ids[user]))
            assert state.recent is not None
            moment = engine.moment(item, int(begins[number]), state.recent)
            np.testing.assert_allclose(moment.statistics, s.list_statistics[number, : len(item)], atol=1e-5)
            with torch.no_grad():
                arguments = _known(inputs.rows(ranker, torch.tensor([number]), before.days))
                expected = torch.sigmoid(ranker(*arguments))[0].numpy()
            scene, hour = int(s.list_scene[number, 0]) - 1, int(s.list_hour[number, 0]) - 1
            got = engine.ranker.pxtr(user, state.history, item, scene=scene, hour=hour, moment=moment)
            np.testing.assert_allclose(got, expected, atol=2e-3)  # rows of items are published in fp16
            seen |= set(np.flatnonzero(moment.statistics.any(0)).tolist())
            compared += 1
        # Those for the device are the last columns of a page; a page that nobody ranked does not know them.
        ask = PageRequest(request_id="r", user_id=int(s.user_ids[user]), session_id="s", now_ms=int(begins[number]), size=10)
        page = make_page(ask)
        columns, names = read_page(page).floats, page.candidates.floats.names
        on_device = list(features.device)
        assert names[-len(on_device) :] == tuple(features.names[place] for place in on_device)
        item = engine.catalogue.positions(read_page(page).item_id.tolist())
        expected = engine.moment(item, ask.now_ms, state.recent).statistics
        np.testing.assert_array_equal(columns[:, -len(on_device) :], expected[:, on_device])
        late = read_page(make_page(msgspec.structs.replace(ask, user_id=7_777_777), since=perf_counter() - 3600))
        assert np.isnan(late.floats[:, -len(on_device) :]).all()
    assert compared > 50
    assert seen == set(range(len(features.names)))


def _moment(row: dict[str, Any]) -> tuple[int, int]:
    return row["impression_ms"], row["position"]


def test_a_log_without_the_label_calls_a_view_effective_as_serving_does(log: ImpressionLog, samples: Samples) -> None:
    table = _set(log.impressions, "effective_view", pa.nulls(len(log.impressions), pa.bool_()))
    config = replace(samples.config, tasks=("long_view",))
    np.testing.assert_array_equal(build_samples(replace(log, impressions=table), config).event_history, samples.event_history)
