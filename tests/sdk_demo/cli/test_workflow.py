"""`pocketrank workflow` with real steps. Those that run steps need the extra `workflow`."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread

import pytest

from pocketrank.sdk_demo.cli import main
from pocketrank.sdk_demo.workflow import Flow, FlowFileError
from tests.device.worlds import make_bundle

KEY = """
[[step]]
name = "key"
command = "keygen"
arguments = ["keys/release"]
writes = ["keys/release", "keys/release.pub"]
"""
RELEASE = """
[[step]]
name = "release"
command = "release"
arguments = ["bundle"]
options = { key = ["keys/release"], yes = true, expires_days = 2.5 }
writes = ["bundle/release.json"]
"""
COMMAND = [sys.executable, "-c", "from pocketrank.sdk_demo.cli import main; main()", "workflow"]


@pytest.fixture
def flow(tmp_path: Path) -> Callable[..., Path]:
    def write(*steps: str) -> Path:
        file = tmp_path / "flow.toml"
        file.write_text("".join(steps))
        return file

    return write


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["workflow", *argv])
    assert isinstance(ended.value.code, int)
    return ended.value.code


def statuses(file: Path, *argv: str) -> dict[str, tuple[str, str | None]]:
    """Status and reason of each step, as `argv` reports them."""
    report = file.with_name("steps.json")
    run(*argv, str(file), "--json", str(report))
    return {step["name"]: (step["status"], step["reason"]) for step in json.loads(report.read_text())["steps"]}


def test_a_step_is_its_command_line(flow: Callable[..., Path]) -> None:
    text = """
[[step]]
name = "train"
command = "train"
options = { data = "world", test_from = 2022-05-04, seeds = 2, out = "runs/first" }
[[step]]
name = "release"
command = "release"
arguments = ["bundle"]
options = { key = ["a", "b"], yes = true, kill = false, rollout = 12.5 }
"""
    train, release = Flow.open(flow(text)).steps
    assert train.line() == [
        "train", "--data", "world", "--test-from", "2022-05-04", "--seeds", "2", "--out", "runs/first"
    ]  # fmt: skip
    assert release.line() == ["release", "bundle", "--key", "a", "--key", "b", "--yes", "--rollout", "12.5"]


def test_a_step_follows_those_whose_outputs_it_reads(flow: Callable[..., Path], tmp_path: Path) -> None:
    text = """
