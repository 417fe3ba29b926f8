import io
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from pocketrank.sdk_demo.cli.errors import OutputError
from pocketrank.sdk_demo.cli.output import JsonTarget, flatten, print_report, progress

TREES = st.recursive(st.integers(), lambda child: st.dictionaries(st.text("abc", min_size=1), child, min_size=1), max_leaves=8)


def _console(width: int = 100) -> Console:
    return Console(file=io.StringIO(), width=width, color_system=None)


def _text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_report_is_written_whole_with_nan_as_null(tmp_path: Path) -> None:
    target = JsonTarget(str(tmp_path / "deep" / "report.json"))
    target.write({"auc": np.float64(0.5), "missing": float("nan"), "counts": np.arange(3), "path": tmp_path})
    written = json.loads((tmp_path / "deep" / "report.json").read_text())
    assert written == {"auc": 0.5, "missing": None, "counts": [0, 1, 2], "path": tmp_path.as_posix()}
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.json"]


def test_a_report_that_cannot_be_encoded_leaves_the_old_one(tmp_path: Path) -> None:
    target = JsonTarget(str(tmp_path / "report.json"))
    target.write({"auc": 0.5})
    with pytest.raises(TypeError, match="Expected a plain value, got object"):
        target.write({"auc": object()})
    assert json.loads((tmp_path / "report.json").read_text()) == {"auc": 0.5}


def test_a_dash_prints_the_report_alone_to_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    target = JsonTarget("-")
    target.write({"auc": 0.5})
    target.console.print("a table")
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"auc": 0.5}
    assert "a table" in captured.err


def test_without_a_target_nothing_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    target = JsonTarget(None)
    target.write({"auc": 0.5})
    target.console.print("a table")
    assert capsys.readouterr().out == "a table\n"


def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a file that can be written"):
        JsonTarget(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot make the folder"):
        JsonTarget(str(tmp_path / "file" / "report.json"))


@given(TREES.filter(lambda tree: isinstance(tree, dict)))
def test_flatten_keeps_every_leaf_under_its_path(tree: dict[str, object]) -> None:
    for name, leaf in flatten(tree).items():
        node: object = tree
        for part in name.split("."):
            assert isinstance(node, dict)
            node = node[part]
        assert node == leaf
        assert not isinstance(leaf, dict)


def test_a_report_is_a_table_and_the_rest_below() -> None:
    console = _console()
    report = {
        "models": {"split": {"like": {"auc": 0.87654}}, "score": {"long_view": {"auc": 0.5}}},
        "rows": 12,
        "seeds": [0, 1],
    }
    print_report(console, report, rows="models", title="held-out rows")
    text = _text(console)
    assert "held-out rows" in text
    assert "like.auc" in text
    assert "0.8765" in text
    assert "rows: 12\n" in text
    assert "seeds: 0, 1\n" in text


def test_a_report_without_rows_has_no_table() -> None:
    console = _console()
    print_report(console, {"name": "[bold]x"}, rows="models", title="held-out rows")
    assert _text(console) == "name: [bold]x\n"


def test_progress_ends_complete() -> None:
    console = _console()
    with progress(console, "loading") as report:
        report(0.25)
    assert "loading" in _text(console)
    assert "100 %" in _text(console)
