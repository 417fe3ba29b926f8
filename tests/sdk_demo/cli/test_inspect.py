import json
from pathlib import Path

import pytest

from pocketrank.device.bundle.bundle import Bundle
from pocketrank.sdk_demo.cli import main
from tests.device import worlds
from tests.export.explained import explained_bundle
from tests.sdk_demo.inspection.traces import trace_session


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return explained_bundle(tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="module")
def trace(bundle: Bundle) -> Path:
    trace_session(bundle.folder.parent / "session.trace", bundle)
    return bundle.folder.parent / "session.trace"


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")


def _inspect(*argv: object) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["inspect", *map(str, argv)])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_bundle(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert _inspect(bundle.folder) == 0
    text = capsys.readouterr().out
    for part in (
        "small/1: split version 5555", "created 1970-01-01 00:00:00 UTC, expires never", "all match the manifest",
        "split.fp32.onnx", "effective_view 1, like 2", "up to 12 candidates, compiled for 5, 12; the last 10 events",
        "duration_ms", "vector, 8 wide", "the best next item",
    ):  # fmt: skip
        assert part in text
    assert "damaged" not in text


def test_a_damaged_bundle_ends_in_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    worlds.make_bundle(tmp_path / "b")
    (tmp_path / "b" / "models" / "split.onnx").unlink()
    assert _inspect(tmp_path / "b", "--json", tmp_path / "report.json") == 2
    text = capsys.readouterr().out
    assert "1 do not match the manifest" in text
    assert "damaged: " in text
    assert "self_contained.fp32.onnx" in text
    assert len(json.loads((tmp_path / "report.json").read_text())["problems"]) == 1
    (tmp_path / "b" / "manifest.json").write_text("{")
    assert _inspect(tmp_path / "b") == 2


def test_a_session(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _inspect(trace) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if "continue" in line or "empty" in line]
    assert [row[0] for row in rows] == ["0", "1", "2", "3"]
    assert all("split" in row and "103" in row for row in rows)


def test_one_decision_and_why(trace: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert _inspect(trace, "--position", 3, "--bundle", bundle.folder, "--top", 2, "--json", "-") == 0
    captured = capsys.readouterr()
    why = json.loads(captured.out)["why"]
    assert len(why["events"]) == 3
    assert len(why["candidates"]) == 3
    for part in (
        "position 3 showed item", "by influence on the item shown, 2 of 3", "candidates in their order, 2 of 3", "like",
        "attention to no event: ", "strategy: gap: 103 waits", "run again: split.onnx", "watched 4.",
    ):  # fmt: skip
        assert part in captured.err
    strongest = max(why["events"], key=lambda event: abs(event["influence"]["total"]))
    assert f"{strongest['influence']['total']:+.4f}" in captured.err


def test_a_first_decision_has_no_events(trace: Path, bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert _inspect(trace, "--position", 0, "--bundle", bundle.folder) == 0
    assert "nothing that the user did influenced this decision" in capsys.readouterr().out


def test_without_a_bundle_the_output_names_the_option(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _inspect(trace, "--position", 2) == 0
    text = capsys.readouterr().out
    assert "newest first" in text
    assert "name the session's bundle with --bundle" in text


def test_a_graph_without_attention_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = worlds.make_bundle(tmp_path / "b")
    trace_session(tmp_path / "t", bundle)
    assert _inspect(tmp_path / "t", "--position", 2, "--bundle", bundle.folder) == 0
    assert "is not an ONNX graph with attention over events" in capsys.readouterr().out


def test_a_damaged_trace_is_shown_up_to_the_damage(trace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = trace.read_bytes()
    (tmp_path / "cut").write_bytes(data[:-1])
    assert _inspect(tmp_path / "cut") == 0
    assert "because its process was killed" in capsys.readouterr().out
    (tmp_path / "changed").write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert _inspect(tmp_path / "changed") == 2
    text = capsys.readouterr().out
    assert "Expected a frame as it was written" in text
    assert sum("continue" in line for line in text.splitlines()) == 2


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["."], "PATH: expected a bundle's folder, with its manifest.json, or a session's trace"),
        (["nowhere"], "PATH: expected a bundle's folder"),
        (["notes.txt"], "PATH: expected a bundle's folder"),
        (["b", "--position", "1"], "--position: expected a session's trace as PATH"),
        (["b", "--bundle", "b"], "--bundle: expected a session's trace as PATH"),
        (["t", "--position", "9"], "--position: expected one of the trace's, 0..3"),
        (
            ["t", "--position", "1", "--bundle", "nowhere"],
            "Expected a readable file, got No such file or directory - at nowhere/manifest.json",
        ),
    ],
)
def test_wrong_input_ends_in_one_line(
    argv: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    trace_session(tmp_path / "t", worlds.make_bundle(tmp_path / "b"))
    (tmp_path / "notes.txt").write_text("no trace")
    assert _inspect(*argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