[[step]]
name = "train"
command = "train"
options = { data = "my.toml", out = "runs/first" }
reads = ["tables"]
[[step]]
name = "evaluate"
command = "evaluate"
arguments = ["runs/first/"]
options = { json = "report.json", page = "report.html" }
[[step]]
name = "last"
command = "inspect"
arguments = ["runs/first/bundle"]
after = ["evaluate"]
"""
    (tmp_path / "my.toml").touch()
    (tmp_path / "report.json").touch()
    read = Flow.open(flow(text))
    assert [read.inputs(step) for step in read.steps] == [("tables", "my.toml"), ("runs/first",), ("runs/first/bundle",)]
    assert [step.outputs() for step in read.steps] == [("runs/first",), ("report.json", "report.html"), ()]
    assert [read.needs(step) for step in read.steps] == [(), ("train",), ("evaluate", "train")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Object missing required field `step` - at `$` in"),
        ("step = []", "Expected at least one step, got none - at `$.step` in"),
        ("[[step]", "Expected TOML, got: "),
        ('[[step]]\nname = "a"', "Object missing required field `command` - at `$.step[0]` in"),
        ('[[step]]\nname = "a"\ncommand = "keygen"\nwrite = ["x"]', "unknown field `write` - at `$.step[0]` in"),
        ('[[step]]\nname = "a b"\ncommand = "keygen"', "digits, `_`, `-` and `.`, got `a b` - at `$.step[0].name`"),
        (KEY + KEY, "Expected names that differ, got `key` twice - at `$.step[1].name`"),
        ('[[step]]\nname = "a"\ncommand = " "', "Expected a command such as `train`, got none - at `$.step[0].command`"),
        (KEY + 'after = ["later"]', "Expected an earlier step (there is none), got `later` - at `$.step[0].after`"),
        (KEY + "options = { a = { b = 1 } }", "a date, true, false or a list of them, got {'b': 1} - at `$.step[0].options`"),
    ],
)  # fmt: skip
def test_what_is_no_workflow_is_refused_with_its_place(flow: Callable[..., Path], text: str, message: str) -> None:
    with pytest.raises(FlowFileError) as refused:
        Flow.open(flow(text))
    assert message in str(refused.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FlowFileError, match="Expected a workflow file, got: No such file"):
        Flow.open(tmp_path / "flow.toml")


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ('command = "keygen"\noptions = { sed = 1 }', "$.step[1]"),
        ('command = "keygen"', "Expected arguments and options of `keygen`, got: Missing argument"),
        ('command = "fly"', "got `fly` - at `$.step[1].command`"),
        ('command = "workflow"', "got `` - at `$.step[1].command`"),
        ('command = "keygen"\noptions = { help = true }', "Expected a command that does something"),
    ],
)
def test_every_command_line_is_checked_before_the_first_step_runs(
    flow: Callable[..., Path], step: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = flow(KEY, f'[[step]]\nname = "wrong"\n{step}\n')
    assert run("run", str(file)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["flow.toml"]


def test_a_chain_runs_once_and_again_only_where_something_changed(
    flow: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("doit", reason="the extra `workflow` is not installed")
    bundle = tmp_path / "bundle"
    make_bundle(bundle)
    file = flow(KEY, RELEASE)

    # Nothing is done yet, and a plan does nothing.
    todo = dict.fromkeys(("key", "release"), ("runs", "not finished yet"))
    assert statuses(file, "status") == todo
    assert statuses(file, "run", "--dry-run") == todo
    assert not (tmp_path / "keys").exists()

    # All of it, whose output passes through.
    assert {name: status for name, (status, _) in statuses(file, "run").items()} == {"key": "done", "release": "done"}
    printed = capfd.readouterr().out
    assert "[release] pocketrank release bundle --key keys/release --yes --expires-days 2.5 (not finished yet)" in printed
    assert "bundle 1 for 100 % of devices" in printed

    # Again: a second keygen would fail, as the key is there.
    assert statuses(file, "run") == dict.fromkeys(todo, ("up_to_date", None))

    # Another time is no change, other bytes are.
    manifest = bundle / "manifest.json"
    text, status = manifest.read_text(), manifest.stat()
    os.utime(manifest, ns=(1, 1))
    assert statuses(file, "status")["release"] == ("up_to_date", None)
    manifest.write_text(text[:-1] + " ")
    assert statuses(file, "status")["release"] == ("runs", "bundle/manifest.json changed")
    manifest.write_text(text)
    os.utime(manifest, ns=(status.st_mtime_ns, status.st_mtime_ns))

    # Files that came or went, and an output that is missing.
    (bundle / "more.txt").touch()
    assert statuses(file, "status")["release"] == ("runs", "bundle/more.txt is new")
    (bundle / "more.txt").unlink()
    (bundle / "spec.json").rename(bundle / "spec.old")
    assert statuses(file, "status")["release"] == ("runs", "bundle/spec.json is gone")
    (bundle / "spec.old").rename(bundle / "spec.json")
    (bundle / "release.json").rename(bundle / "kept.json")
    assert statuses(file, "status")["release"] == ("runs", "bundle/release.json is missing")
    (bundle / "kept.json").rename(bundle / "release.json")
    (tmp_path / "keys" / "release.pub").rename(tmp_path / "other.pub")
    assert statuses(file, "status") == {
        "key": ("runs", "keys/release.pub is missing"),
        "release": ("may_run", "key runs before it"),
    }
    (tmp_path / "other.pub").rename(tmp_path / "keys" / "release.pub")

    # An option that changed runs this step alone.
    flow(KEY, RELEASE.replace("2.5", "3"))
    assert statuses(file, "run", "--dry-run")["release"] == ("runs", "other arguments or options")
    assert statuses(file, "run") == {"key": ("up_to_date", None), "release": ("done", "other arguments or options")}
    assert statuses(file, "status") == dict.fromkeys(todo, ("up_to_date", None))
    flow(KEY, RELEASE.replace("2.5", "3"), "always = true\n")
    assert statuses(file, "status")["release"] == ("runs", "always")


def test_a_step_that_fails_is_named_and_ends_the_run(
    flow: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("doit", reason="the extra `workflow` is not installed")
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "release").touch()
    file = flow(KEY, '[[step]]\nname = "next"\ncommand = "keygen"\narguments = ["other"]\n')
    report = tmp_path / "steps.json"
    assert run("run", str(file), "--json", str(report)) == 2
    own, ours = capfd.readouterr().err.splitlines()
    assert own.startswith("error: ")
    assert ours == "error: Expected `pocketrank keygen keys/release` to succeed, got exit code 2 - at step `key`"
    assert [step["status"] for step in json.loads(report.read_text())["steps"]] == ["failed", "not_run"]
    assert not (tmp_path / "other").exists()
    assert statuses(file, "status")["key"] == ("runs", "not finished yet")


def test_an_input_that_is_not_there_is_named(flow: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("doit", reason="the extra `workflow` is not installed")
    file = flow(KEY.replace("writes", "reads"))
    for argv in (["status"], ["run"]):
        assert run(*argv, str(file)) == 2
        assert capfd.readouterr().err == "error: Expected the file or folder keys/release, got none - at step `key`\n"


def test_a_damaged_state_is_named(flow: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("doit", reason="the extra `workflow` is not installed")
    file = flow(KEY)
    file.with_name("flow.toml.state.json").write_text("{")
    assert run("status", str(file)) == 2
    error = capsys.readouterr().err
    assert "flow.toml.state.json. Remove it to run all steps." in error
    assert error.count("\n") == 1


class Server(ThreadingHTTPServer):
    """Keeps the first request waiting until `release`, and answers the others; it has no bundle to roll back to."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.arrived, self.released, self.requests = Event(), Event(), 0


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        self.server.requests += 1
        if self.server.requests == 1:
            self.server.arrived.set()
            self.server.released.wait(60)
        with suppress(OSError):  # the step is no more
            self.send_response(204)
            self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.released.set()
        server.shutdown()
        thread.join()


