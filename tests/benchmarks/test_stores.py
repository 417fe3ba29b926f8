import json
from pathlib import Path

import pytest

from benchmarks.stores import StoreExtent, main, measure_stores

STORES = ("take", "memory", "mmap", "valkey", "valkey_cluster")


def test_every_store_is_measured_beside_take() -> None:
    report = measure_stores(StoreExtent(rows=500, width=8, batch=5, rounds=3, calls=2, warm_up=1))
    for store in STORES:
        assert 0 < report[store]["p50_us"] <= report[store]["p99_us"]
    assert report["take"]["ratio_to_take"] == 1
    assert report["mmap"]["bytes_per_item"] > 16
    assert (report["rows"], report["width"], report["batch"], report["repetitions"]) == (500, 8, 5, 6)


def test_the_command_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--json", str(tmp_path / "stores.json"), "--rows", "300", "--width", "4", "--rounds", "2"]
    assert main(arguments) == 0
    assert set(STORES) < set(json.loads((tmp_path / "stores.json").read_text()))
    assert "valkey_cluster" in capsys.readouterr().out
