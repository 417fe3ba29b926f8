"""A small published run: random rows, and two real ONNX graphs with the published signatures whose answer numpy can check."""

from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from pocketrank.cloud.data.features import FeatureConfig
from pocketrank.cloud.data.feedback import HISTORY_FEEDBACK
from pocketrank.cloud.models.presets import UpperConfig
from pocketrank.cloud.published.onnx_ranker import History
from pocketrank.cloud.published.published import Published, PublishedFeatures, PublishedRecord
from pocketrank.cloud.training.run import RUN_FORMAT, RunRecord
from pocketrank.device.contract import FeatureSpec, FloatFeature

TASKS = ("long_view", "like")
SPLIT_VERSION = "5m4ll"
F = len(HISTORY_FEEDBACK)
TOWER_HISTORY_MAX = 4
UPLOAD_MS = 1_690_000_000_000
"""When the first item was uploaded; each other one an hour after the one before it."""
DAYS = (19_569, 19_570)
"""Of the counts of a run with statistics."""

_RANKER = """
<ir_version: 9, opset_import: ["": 18]>
ranker (float[1, U] user_row, float16[1, H, E] history_row, float[1, H, F] history_feedback,
        float16[1, N, I] item_row, int64[1, 1] scene, int64[1, 1] hour) => (float[1, N, K] pxtr) {
  rows_of_past = Cast <to = 1> (history_row)
  rows = ReduceSum <keepdims = 1> (rows_of_past, one)
  feedback = ReduceSum <keepdims = 1> (history_feedback, one)
  user = Unsqueeze (user_row, one)
  rows_of_items = Cast <to = 1> (item_row)
  of_item = MatMul (rows_of_items, w_item)
  of_user = MatMul (user, w_user)
  of_rows = MatMul (rows, w_row)
  of_feedback = MatMul (feedback, w_feedback)
  of_scene = Gather <axis = 0> (w_scene, scene)
  of_hour = Gather <axis = 0> (w_hour, hour)
  logit = Sum (of_item, of_user, of_rows, of_feedback, of_scene, of_hour)
  pxtr = Sigmoid (logit)
}
"""

_TOWER = """
<ir_version: 9, opset_import: ["": 18]>
tower (float[1, T] tower_row, float16[1, H, D] history_vector, float[1, H, F] history_feedback, bool[1, H] history_mask)
      => (float[1, D] user_vector) {
  known = Cast <to = 1> (history_mask)
  mask = Unsqueeze (known, two)
  vectors_of_past = Cast <to = 1> (history_vector)
  masked_vectors = Mul (vectors_of_past, mask)
  vectors = ReduceSum <keepdims = 0> (masked_vectors, one)
  masked_feedback = Mul (history_feedback, mask)
  feedback = ReduceSum <keepdims = 0> (masked_feedback, one)
  of_user = MatMul (tower_row, w_user)
  of_feedback = MatMul (feedback, w_feedback)
  user_vector = Sum (vectors, of_user, of_feedback)
}
"""


@dataclass(frozen=True)
class SmallRun:
    """A published run in memory and on disk."""

    folder: Path
    """Of the run; `published/` below it."""
    published: Published
    record: PublishedRecord
    ranker_weights: dict[str, NDArray[np.float32]]
    tower_weights: dict[str, NDArray[np.float32]]

    def expected_pxtr(
        self, user: int, history: History, items: NDArray[np.int64], *, scene_code: int, hour_code: int
    ) -> NDArray[np.float32]:
        """What the ranker graph answers, in numpy."""
        w, p = self.ranker_weights, self.published
        logit = p.item_row[items].astype(np.float32) @ w["w_item"] + p.user_row[user] @ w["w_user"]
        logit = logit + p.item_identity[history.item].astype(np.float32).sum(0) @ w["w_row"]
        logit = logit + history.feedback.sum(0) @ w["w_feedback"] + w["w_scene"][scene_code] + w["w_hour"][hour_code]
        pxtr: NDArray[np.float32] = 1 / (1 + np.exp(-logit))
        return pxtr

    def expected_vector(self, user: int, history: History) -> NDArray[np.float32]:
        """What the user tower answers, in numpy."""
        w, p = self.tower_weights, self.published
        latest = slice(-TOWER_HISTORY_MAX, None)
        vectors = p.item_vector[history.item[latest]].astype(np.float32).sum(0)
        feedback = history.feedback[latest].sum(0)
        vector: NDArray[np.float32] = vectors + p.tower_row[user] @ w["w_user"] + feedback @ w["w_feedback"]
        return vector

    def save(self) -> None:
        """Write `run.json` and `published/`."""
        folder = self.folder / "published"
        self.published.save(folder, self.record)
        onnx.save(_model(_RANKER, self.ranker_weights), folder / "ranker.onnx")
        onnx.save(_model(_TOWER, self.tower_weights), folder / "user_tower.onnx")
        spec = FeatureSpec(
            tasks=TASKS,
            task_weights={"long_view": 1.0, "like": 3.0},
            candidates_max=30,
            events_max=50,
            vector_width=self.published.item_vector.shape[1],
            list_sizes=(30,),
            candidate_floats=(FloatFeature(name="duration_ms", min=0, max=1),),
            candidate_categories=(),
            feedback_floats=(),
            context_floats=(),
        )
        record = RunRecord(
            format=RUN_FORMAT,
            data="small",
            data_digest="0" * 64,
            simulated=True,
            test_from="2022-05-04",
            seeds=(0,),
            split_version=self.record.split_version,
            spec=spec,
            upper=UpperConfig(),
            config={},
            versions={},
        )
        (self.folder / "run.json").write_bytes(msgspec.json.encode(record))