@pytest.mark.skipif(os.name != "posix", reason="signals and flock are of POSIX")
@pytest.mark.parametrize("whole_group", [True, False])
def test_a_run_that_is_killed_continues_with_the_step_it_was_killed_in(
    flow: Callable[..., Path], tmp_path: Path, whole_group: bool, server: Server, capfd: pytest.CaptureFixture[str]
) -> None:
    """Killed with -9 in its second step; together with the step, or without it, which then goes on alone."""
    pytest.importorskip("doit", reason="the extra `workflow` is not installed")
    import fcntl

    (tmp_path / "token").write_text("prk_1_secret")
    (tmp_path / "token").chmod(0o600)
    url = f"http://127.0.0.1:{server.server_port}"
    options = f'options = {{ server = "{url}", token_file = "token" }}'
    file = flow(KEY, f'[[step]]\nname = "back"\ncommand = "rollback"\n{options}\n')
    child = subprocess.Popen([*COMMAND, "run", str(file)], start_new_session=True)
    assert server.arrived.wait(60)
    (os.killpg if whole_group else os.kill)(child.pid, signal.SIGKILL)
    assert child.wait(60) == -signal.SIGKILL
    if not whole_group:
        assert run("run", str(file)) == 2
        assert "a step of a killed one, that is at work" in capfd.readouterr().err
        server.released.set()
    with file.with_name("flow.toml.state.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # until the step is over
    assert statuses(file, "status") == {"key": ("up_to_date", None), "back": ("runs", "not finished yet")}
    assert {name: status for name, (status, _) in statuses(file, "run").items()} == {"key": "up_to_date", "back": "done"}
    assert "no bundle is served" in capfd.readouterr().out
    assert server.requests == 2


def test_the_report_alone_is_on_stdout(flow: Callable[..., Path], capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("doit", reason="the extra `workflow` is not installed")
    assert run("run", str(flow(KEY)), "--json", "-") == 0
    printed = capfd.readouterr()
    (step,) = json.loads(printed.out)["steps"]
    assert (step["name"], step["line"], step["status"]) == ("key", ["keygen", "keys/release"], "done")
    assert step["seconds"] > 0
    assert "public key:" in printed.err


def test_without_the_extra_one_line_says_what_to_install(flow: Callable[..., Path]) -> None:
    code = "import sys; sys.modules['doit'] = None; " + COMMAND[2]
    done = subprocess.run([sys.executable, "-c", code, "workflow", "run", str(flow(KEY))], capture_output=True, text=True)
    assert done.stderr == "error: pocketrank workflow needs doit: pip install 'pocketrank[workflow]'\n"
    assert done.returncode == 2
