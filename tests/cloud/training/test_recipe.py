"""Recipes, and a part and a stage of a user's own: three files beside ours, trained, served and removed again."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest

from pocketrank.cloud.data.schema import DataError, ImpressionLog
from pocketrank.cloud.pages.engine import fill_stores, open_engine
from pocketrank.cloud.pages.maker import PageMaker
from pocketrank.cloud.pipeline.config import PipelineConfig, PipelineError
from pocketrank.cloud.published.artifacts import ArtifactError, Artifacts
from pocketrank.cloud.serving.config import ServingConfig
from pocketrank.cloud.training.device_model import DeviceModelConfig
from pocketrank.cloud.training.recipe import DEFAULT_RECIPE, RecipeError, read_recipe, with_recipe, with_settings
from pocketrank.cloud.training.run import Run
from pocketrank.cloud.training.train import WORLD_CONFIG, TrainConfig, train
from pocketrank.device.codec import read_page
from pocketrank.device.contract import PageRequest
from pocketrank.sdk_demo.world import World
from tests.sdk_demo.world.worlds import small

QUICK = TrainConfig(device=DeviceModelConfig(epochs=1), joint=DeviceModelConfig(epochs=1), no_feedback=False)

POPULARITY = '''
import numpy as np

from pocketrank.cloud.pipeline.candidates import CandidateSet
from pocketrank.cloud.pipeline.stage import Stage
from pocketrank.cloud.training.part import Part, PartConfig


class ByHourConfig(PartConfig, frozen=True, kw_only=True):
    """Weight of the prior, in impressions."""

    smoothing: float = 10.0


class ByHour(Part):
    """Rate of the first task of each item in each hour of the day."""

    Config = ByHourConfig

    def train(self, training):
        shape = 24, len(training.entities.item_ids)
        taken, shown = np.zeros(shape), np.full(shape, self.config.smoothing)
        for samples, _ in training.windows():
            row = np.flatnonzero(samples.event_day[samples.row_event] < samples.learn_until)
            hour = samples.list_hour[samples.row_list[row], samples.row_slot[row]] - 1
            event = samples.row_event[row]
            np.add.at(shown, (hour, samples.event_item[event]), 1)
            np.add.at(taken, (hour, samples.event_item[event]), samples.event_labels[event, 0])
        training.write("popularity_by_hour", {"score": (taken / shown).astype(np.float32)})


class Order(Stage):
    """Orders all items by their rate in the hour of the request."""

    def __init__(self, config, resources):
        super().__init__(config, resources)
        self._score = resources.artifacts["popularity_by_hour"].table("score")

    def __call__(self, query, candidates):
        item = np.setdiff1d(np.arange(1, len(self.resources.catalogue)), query.exclude)
        score = self._score[query.hour, item]
        return CandidateSet(item, score=score).take(np.argsort(-score, kind="stable"))
'''
RECIPE = """
[[part]]
use = "ranker"
[[part]]
use = "popularity.ByHour"
smoothing = 5.0
[[part]]
use = "device_model"
"""
PIPELINE = """
[[stage]]
use = "popularity.Order"
"""


@pytest.fixture(scope="module")
def log() -> ImpressionLog:
    return World(small(users=40, items=200)).simulate_log(seed=1)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    for name, text in (("popularity.py", POPULARITY), ("recipe.toml", RECIPE), ("pipeline.toml", PIPELINE)):
        (tmp_path / name).write_text(text)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    sys.modules.pop("popularity", None)


def test_a_part_and_a_stage_of_ones_own_are_trained_served_and_removed(log: ImpressionLog, folder: Path) -> None:
    recipe = read_recipe(folder / "recipe.toml")
    run = train(log, out=folder / "run", seeds=1, config=with_recipe(QUICK, recipe))
    assert run.record.config["parts"] == [{"use": "popularity.ByHour", "smoothing": 5.0}]
    artifact = Artifacts(run.folder / "artifacts")["popularity_by_hour"]
    assert artifact.manifest.part == "popularity.ByHour"
    artifact.verify()
    score = artifact.table("score")
    manifest = artifact.folder / "manifest.json"
    before = manifest.stat().st_mtime_ns
    train(log, out=folder / "run", seeds=1, config=with_recipe(QUICK, recipe))
    assert manifest.stat().st_mtime_ns == before  # a part that is done is not trained again

    config = ServingConfig(PipelineConfig.open(folder / "pipeline.toml"), folder=folder)
    fill_stores(run, config)
    with open_engine(run, config) as engine:
        now_ms = 1_700_000_000_000
        page = PageMaker(engine, config.pipeline)(
            PageRequest(request_id="r", user_id=1, session_id="s", now_ms=now_ms, size=10)
        )
        hour = now_ms // 3_600_000 % 24
        got = engine.catalogue.positions(read_page(page).item_id.tolist())
        assert score[hour, got].tolist() == sorted(score[hour, 1:].tolist(), reverse=True)[:10]

    without = [part for part in recipe if part["use"] != "popularity.ByHour"]
    bare = train(log, out=folder / "bare", seeds=1, config=with_recipe(QUICK, without))
    assert bare.record.split_version == run.record.split_version  # the other parts do not notice
    message = r"Expected an artifact of the run \(none\), got `popularity_by_hour`; train with the part that makes it"
    fill_stores(bare, config)
    with pytest.raises(PipelineError, match=message), open_engine(bare, config):
        pass
    fill_stores(bare, ServingConfig())
    with open_engine(bare, ServingConfig()):
        pass
    (artifact.folder / "score.npy").unlink()
    with pytest.raises(ArtifactError, match=r"score\.npy"):
        artifact.verify()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"Expected a `\[\[part\]\]`, got none - at `\$\.part`"),
        ("part = 3", r"Expected a `\[\[part\]\]`"),
        ("[[part]", "Expected TOML"),
        ("x = 1", r"Expected `\[\[part\]\]` tables alone - at `\$\.x`"),
        ('[[part]]\nuse = "ranker"', "Expected a part `device_model`, got none"),
        ('[[part]]\nuse = "rankr"', "the parts of Pocketrank are ranker, device_model"),
        ('[[part]]\nuse = "no_such_module.X"', "Expected a part that can be imported"),
        ('[[part]]\nuse = "pathlib.Path"', "Expected a subclass of pocketrank.cloud.training.part.Part"),
        ('[[part]]\nuse = "ranker"\nlearning_rat = 1', "Expected one of ranker, batch, learning_rate"),
        ('[[part]]\nuse = "ranker"\nlearning_rate = "fast"', "Expected `float`, got `str` - at `$.part[0].learning_rate`"),
        ('[[part]]\nuse = "device_model"\nseed = 1', "Expected `device`, `joint`, `search` or `no_feedback`"),
        ('[[part]]\nuse = "device_model"\n[[part]]\nuse = "device_model"', "Expected each part once"),
        ('[[part]]\nuse = "popularity.ByHour"\nsmoothin = 1.0', r"unknown field `smoothin` - at `$.part[0]"),
    ],
)
def test_a_wrong_recipe_is_refused_with_its_place(folder: Path, text: str, message: str) -> None:
    (folder / "recipe.toml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        with_recipe(TrainConfig(), read_recipe(folder / "recipe.toml"))
    assert re.search(message if "\\" in message else re.escape(message), str(caught.value))


def test_settings_change_one_number_each() -> None:
    settings = ["ranker.learning_rate=1e-3", "device_model.device.upper.width=32", "device_model.joint.upper.width = 32"]
    config = with_recipe(TrainConfig(), with_settings(DEFAULT_RECIPE, settings))
    assert config.stream is not None
    assert (config.stream.learning_rate, config.device.upper.width, config.joint.upper.width) == (1e-3, 32, 32)
    assert with_recipe(WORLD_CONFIG, DEFAULT_RECIPE) == WORLD_CONFIG
    for wrong in ("ranker", "ranker=1", "rankr.batch=1", "ranker.batch"):
        with pytest.raises(RecipeError, match=r"Expected PART\.NAME=VALUE with a part of the recipe \(ranker, device_model\)"):
            with_settings(DEFAULT_RECIPE, [wrong])


def test_the_logs_own_scores_take_the_place_of_the_ranker(log: ImpressionLog, tmp_path: Path) -> None:
    """The scores of our ranker, handed in as the log's own, make the same device model."""
    ours = train(log, out=tmp_path / "ours", seeds=1, config=QUICK)
    # Rows of the scores are sorted by user, time and position; a page of the world has a user's items in that order.
    scores = np.load(ours.seed_folder() / "pxtr" / "0-0.npy")
    table = log.impressions
    order = np.lexsort([table[name].to_numpy() for name in ("position", "impression_ms", "user_id")])
    columns = np.empty_like(scores)
    columns[order] = scores
    for k, task in enumerate(log.tasks):
        table = table.append_column(f"pxtr_{task}", [columns[:, k]])
    own = with_recipe(QUICK, [{"use": "device_model"}])
    theirs = train(replace(log, impressions=table), out=tmp_path / "theirs", seeds=1, config=own)
    for form in ("self_contained", "split", "server_score"):
        mine, given = (np.load(run.seed_folder() / f"{form}.npy") for run in (ours, theirs))
        np.testing.assert_allclose(given, mine, atol=1e-6)
    with (
        pytest.raises(ValueError, match=r"Expected a run with a ranker.*pocketrank\.pages"),
        open_engine(theirs, ServingConfig()),
    ):
        pass
    with pytest.raises(DataError, match="expected scores of the log's own, because the recipe has no ranker"):
        train(log, out=tmp_path / "none", seeds=1, config=own)
    assert Run.open(theirs.folder).record.config["stream"] is None


def test_training_stops_early_and_keeps_the_best_pass(log: ImpressionLog, tmp_path: Path) -> None:
    settings = ["device_model.device.patience=1", "device_model.device.epochs=30", "device_model.device.learning_rate=0.05"]
    run = train(log, out=tmp_path / "run", seeds=1, config=with_recipe(QUICK, with_settings(DEFAULT_RECIPE, settings)))
    curves = msgspec.json.decode((run.seed_folder() / "curves.json").read_bytes())
    names = {curve["name"] for curve in curves}
    assert {"self_contained/validation_auc/effective_view", "ranker/validation_auc/effective_view"} <= names
    reached = [c["value"] for c in curves if c["name"] == "self_contained/validation_auc/effective_view"]
    assert len(reached) < 30
    assert np.argmax(reached) == len(reached) - 2
