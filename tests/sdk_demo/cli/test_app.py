import runpy
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command

from pocketrank.sdk_demo.cli import main
from pocketrank.sdk_demo.cli.app import app

COMMANDS = (
    "data",
    "train",
    "tune",
    "evaluate",
    "runs",
    "keygen",
    "export",
    "release",
    "inspect",
    "token",
    "serve",
    "learn",
    "forget",
    "log",
    "upload",
    "rollback",
    "workflow",
    "emulate",
    "demo",
)


def _run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_commands_stand_in_the_order_of_the_work() -> None:
    assert tuple(get_command(app).commands) == COMMANDS  # type: ignore[attr-defined]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(command, "--help") == 0
    text = capsys.readouterr().out
    assert f"\n  pocketrank {command}" in text, "the help has no example on a line of its own"
    assert "Writes" in text or command == "serve"


def test_version_is_that_of_the_distribution(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--version") == 0
    assert capsys.readouterr().out == f"pocketrank {version('pocketrank')}\n"


def test_the_package_is_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun starts it."""
    monkeypatch.setattr(sys, "argv", ["pocketrank", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("pocketrank", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pocketrank {version('pocketrank')}\n"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["train", "--data", "movielens", "--out", "run"], "--data: expected `world`, a data file `FILE.toml`, or the folder"),
        (["train", "--data", "world", "--test-from", "May", "--out", "run"], "--test-from: expected a day as YYYY-MM-DD"),
        (["train", "--data", "d.toml", "--world", "w", "--out", "run"], "--world: expected `--data world` as well"),
        (
            ["train", "--data", "world", "--tables", "t", "--out", "run"],
            "--tables: expected a data file as `--data`, got `--data world`",
        ),
        (["data", "check", "d.toml"], "d.toml: expected a data file, got: No such file"),
        (["data", "init", "tables"], "tables: expected a folder with tables, got none"),
        (["data", "import", "d.toml", "--out", "log"], "d.toml: expected a data file, got: No such file"),
        (["export", "run", "--out", "b", "--formats", "onnx,torchscript"], "--formats: expected a comma list of onnx, tflite"),
        (["export", "run", "--out", "b", "--precision", "fp8"], "--precision: expected a comma list of fp32, fp16, int8"),
        (["emulate", "--server", "http://127.0.0.1:9", "--policy", "best"], "--policy: expected a comma list of cloud_order"),
        (["evaluate", "run", "--json", "."], "--json: expected a file that can be written"),
    ],
)
def test_wrong_input_ends_in_one_line(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(*argv) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}")
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert not list(tmp_path.iterdir())


def test_what_is_no_model_of_when_to_ask_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "paging.json").write_text('{"bias": 0.0, "terms": [], "plans": []}')
    assert _run("export", "run", "--out", str(tmp_path / "b"), "--paging", str(tmp_path / "paging.json")) == 2
    assert "at least one plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv", [["train"], ["train", "--data", "world", "--out", "r", "--seed", "-1"], ["fly"], ["demo", "x"]]
)
def test_wrong_usage_says_how(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(*argv) == 2
    assert "Usage: pocketrank" in capsys.readouterr().err


def test_a_folder_that_is_no_log_is_a_typed_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("train", "--data", str(tmp_path / "nowhere.toml"), "--out", str(tmp_path / "run")) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nowhere" in error
    assert not (tmp_path / "run").exists()


def test_a_world_that_makes_no_sense_is_a_typed_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "world.toml").write_text("gravity = 9.81\n")
    assert _run("train", "--data", "world", "--world", str(tmp_path / "world.toml"), "--out", str(tmp_path / "run")) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert not (tmp_path / "run").exists()


def test_a_run_that_is_not_there_is_a_typed_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("serve", "--run", str(tmp_path / "nowhere"), "--port", "0") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "nowhere" in error


def test_help_imports_no_library() -> None:
    code = (
        "import sys\nfrom pocketrank.sdk_demo.cli import main\n"
        "try:\n    main(['train', '--help'])\nexcept SystemExit:\n    pass\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'pyarrow', 'polars', 'onnxruntime', 'fastapi')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
