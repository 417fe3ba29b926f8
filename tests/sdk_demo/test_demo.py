import json
from pathlib import Path

import pytest

from pocketrank.cloud.data.schema import LABELS
from pocketrank.cloud.training.run import Run
from pocketrank.device import Bundle
from pocketrank.sdk_demo.demo import DemoConfig, PlaceError, run_demo
from pocketrank.sdk_demo.world import WorldConfigError
from tests.sdk_demo.conftest import SmallDemo

FIGURES = (
    "effective_views_per_session", "likes_per_session", "watch_s_per_session", "items_per_session", "requests_per_session",
)  # fmt: skip


def test_the_report_holds_every_figure(small_demo: SmallDemo) -> None:
    report = json.loads((small_demo.out / "report.json").read_text())
    assert report["data"]["simulated"] is True
    assert set(report["data"]["rates"]) < set(LABELS)
    onnx = report["export"]["onnx"]
    assert onnx["bytes"] == sum(m["bytes"] for m in report["export"]["models"].values() if m["form"] == "split")
    assert 0 <= onnx["max_abs_diff"] <= 1e-5
    for policy in ("cloud_order", "on_device", "oracle"):
        row = report["emulation"]["policies"][policy]
        for name in FIGURES:
            low, high = row[f"{name}_ci95"]
            assert low <= row[name] <= high
    share = report["emulation"]["uplift_share"]
    assert share["ci95"][0] <= share["mean"] <= share["ci95"][1]
    assert 0 < report["latency_ms"]["rerank_p50"] <= report["latency_ms"]["rerank_p99"]
    assert set(report["seconds"]) >= {"world", "train", "export", "emulate"}
    assert {"server_score", "self_contained", "split"} <= set(report["models"])


def test_what_it_made_can_be_used(small_demo: SmallDemo) -> None:
    run, bundle = Run.open(small_demo.out / "run"), Bundle.open(small_demo.out / "bundle")
    assert bundle.split_version == run.record.split_version
    assert small_demo.report["emulation"]["split_version"] == {"server": bundle.split_version, "phones": bundle.split_version}
    assert "<svg" in (small_demo.out / "report.html").read_text()


def test_an_earlier_demo_is_replaced_and_nothing_else(small_demo: SmallDemo) -> None:
    assert "earlier" not in (small_demo.out / "report.json").read_text()
    assert "earlier" in (small_demo.out / "notes.txt").read_text()
    assert not list(small_demo.out.rglob("*.part"))


def test_the_progress_of_every_step_is_reported(small_demo: SmallDemo) -> None:
    steps = list(dict.fromkeys(step for step, _ in small_demo.progress))
    assert steps[0] == "simulate the log"
    assert steps[-3:] == ["export and compare with torch", "emulate phones", "write the report"]
    assert all(0 <= share <= 1 for _, share in small_demo.progress)
    assert {step for step, share in small_demo.progress if share == 1} >= set(steps[-3:])


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text("mine")
    with pytest.raises(PlaceError, match="an empty folder or an earlier demo"):
        run_demo(tmp_path)
    with pytest.raises(PlaceError, match="a folder for the demo, got a file"):
        run_demo(tmp_path / "report.json")
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "mine"


def test_a_world_that_makes_no_sense_takes_nothing_away(tmp_path: Path) -> None:
    for name in ("demo.json", "report.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(WorldConfigError, match="a readable file"):
        run_demo(tmp_path, config=DemoConfig(world=tmp_path / "nowhere.toml"))
    assert (tmp_path / "report.json").is_file()
