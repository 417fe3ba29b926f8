import json
from pathlib import Path

import pytest

from pocketrank.cloud.training.breakdown import breakdown
from pocketrank.cloud.training.compare import compare
from pocketrank.cloud.training.run import Run
from pocketrank.sdk_demo.cli import main
from pocketrank.sdk_demo.report.run_page import run_page
from tests.cloud.training.made_up_run import made_up_run
from tests.sdk_demo.report.test_files import _Links


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = made_up_run(tmp_path / "run", seeds=(1, 2), noise=1, data="<b>rows</b>", config={"stream": {"batch": 256}})
    for seed in (1, 2):
        points = [{"name": "ranker/loss", "step": step, "value": 1 / (step + seed)} for step in range(50)]
        points += [{"name": "split/validation_auc/like", "step": epoch, "value": 0.6} for epoch in (1, 2)]
        (run.seed_folder(seed) / "curves.json").write_text(json.dumps(points))
    return run


def test_the_page_has_every_section_and_needs_nothing_from_elsewhere(run: Run) -> None:
    figures = breakdown(run.folder)
    page, seen = run_page(figures, run.record), _Links()
    seen.feed(page)
    assert (seen.loads, seen.open) == ([], [])
    assert "&lt;b&gt;rows&lt;/b&gt;" in page
    assert "<b>rows" not in page
    assert "simulated users" in page
    assert "600 held-out rows from 2022-05-04 on, 2 seeds" in page
    # Two tasks: models, calibration, by day, by history; and the curves of two stages.
    assert page.count("<svg") == 2 * 4 + 2
    for model, tasks in figures["models"].items():
        assert f"<td>{tasks['like']['auc']:.4f}<br><small>± {tasks['like']['auc_std']:.4f}</small></td>" in page
        for value in figures["by_seed"][model]["effective_view"]:
            assert f"<td>{value:.4f}</td>" in page
    for heading in ("Metrics", "Models", "Calibration", "AUC by day", "AUC by the user&#x27;s history", "Training"):
        assert f"<h2>{heading}</h2>" in page.replace("'", "&#x27;")
    assert "Difference from another run" not in page
    assert "validation AUC: like" in page
    assert "&quot;batch&quot;: 256" in page


def test_a_page_says_what_the_run_did_not_keep(run: Run) -> None:
    for path in (*run.folder.rglob("curves.json"), *run.folder.rglob("days.npy"), *run.folder.rglob("history.npy")):
        path.unlink()
    page = run_page(breakdown(run.folder), run.record)
    assert "did not keep its training curves" in page
    assert page.count("did not keep what the rows are grouped by") == 2
    assert page.count("<svg") == 2 * 2


def test_a_page_shows_the_difference_from_another_run(run: Run, tmp_path: Path) -> None:
    other = made_up_run(tmp_path / "worse", seeds=(3,), noise=5)
    report = compare(run.folder, other.folder, resamples=100)
    page = run_page(breakdown(run.folder), run.record, report)
    auc = report["models"]["split"]["effective_view"]["difference"]["auc"]
    low, high = auc["ci95"]
    assert high < 0
    assert f"<td>{auc['mean']:+.4f} *<br><small>{low:+.4f} to {high:+.4f}</small></td>" in page
    assert "pigeonhole" in page


def test_the_command_writes_the_page(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "report.html"
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(run.folder), "--page", str(page)])
    assert ended.value.code == 0
    assert f"page written to {page}" in capsys.readouterr().out.replace("\n", "")
    assert page.read_text() == run_page(breakdown(run.folder), run.record)


def test_a_page_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", str(tmp_path / "nowhere"), "--page", str(tmp_path)])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("error: --page: expected a file that can be written")
