import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow as pa
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from pocketrank.cloud.data.category_codes import codes_of
from pocketrank.cloud.data.days import day_of, days
from pocketrank.cloud.data.log import open_log, save_log
from pocketrank.cloud.data.rates import ItemStatistics
from pocketrank.cloud.data.sample_stream import WindowConfig, build_samples
from pocketrank.cloud.data.samples import SampleConfig, Samples
from pocketrank.cloud.data.schema import IDS, DataError, ImpressionLog
from pocketrank.cloud.models.full_ranker import FullRanker
from pocketrank.cloud.published.profile import Profile
from pocketrank.cloud.published.published import Published
from pocketrank.cloud.training.device_model import DeviceModelConfig
from pocketrank.cloud.training.evaluate import MODELS, evaluate
from pocketrank.cloud.training.profile import ProfileSample
from pocketrank.cloud.training.ranker import RankerInputs, RankerTraining, RankerTrainingConfig
from pocketrank.cloud.training.run import Run, RunError
from pocketrank.cloud.training.train import TrainConfig, train, training_rows
from pocketrank.cloud.training.weights import load_weights
from pocketrank.sdk_demo.world import TASK_WEIGHTS, World
from tests.cloud.data.folders import load
from tests.data import kuairand_folder
from tests.sdk_demo.world.worlds import small

QUICK = TrainConfig(device=DeviceModelConfig(epochs=1), joint=DeviceModelConfig(epochs=1))


def ranker_scores(samples: Samples) -> NDArray[np.float32]:
    rows = len(samples.row_event)
    training = RankerTraining(samples, ItemStatistics(samples), RankerTrainingConfig(), learn_until=7, seed=0, rows=rows)
    return training.window(samples)[0]


@pytest.fixture(scope="module")
def log() -> ImpressionLog:
    log = World(small(users=60, items=300)).simulate_log(seed=1)
    category = range(1, max(log.items["category"].to_pylist()) + 1)
    ids = [{"kind": "category", "code": code, "text": f"category {code}"} for code in category]
    return replace(log, ids=pa.Table.from_pylist(ids, IDS), numbering="c0de")