def small_run(
    folder: Path,
    *,
    items: int = 60,
    users: int = 8,
    seed: int = 0,
    time_zone: str = "UTC",
    split_version: str = SPLIT_VERSION,
    actions: tuple[str, ...] = (),
    until_ms: int = np.iinfo(np.int64).min,
    first_item: int = 1000,
    features: FeatureConfig | None = None,
) -> SmallRun:
    """A run of `items` (ids 1000, 1003, …) and `users` (ids 1, 2, …), saved in `folder`; the last user has no history.

    The histories of the others end at `until_ms`, by default at no known time. The graph of the ranker takes no `features`, but
    states and counts have them.
    """
    features = features or FeatureConfig()
    rng, feedback_width = np.random.default_rng(seed), F + len(actions)
    width, identity, user_width, tower_width, d, history_max, scenes = 7, 4, 5, 6, 8, 6, 3

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    unknown = np.array([np.iinfo(np.int64).min])
    item_float = np.stack([rng.integers(5_000, 60_000, items + 1), rng.uniform(0, 9, items + 1)], 1).astype(np.float32)
    item_float[0] = np.nan
    history = np.zeros((users + 1, history_max), np.int32)
    for user in range(1, users):
        length = min(user, history_max, items)
        history[user, history_max - length :] = 1 + rng.choice(items, length, replace=False) if length else []
    feedback = (rng.random((users + 1, history_max, feedback_width)) < 0.5).astype(np.float32) * (history > 0)[..., None]
    published = Published(
        item_id=np.concatenate([unknown, first_item + 3 * np.arange(items)]),
        item_row=draw(items + 1, width).astype(np.float16),
        item_identity=draw(items + 1, identity).astype(np.float16),
        item_vector=draw(items + 1, d).astype(np.float16),
        item_float=item_float,
        item_category=rng.integers(0, 9, (items + 1, 2)).astype(np.int32),
        item_author=np.concatenate([[0], 100 + rng.integers(0, 9, items)]),
        item_upload_ms=np.concatenate([unknown, UPLOAD_MS + 3_600_000 * np.arange(items)]),
        item_popularity=rng.random(items + 1).astype(np.float32),
        user_id=np.concatenate([unknown, 1 + np.arange(users)]),
        user_row=draw(users + 1, user_width),
        tower_row=draw(users + 1, tower_width),
        history_item=history,
        history_feedback=feedback.astype(np.float32),
        history_until_ms=np.where((history > 0).any(1), until_ms, unknown[0]),
        history_ms=np.zeros((users + 1, history_max if features else 0), np.int64),
        counts={key: rng.integers(0, 9, (2, items + 101, 4)).astype(np.float32) for key in features.shared},
    )
    record = PublishedRecord(
        split_version=split_version,
        tasks=TASKS,
        history_max=history_max,
        tower_history_max=TOWER_HISTORY_MAX,
        scenes=scenes,
        float_names=("duration_ms", "age_days"),
        category_names=("category", "author"),
        simulated=True,
        time_zone=time_zone,
        actions=actions,
        features=PublishedFeatures(config=features, means=(0.1,) * feedback_width, days=DAYS),
    )
    k = len(TASKS)
    ranker_weights = {
        "w_item": draw(width, k),
        "w_user": draw(user_width, k),
        "w_row": draw(identity, k),
        "w_feedback": draw(feedback_width, k),
        "w_scene": draw(scenes, k),
        "w_hour": draw(25, k),
    }
    tower_weights = {"w_user": draw(tower_width, d), "w_feedback": draw(feedback_width, d)}
    run = SmallRun(folder, published, record, ranker_weights, tower_weights)
    run.save()
    return run


def _model(text: str, weights: dict[str, NDArray[np.float32]]) -> onnx.ModelProto:
    model = parser.parse_model(text)
    constants = {**weights, "one": np.array([1]), "two": np.array([2])}
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    onnx.checker.check_model(model)
    return model
