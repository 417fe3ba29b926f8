import subprocess
import sys
from pathlib import Path

import pytest

from pocketrank.sdk_demo.cli.app import _COMMANDS
from pocketrank.sdk_demo.cli.extras import _BY_COMMAND, install_hint
from tests.cloud.small_published import small_run
from tests.export.small_run import small_run as trained_run


def _without(library: str, *argv: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process where `library` cannot be imported."""
    code = f"import sys; sys.modules[{library!r}] = None; from pocketrank.sdk_demo.cli import main; main({list(argv)!r})"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)


def test_every_command_has_an_extra() -> None:
    assert list(_BY_COMMAND) == list(_COMMANDS)


@pytest.mark.parametrize(
    ("library", "argv", "extra"),
    [
        ("torch", ["train", "--data", "world", "--out", "run"], "cloud"),
        ("sklearn", ["evaluate", "run"], "cloud"),
        ("torch", ["export", "run", "--out", "bundle"], "export"),
        ("nacl", ["keygen", "key"], "export"),
        ("uvicorn", ["serve", "--run", "run"], "serve"),
        ("pyarrow", ["emulate", "--server", "http://127.0.0.1:9"], "demo"),
        ("pyarrow", ["demo", "--out", "demo"], "demo"),
        ("rich", ["serve", "--run", "run"], "serve"),
    ],
)
def test_a_missing_library_is_named_with_the_extra_that_brings_it(
    library: str, argv: list[str], extra: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = _without(library, *argv)
    assert done.stderr == f"error: pocketrank {argv[0]} needs {library}: pip install 'pocketrank[{extra}]'\n"
    assert done.returncode == 2
    assert not list(tmp_path.iterdir())


def test_a_library_that_a_server_needs_late_is_named_too(tmp_path: Path) -> None:
    run = small_run(tmp_path / "run").folder
    done = _without("fastapi", "serve", "--run", str(run), "--port", "0")
    assert done.stderr.endswith("error: pocketrank serve needs fastapi: pip install 'pocketrank[serve]'\n")
    assert done.returncode == 2


def test_a_missing_converter_is_named_with_the_extra_that_brings_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Converters run in processes of their own, which read `sitecustomize` when they start."""
    run = trained_run(tmp_path / "run").folder
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['litert_torch'] = None\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    done = _without("litert_torch", "export", str(run), "--out", str(tmp_path / "bundle"), "--formats", "tflite")
    message = "Expected litert_torch (pip install 'pocketrank[tflite]'), got no such module - at format tflite"
    assert done.stderr == f"error: {message}\n"
    assert done.returncode == 2
    assert not (tmp_path / "bundle").exists()


def test_without_a_command_the_hint_installs_all() -> None:
    hint = install_hint(None, ModuleNotFoundError(name="typer"))
    assert hint == "pocketrank needs typer: pip install 'pocketrank[demo]'"


@pytest.mark.parametrize("name", ["rules", "pocketrank.cloud.nowhere", None])
def test_a_module_that_no_extra_brings_keeps_its_traceback(name: str | None) -> None:
    assert install_hint("serve", ModuleNotFoundError(name=name)) is None
