"""Runs the steps of a workflow with doit, each as a process of its own.

What is known of each step is kept in `<file>.state.json` beside the workflow file, on the disk before a step begins and after
it ends. So a run that is killed continues with the step that it was killed in, and that step with what its command finds of its
own work: a training continues after its last finished stage.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from pocketrank.cloud.files import write_atomically
from pocketrank.sdk_demo.workflow.errors import FlowBusyError, FlowError, StepError
from pocketrank.sdk_demo.workflow.flow import Flow, Step
from pocketrank.sdk_demo.workflow.inputs import StepInputs

__all__ = ["FlowRun", "StepReport", "plan", "run_flow"]

_MAIN = "from pocketrank.sdk_demo.cli import main; main()"

Status = Literal["up_to_date", "runs", "may_run", "running", "done", "failed", "not_run"]


class StepReport(msgspec.Struct, kw_only=True):
    """What is known of a step."""

    name: str
    line: list[str]
    """The command line, without `pocketrank`."""
    status: Status = "not_run"
    """Of a plan `up_to_date`, `runs`, or `may_run`, where a step before it runs. Of a run `up_to_date`, `done`, `failed` or
    `not_run`."""
    reason: str | None = None
    """Why it runs."""
    seconds: float | None = None
    """Time that its last finished run took."""
    finished: str | None = None
    """Date and time of its last finish, in UTC."""


class FlowRun(NamedTuple):
    """What became of a run."""

    steps: list[StepReport]
    error: FlowError | None
    """Why it ended early."""


Notify = Callable[[StepReport], None]


def plan(flow: Flow) -> list[StepReport]:
    """Return for each step whether it would run now, and why. Raises `FlowError`."""
    known, reports = _known(flow), dict[str, StepReport]()
    for step in flow.steps:
        values = known.get_values(step.name) or {}
        report = reports[step.name] = _report(step, values)
        waits = [name for name in flow.needs(step) if reports[name].status != "up_to_date"]
        try:
            report.reason = StepInputs(flow, step).reason(values)
        except StepError:
            if not waits:
                raise
            report.reason = "not finished yet"
        report.status = "up_to_date" if report.reason is None else "runs"
        if waits and report.reason is None:
            report.status, report.reason = "may_run", f"{waits[0]} runs before it"
    return list(reports.values())


def run_flow(flow: Flow, *, notify: Notify, output: int | None = None) -> FlowRun:
    """Run the steps that are not up to date. `notify` receives the report of a step when it begins and ends.

    The output of the steps goes to that of this process, or to the file descriptor `output`. The steps after one that failed
    do not run. Raises `FlowError` when no step can be run.
    """
    # Imported here, as in `_known`: only this command needs it.
    from doit.control import TaskControl
    from doit.runner import SUCCESS, Runner

    with _locked(flow) as lock:
        reporter = _Reporter(flow, notify)
        tasks = [reporter.task(step, output, lock) for step in flow.steps]
        control = TaskControl(tasks)
        control.process(None)
        error: FlowError | None
        try:
            result = Runner(reporter.known, reporter).run_all(control.task_dispatcher())
        except StepError as missing:
            error = missing
        else:
            problem = FlowError(f"Expected steps that can be run, got: {reporter.problem} - at {flow.file}")
            error = None if result == SUCCESS else reporter.error or problem
    return FlowRun(list(reporter.reports.values()), error)


class _Reporter:
    """Keeps the reports, and the state on the disk, while doit runs the steps; it has the methods of doit's reporters."""

    def __init__(self, flow: Flow, notify: Notify) -> None:
        self.known, self.problem = _known(flow), ""
        self.error: StepError | None = None
        self.reports = {step.name: _report(step, self.known.get_values(step.name) or {}) for step in flow.steps}
        self._flow, self._notify = flow, notify

    def task(self, step: Step, output: int | None, lock: int | None) -> Any:
        """Return the step as doit's task."""
        from doit.task import Task

        inputs, report = StepInputs(self._flow, step), self.reports[step.name]

        def is_up_to_date(task: Any, values: dict[str, Any]) -> bool:
            report.reason = inputs.reason(values)
            return report.reason is None

        def run() -> bool:
            started = time.monotonic()
            command = [sys.executable, "-c", _MAIN, *report.line]
            # The lock is held by the step as well: it outlives a run that is killed.
            handles = () if lock is None else (lock,)
            code = subprocess.run(command, cwd=self._flow.folder, stdout=output, pass_fds=handles, check=False).returncode
            report.seconds, report.finished = time.monotonic() - started, datetime.now(UTC).isoformat(timespec="seconds")
            if code:
                what = f"exit code {code}" if code > 0 else f"an end by signal {-code}"
                self.error = StepError(step.name, f"`pocketrank {' '.join(report.line)}` to succeed", what)
            return code == 0

        task = Task(step.name, [run], task_dep=list(self._flow.needs(step)), uptodate=[is_up_to_date])
        task.value_savers.append(lambda: {**inputs.values(), "seconds": report.seconds, "finished": report.finished})
        return task

    def get_status(self, task: Any) -> None:
        """A step is looked at."""

    def execute_task(self, task: Any) -> None:
        """A step begins: it counts as unfinished from now on."""
        self.known.remove_success(task)
        self.known.backend.dump()
        self._tell(task, "running")

    def add_success(self, task: Any) -> None:
        """A step finished."""
        self.known.backend.dump()
        self._tell(task, "done")

    def add_failure(self, task: Any, fail: Any) -> None:
        """A step failed."""
        self.problem = str(fail.get_msg())
        self._tell(task, "failed")

    def skip_uptodate(self, task: Any) -> None:
        """A step is up to date."""
        self._tell(task, "up_to_date")

    def runtime_error(self, msg: str) -> None:
        """The workflow itself is wrong."""
        self.problem = msg

    def complete_run(self) -> None:
        """All is over."""

    def _tell(self, task: Any, status: Status) -> None:
        report = self.reports[task.name]
        report.status = status
        self._notify(report)


def _report(step: Step, values: dict[str, Any]) -> StepReport:
    return StepReport(name=step.name, line=step.line(), seconds=values.get("seconds"), finished=values.get("finished"))


def _known(flow: Flow) -> Any:
    """Return doit's state of the workflow. Raises `FlowError`."""
    from doit.dependency import Dependency, JsonDB

    class State(JsonDB):  # type: ignore[misc]
        def dump(self) -> None:
            write_atomically(Path(self.name), self.codec.encode(self._db).encode())

    path = flow.file.with_name(f"{flow.file.name}.state.json")
    try:
        return Dependency(State, str(path))
    except Exception as error:  # doit's error has no class of its own
        raise FlowError(f"Expected the state of a workflow, got: {error} - at {path}. Remove it to run all steps.") from None


@contextmanager
def _locked(flow: Flow) -> Iterator[int | None]:
    """Let no other process run the workflow. The value is the lock as a file descriptor; None on a system without `flock`."""
    try:
        import fcntl
    except ImportError:
        yield None
        return
    path = flow.file.with_name(f"{flow.file.name}.state.lock")
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FlowBusyError(
                f"Expected no other run of this workflow, got one, or a step of a killed one, that is at work - at {path}"
            ) from None
        yield handle
    finally:
        os.close(handle)