@pytest.fixture(scope="module")
def run(log: ImpressionLog, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train(log, out=tmp_path_factory.mktemp("train") / "run", seeds=2, config=QUICK)


def test_a_run_records_its_data_and_numbers(run: Run, log: ImpressionLog) -> None:
    record = Run.open(run.folder).record
    assert (record.data, record.simulated, record.data_digest, record.seeds) == ("world", True, log.digest(), (0, 1))
    assert record.config["stream"]["learning_rate"] == QUICK.stream.learning_rate
    assert list((run.folder / "tensorboard").iterdir())
    assert record.created is not None
    assert abs(datetime.now(UTC) - datetime.fromisoformat(record.created)) < timedelta(days=1)
    assert record.parent is None
    assert record.spec.numbering == Published.open(run.published)[1].numbering == codes_of(run.folder).numbering == "c0de"
    assert codes_of(run.folder).ids == log.ids


def test_published_histories_end_with_the_last_event_of_each_user(run: Run, log: ImpressionLog) -> None:
    published, _ = Published.open(run.published)
    last = dict.fromkeys(published.user_id.tolist(), np.iinfo(np.int64).min)
    for user, ms in zip(log.impressions["user_id"].to_pylist(), log.impressions["impression_ms"].to_pylist(), strict=True):
        last[user] = max(last[user], ms)
    assert len(set(last.values())) > 10
    assert published.history_until_ms.tolist() == list(last.values())


def test_the_profile_is_of_the_training_rows(run: Run, log: ImpressionLog) -> None:
    profile = Profile.open(run.published)
    assert profile is not None
    config = SampleConfig(tasks=tuple(TASK_WEIGHTS), test_from=date.fromisoformat(run.record.test_from))
    samples = build_samples(log, config)
    pxtr = np.load(run.seed_folder() / "pxtr" / "0-0.npy")
    rows = training_rows(samples, QUICK.device)
    sample = ProfileSample(samples)
    sample.add(samples.with_pxtr(pxtr), rows)
    assert profile == sample.profile(log.ids)
    by_name = {one.name: one for one in profile.features}
    assert by_name["age"].rows == len(rows) < len(samples.row_event)
    scores = np.sort(pxtr[rows, 1])
    assert by_name["pxtr_like"].edges == tuple(scores[len(scores) * np.arange(1, 10) // 10].tolist())
    _, record = Published.open(run.published)
    served = {*(f"pxtr_{task}" for task in record.tasks), *record.float_names, "age", *record.category_names, "item.known"}
    assert {one.name for one in profile.features if one.of == "candidate"} == served


def test_metrics_are_those_of_the_predictions_on_the_test_rows(run: Run) -> None:
    report = evaluate(run.folder)
    assert tuple(report["models"]) == MODELS
    labels = np.load(run.seed_folder(0) / "labels.npy")
    auc = [roc_auc_score(labels[:, 0], np.load(run.seed_folder(s) / "split.npy")[:, 0]) for s in (0, 1)]
    split = report["models"]["split"]["effective_view"]
    assert split["auc"] == pytest.approx(np.mean(auc))
    assert split["auc_std"] == pytest.approx(np.std(auc, ddof=1))
    assert json.loads((run.folder / "metrics.json").read_bytes()) == json.loads(json.dumps(report, allow_nan=False))


def test_the_exported_form_is_the_measured_one(run: Run) -> None:
    with np.load(run.published / "gate.npz") as gate:
        inputs = {k: torch.from_numpy(v) for k, v in gate.items() if k != "labels"}
        labels = gate["labels"]
    with torch.no_grad():
        scores = run.upper("split")(**inputs)[:, 0].numpy()
    measured = np.load(run.seed_folder() / "split.npy")
    assert len(labels) == min(2000, len(measured))
    if len(labels) == len(measured):
        np.testing.assert_allclose(scores, measured, atol=1e-5)


def test_the_published_half_scores_as_the_ranker_does(run: Run, log: ImpressionLog) -> None:
    published, record = Published.open(run.published)
    samples = build_samples(log, SampleConfig(tasks=tuple(TASK_WEIGHTS), test_from=date.fromisoformat(run.record.test_from)))
    statistics = ItemStatistics(samples)
    ranker = FullRanker(QUICK.stream.ranker, samples, statistics.width)
    load_weights(ranker, run.seed_folder() / "ranker.safetensors")
    last = int(np.flatnonzero(samples.list_event == samples.list_event.max())[0])
    lists = torch.tensor([last])
    with torch.no_grad():
        rows = RankerInputs(samples, statistics).rows(ranker.eval(), lists, samples.days)
        expected = torch.sigmoid(ranker(*rows)).numpy()
        parts = ranker.item_parts(rows[4])
        side, (user_row, past_row, feedback, mask, _, scene, hour, *_) = torch.cat(parts, -1), rows
        rounded = [part.half().float() for part in parts]  # as rows are published
        logits = ranker.logits(user_row, past_row.half().float(), feedback, rounded, scene, hour, history_mask=mask)
    user = int(samples.list_user[last])
    np.testing.assert_allclose(published.user_row[user], rows[0][0].numpy(), atol=1e-6)
    items = samples.list_item[last]
    np.testing.assert_allclose(published.item_row[items], side[0].numpy(), rtol=1e-3, atol=1e-3)  # fp16
    np.testing.assert_allclose(published.item_identity[items], rows[4][0, :, : ranker.identity_width].numpy(), rtol=1e-3)
    past = mask[0] > 0
    assert (scene == scene[:, :1]).all(), "a page has one scene"
    assert (hour == hour[:, :1]).all(), "and one hour"
    inputs = {
        "user_row": user_row,
        "history_row": past_row[:, past].half(),
        "history_feedback": feedback[:, past],
        "item_row": torch.from_numpy(published.item_row[items])[None],
        "scene": scene[:, :1],
        "hour": hour[:, :1],
    }
    session = onnxruntime.InferenceSession(run.published / "ranker.onnx")
    (got,) = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    np.testing.assert_allclose(got, torch.sigmoid(logits).numpy(), atol=1e-5)
    np.testing.assert_allclose(got, expected, atol=1e-3)
    assert record.split_version == run.record.split_version
    # the history that serving starts from is what the user saw last
    seen = samples.event_item[samples.user_start[user] : samples.user_start[user + 1]][-samples.config.history_max :]
    np.testing.assert_array_equal(published.history_item[user, -len(seen) :], seen)


def test_no_score_depends_on_its_own_or_a_later_label(log: ImpressionLog) -> None:
    samples = build_samples(log, SampleConfig(tasks=tuple(TASK_WEIGHTS)))
    day = 4
    one = ranker_scores(samples)
    from_day = samples.list_day >= day
    samples.list_labels[from_day] = 1 - samples.list_labels[from_day]
    samples.event_labels[samples.event_day >= day] = 1 - samples.event_labels[samples.event_day >= day]
    two = ranker_scores(samples)
    untouched = samples.list_day <= day
    np.testing.assert_array_equal(one[untouched], two[untouched])
    assert np.abs(one[samples.list_day == day + 1] - two[samples.list_day == day + 1]).max() > 1e-3


def test_a_pseudo_list_is_learned_when_it_is_over() -> None:
    """Without pages a list may run over several days; a list of its second day must not be scored by who learned it."""
    whole = World(small(users=60, items=300)).simulate_log(seed=2)
    nothing = [pa.nulls(len(whole.impressions), pa.int64())] * 2
    impressions = whole.impressions
    for name, column in zip(("page_id", "session_id"), nothing, strict=True):
        impressions = impressions.set_column(impressions.schema.get_field_index(name), impressions.schema.field(name), column)
    bare = replace(whole, impressions=impressions, pages=whole.pages.slice(0, 0))
    samples = build_samples(bare, SampleConfig(tasks=tuple(TASK_WEIGHTS), list_days=2))
    day = 3
    one = ranker_scores(samples)
    later = samples.event_day[samples.row_event] >= day
    at = samples.row_list[later], samples.row_slot[later]
    samples.list_labels[at] = 1 - samples.list_labels[at]
    samples.event_labels[samples.event_day >= day] = 1 - samples.event_labels[samples.event_day >= day]
    two = ranker_scores(samples)
    assert (np.unique(samples.list_day[samples.row_list[later]]) < day).any()
    untouched = samples.list_day <= day
    np.testing.assert_array_equal(one[untouched], two[untouched])


def test_an_interrupted_training_continues_after_its_last_stage(log: ImpressionLog, run: Run, tmp_path: Path) -> None:
    """Killed with -9 in its second stage, then called again: the first stage is not repeated, the result is the same."""
    save_log(log, tmp_path / "log")
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.cloud.training.train_until_killed", tmp_path / "log", tmp_path / "run"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    for line in child.stdout:
        if "self_contained" in line:
            os.kill(child.pid, signal.SIGKILL)
            break
    assert child.wait() == -signal.SIGKILL
    with pytest.raises(RunError, match=r"run\.json"):
        Run.open(tmp_path / "run")
    ranker = tmp_path / "run" / "seed-0" / "ranker.safetensors"
    before = ranker.stat().st_mtime_ns
    (tmp_path / "run" / "seed-0" / "split.safetensors.0.part").write_text("cut short")
    stages: list[str] = []
    again = train(
        open_log(tmp_path / "log"), out=tmp_path / "run", seeds=1, config=QUICK, progress=lambda stage, _: stages.append(stage)
    )
    assert ranker.stat().st_mtime_ns == before
    assert not list((tmp_path / "run").rglob("*.part"))
    assert not any("ranker" in stage for stage in stages)
    assert again.record.split_version == run.record.split_version


def test_a_folder_with_other_content_is_unchanged(log: ImpressionLog, run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="other data or numbers"):
        train(log, out=run.folder, seeds=2, config=replace(QUICK, stream=RankerTrainingConfig(batch=64)))
    assert Run.open(run.folder).record == run.record
    (tmp_path / "precious").write_text("x")
    with pytest.raises(RunError, match="empty folder"):
        train(log, out=tmp_path, config=QUICK)
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]


@pytest.mark.parametrize("day", [date(1999, 1, 1), date(2050, 1, 1)])
def test_a_test_day_without_rows_on_one_side_is_rejected(log: ImpressionLog, tmp_path: Path, day: date) -> None:
    with pytest.raises(DataError, match="first test day with rows before and after it"):
        train(log, out=tmp_path / "run", test_from=day, config=QUICK)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("text", [b"", b"{", b'{"format": 99}'])
def test_a_damaged_run_is_rejected(run: Run, tmp_path: Path, text: bytes) -> None:
    (tmp_path / "run.json").write_bytes(text)
    with pytest.raises(RunError):
        Run.open(tmp_path)
    (tmp_path / "weights.safetensors").write_bytes(text)
    with pytest.raises(RunError, match="weights"):
        load_weights(run.upper("split"), tmp_path / "weights.safetensors")


def test_two_real_days_are_enough_to_order_a_third(tmp_path: Path) -> None:
    log = load(kuairand_folder())
    impressions = log.impressions.filter(days(log) <= (date(2022, 4, 27) - day_of(0)).days)
    run = train(
        replace(log, impressions=impressions, history=log.history.slice(0, 4000)),
        out=tmp_path / "run",
        test_from=date(2022, 4, 27),
        seeds=1,
        config=replace(QUICK, no_feedback=False),
    )
    models = evaluate(run.folder)["models"]
    assert models["server_score"]["long_view"]["auc"] > 0.6
    assert models["split"]["long_view"]["auc"] > 0.6


@pytest.mark.parametrize("windows", [WindowConfig(rows=300), WindowConfig(rows=100, events=600)])
def test_a_log_in_windows_trains_as_well(log: ImpressionLog, run: Run, tmp_path: Path, windows: WindowConfig) -> None:
    """In other batches, and so not to the same weights, but with the same rows, histories and quality."""
    stored = save_log(log, tmp_path / "log")
    other = train(stored, out=tmp_path / "run", seeds=1, config=replace(QUICK, windows=windows))
    assert other.record.data_digest == run.record.data_digest
    for name in ("labels", "users"):
        mine, whole = (np.load(one.seed_folder() / f"{name}.npy") for one in (other, run))
        np.testing.assert_array_equal(np.sort(mine, 0), np.sort(whole, 0))
    lists = [np.unique(np.load(one.seed_folder() / "lists.npy"), return_counts=True)[1] for one in (other, run)]
    np.testing.assert_array_equal(np.sort(lists[0]), np.sort(lists[1]))
    mine, _ = Published.open(other.published)
    whole, _ = Published.open(run.published)
    for name in ("history_item", "history_feedback", "item_id", "user_id"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(whole, name))
    auc = [evaluate(one.folder)["models"]["split"]["effective_view"]["auc"] for one in (other, run)]
    assert auc[0] == pytest.approx(auc[1], abs=0.05)
    profiles = [Profile.open(one.published) for one in (other, run)]
    inputs = [{one.name: one for one in found.features if "pxtr" not in one.name} for found in profiles if found is not None]
    assert inputs[0] == inputs[1]
    with np.load(other.published / "gate.npz") as gate:
        assert len(gate["labels"]) == min(2000, len(np.load(other.seed_folder() / "labels.npy")))
