import json
from pathlib import Path

import pytest

from benchmarks.retrieval import main


def test_the_report_has_what_it_promises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "retrieval.json"
    assert main(["--json", str(file), "--items", "10000", "--width", "16", "--queries", "10"]) == 0
    report = json.loads(file.read_text())
    assert report["recall_at_100"] >= 0.9
    assert set(report["filtered_recall"]) == {"1%", "10%", "50%"}
    assert report["filtered_recall"]["1%"] == 1
    for name in ("time_to_exact", "insert_to_visible_s", "inserts_per_s", "deletes_per_s", "build_s", "bytes"):
        assert report[name] > 0
    assert report["uniform"]["recall_at_100"] >= 0.9
    assert "a filter leaves 10%" in capsys.readouterr().out


def test_too_few_items_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--items", "5"]) == 2
    assert "--items: expected 10000 at least, got 5" in capsys.readouterr().err
