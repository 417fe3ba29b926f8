"""Exports one format of a run in a process of its own: convert, open again from disk, compare with torch, gate.

The process is `python -m pocketrank.export.worker JOB`, with an `ExportJob` in JSON. Converters write notes to both output
streams, from Python and from C++. Here they go to a log file, whose end is shown when a conversion fails; standard output
carries one JSON message per line.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, get_args

import msgspec

from pocketrank.device.contract import Form, Format, Precision, Stage
from pocketrank.export import errors
from pocketrank.export.errors import ConversionError, ExportError, UnsupportedError

__all__ = ["Checked", "ExportJob", "model_path", "run_job"]

SUFFIX: dict[Format, str] = {"onnx": "onnx", "tflite": "tflite", "coreml": "mlpackage"}
EXTRA: dict[Format, str] = {"onnx": "export", "tflite": "tflite", "coreml": "coreml"}
"""Extra of the package that brings the converter of a format."""
LOG_TAIL = 2000
"""Characters of a converter's log that an error carries, from its end."""


class ExportJob(msgspec.Struct, frozen=True, kw_only=True):
    """A conversion of every form of the run in the folder `run` to `format`, into `folder`."""

    run: str
    folder: str
    format: Format
    precisions: tuple[Precision, ...]


class Checked(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A converted model and its comparison with torch. `gate` is the result of `gate.ranking_loss`, None for fp32."""

    form: Form
    format: Format
    precision: Precision
    runtime: str
    cases: dict[str, float]
    """Largest difference of the whole model by case."""
    stages: dict[Stage, dict[str, float]]
    """Largest difference of each stage by case."""
    searches: int
    others: int
    """As in `parity_stages.StageParity`."""
    gate: dict[str, Any] | None


class _Failed(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    kind: str
    where: str
    expected: str
    got: str


def model_path(form: Form, format: Format, precision: Precision, stage: Stage = "whole") -> str:
    """Return the path in a bundle of a model or of a stage of it. A LiteRT file holds all stages."""
    name = f"{precision}.{stage}" if format == "onnx" and stage != "whole" else precision
    return f"models/{form}.{name}.{SUFFIX[format]}"


def run_job(job: ExportJob, log: Path, started: Callable[[subprocess.Popen[bytes]], None]) -> Iterator[Checked]:
    """Run `job` in a new process and yield each model when it is done. `started` is called with the process, to kill it early.

    Raises the `ExportError` that the process raised, `ConversionError` when it ended otherwise.
    """
    environment = dict(os.environ, OMP_NUM_THREADS="1", TF_CPP_MIN_LOG_LEVEL="3")
    # The process imports the same package as its caller, however that found it.
    root = str(Path(__file__).parents[2])
    environment["PYTHONPATH"] = os.pathsep.join([root, *filter(None, [environment.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "pocketrank.export.worker", msgspec.json.encode(job).decode()]
    with (
        log.open("wb") as errors_to,
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors_to, stdin=subprocess.DEVNULL, env=environment
        ) as process,
    ):
        started(process)
        assert process.stdout is not None
        for line in process.stdout:
            message = msgspec.json.decode(line, type=Checked | _Failed)
            if isinstance(message, _Failed):
                process.wait()
                kind: type[ExportError] = getattr(errors, message.kind)
                raise kind(message.where, message.expected, message.got)
            yield message
    if process.returncode:
        tail = log.read_text(errors="replace")[-LOG_TAIL:]
        raise ConversionError(f"format {job.format}", "a finished conversion", f"exit code {process.returncode}\n{tail}")


def _checked(job: ExportJob) -> Iterator[Checked]:
    """Convert and check every form and precision."""
    import torch

    from pocketrank.cloud.training.run import Run
    from pocketrank.export.gate import GateRows, ranking_loss
    from pocketrank.export.graphs import Graph
    from pocketrank.export.parity import TOLERANCE, compare, open_scorer
    from pocketrank.export.parity_stages import StageParity, compare_stages, open_answers

    torch.set_num_threads(1)
    run, folder, format = Run.open(Path(job.run)), Path(job.folder), job.format
    rows = GateRows.read(run) if set(job.precisions) != {"fp32"} else None
    for form in get_args(Form):
        graph = Graph.of(run, form)
        stages: tuple[Stage, ...] = ("whole",) if format == "coreml" else graph.stages
        targets = {p: {s: folder / model_path(form, format, p, s) for s in stages} for p in job.precisions}
        import_module(f"pocketrank.export.{format}").convert(graph, targets)
        for precision, paths in targets.items():
            path, tolerance = paths.pop("whole"), TOLERANCE.get((format, precision))
            score, runtime = open_scorer(path, format)
            cases = compare(graph, score, where=path.name, tolerance=tolerance)
            parity = StageParity({}, 0, 0)
            if paths:
                parity = compare_stages(graph, open_answers(paths, format), where=path.name, tolerance=tolerance)
            yield Checked(
                form=form,
                format=format,
                precision=precision,
                runtime=runtime,
                cases=cases,
                stages=parity.cases,
                searches=parity.searches,
                others=parity.others,
                gate=None if precision == "fp32" or rows is None else ranking_loss(graph, rows, score),
            )


def _main() -> int:
    job = msgspec.json.decode(sys.argv[1], type=ExportJob)
    # Messages keep the real standard output; everything else that is printed there goes to standard error.
    with os.fdopen(os.dup(1), "wb") as messages:
        os.dup2(2, 1)

        def send(message: Checked | _Failed) -> None:
            messages.write(msgspec.json.encode(message) + b"\n")
            messages.flush()

        try:
            for checked in _checked(job):
                send(checked)
        except ExportError as error:
            send(_Failed(kind=type(error).__name__, where=error.where, expected=error.expected, got=error.got))
            return 1
        except ModuleNotFoundError as error:
            expected = f"{error.name} (pip install 'pocketrank[{EXTRA[job.format]}]')"
            send(_Failed(kind=UnsupportedError.__name__, where=f"format {job.format}", expected=expected, got="no such module"))
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())
