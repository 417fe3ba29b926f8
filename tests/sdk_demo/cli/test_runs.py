import json
import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pocketrank.cloud.training.registry import FolderRegistry
from pocketrank.sdk_demo.cli import main
from tests.cloud.small_published import small_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    folder = tmp_path / "runs"
    for name, auc in (("monday", 0.75), ("tuesday", 0.8)):
        small_run(folder / name)
        metrics = {"auc": auc, "auc_std": None, "gauc": 0.5}
        (folder / name / "metrics.json").write_bytes(msgspec.json.encode({"models": {"split": {"like": metrics}}}))
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "started.json").touch()
    return folder


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str], runs: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command in the folder above `runs`; return its report, or the line of its error."""
    monkeypatch.chdir(runs.parent)

    def call(*args: str) -> Any:
        with pytest.raises(SystemExit) as ended:
            main(["runs", *args, "--json", "-"])
        out = capsys.readouterr()
        return json.loads(out.out) if ended.value.code == 0 else out.err

    return call


def test_list_marks_the_active_run(told: Any, runs: Path) -> None:
    assert told("list")["active"] is None
    assert told("activate", "monday")["active"] == "monday"
    report = told("list")
    assert report["active"] == "monday"
    assert {name: run["active"] for name, run in report["runs"].items()} == {
        "monday": True, "tuesday": False, "unfinished": False,
    }  # fmt: skip
    assert report["runs"]["tuesday"]["auc"] == {"like": 0.8}
    assert report["runs"]["tuesday"]["data_digest"] == "0" * 64
    assert report["runs"]["unfinished"]["finished"] is False


def test_the_table_names_every_run(runs: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    FolderRegistry(runs).activate("tuesday")
    with pytest.raises(SystemExit):
        main(["runs", "list", "--runs", str(runs)])
    lines = capsys.readouterr().out.splitlines()
    cells = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[2:-1]] for line in lines if "│" in line}
    assert cells == {
        "monday": ["", "", "small 00000000", "like 0.7500", ""],
        "tuesday": ["active", "", "small 00000000", "like 0.8000", ""],
        "unfinished": ["not whole", "", "", "", ""],
    }


def test_activate_and_rollback(told: Any, runs: Path) -> None:
    told("activate", "monday")
    told("activate", "runs/tuesday")  # its folder is as good as its name
    assert FolderRegistry(runs).active() == (2, "tuesday", ("monday",))
    back = told("rollback")
    assert (back["active"], back["rollback"]) == ("monday", True)
    assert "Activate a run by its name" in told("rollback")


def test_show_tells_where_a_run_is_from_and_when_it_was_active(told: Any) -> None:
    told("activate", "tuesday")
    report = told("show", "tuesday")
    assert (report["run"], report["data"], report["parent"], report["seeds"]) == ("tuesday", "small", None, [0])
    assert report["metrics"]["models"]["split"]["like"]["auc"] == 0.8
    (made,) = report["activations"]
    assert made["at"].endswith("+00:00")


def test_compare_subtracts_the_first_run_from_the_second(told: Any, runs: Path) -> None:
    report = told("compare", "monday", "tuesday")
    assert report["metrics"]["split.like.auc"] == {"run": 0.75, "other": 0.8, "difference": pytest.approx(0.05)}
    assert report["metrics"]["split.like.auc_std"]["difference"] is None
    assert report["same_rows"] is True
    assert report["changed"] == {}
    path = runs / "tuesday" / "run.json"
    path.write_bytes(path.read_bytes().replace(b"0" * 64, b"1" * 64))
    report = told("compare", "monday", "tuesday")
    assert report["same_rows"] is False
    assert report["changed"] == {"data_digest": {"run": "0" * 64, "other": "1" * 64}}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["activate", "nobody"], "Expected one of the runs monday, tuesday, unfinished, got `nobody`"),
        (["activate", "unfinished"], "Expected a finished run with run.json"),
        (["show", "nobody"], "Expected one of the runs"),
        (["compare", "monday", "nobody"], "Expected one of the runs"),
        (["list", "--runs", "nowhere"], "Expected a folder of runs, got: No such file or directory - at nowhere."),
        (["rollback"], "Expected an activation to go back to, got none - at runs."),
    ],
)
def test_errors_are_one_line(told: Any, args: list[str], message: str) -> None:
    line = told(*args)
    assert line.startswith(f"error: {message}")
    assert line.count("\n") == 1


def test_a_run_that_is_gone_is_not_listed(told: Any, runs: Path) -> None:
    shutil.rmtree(runs / "tuesday")
    assert set(told("list")["runs"]) == {"monday", "unfinished"}
