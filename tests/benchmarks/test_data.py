import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from benchmarks.data.__main__ import main
from benchmarks.data.subject import SUBJECTS
from benchmarks.data.synthetic import CSV, DATA_FILE, write_log
from pocketrank.cloud.data.import_log import load_mapped


def test_import_and_peers_are_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--rows", "2e3", "--json", str(tmp_path / "data.json"), "--work", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "data.json").read_text())
    assert list(report["rows"]) == ["2e3"]
    figures = report["rows"]["2e3"]
    for subject in SUBJECTS:
        assert figures[subject]["seconds"] > 0
        assert 20 < figures[subject]["peak_mib"] < 2000
    faster = min(figures["polars"]["seconds"], figures["duckdb"]["seconds"])
    assert figures["import"]["ratio_to_faster_peer"] == pytest.approx(figures["import"]["seconds"] / faster)
    sorted_seconds = figures["duckdb_sorted"]["seconds"]
    assert figures["import"]["ratio_to_duckdb_sorted"] == pytest.approx(figures["import"]["seconds"] / sorted_seconds)
    assert figures["csv_mib"] > 0.05
    assert "import" in capsys.readouterr().out
    assert [file.name for file in tmp_path.iterdir()] == ["data.json"]


def test_the_sorted_peer_writes_what_is_imported(tmp_path: Path) -> None:
    write_log(tmp_path, 3000, 0)
    assert SUBJECTS["duckdb_sorted"](tmp_path)() == 3000
    log = load_mapped(tmp_path / DATA_FILE)
    rows = pq.read_table(tmp_path / "sorted.parquet")
    assert rows["shown_at"].to_pylist() == log.impressions["impression_ms"].to_pylist()
    assert rows["watch_ms"].to_pylist() == log.impressions["watch_ms"].to_pylist()


def test_the_synthetic_log_is_one(tmp_path: Path) -> None:
    write_log(tmp_path, 30_000, 0)
    lines = (tmp_path / CSV).read_text().splitlines()
    times = [int(line.split(",")[2]) for line in lines[1:]]
    assert times != sorted(times)
    log = load_mapped(tmp_path / DATA_FILE)
    assert len(log.impressions) == 30_000
    assert {row["kind"] for row in log.ids.to_pylist()} == {"user_id"}
    assert 0.2 < sum(log.impressions["long_view"].to_pylist()) / 30_000 < 0.6


@pytest.mark.parametrize("rows", ["", "many", "0", "1.5", "inf"])
def test_a_wrong_number_of_rows_says_what_to_write(rows: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--rows", rows])
    assert "expected numbers of rows such as 1e5,1e6" in capsys.readouterr().err
