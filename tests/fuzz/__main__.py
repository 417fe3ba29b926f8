"""Coverage-guided fuzzing of the targets: `python -m tests.fuzz --target page --seconds 60`.

Each target runs in a process of its own, begins from its seeds, and goes on after a finding: one is kept for each place that
raised what it may not. Only Python is instrumented; msgspec, numpy and the model runtimes are compiled, so that within them
nothing guides the search but the errors that come out.
"""

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path
from random import Random
from typing import Any

import atheris

with atheris.instrument_imports(include=["device"]):
    from tests.fuzz.mutate import mutate
    from tests.fuzz.targets import TARGETS, Target

_INPUT_MAX = 1 << 16
_RUN_S_MAX = 10  # one input that takes longer is a finding
_MEMORY_MB_MAX = 4096


def fuzz(target: Target, seconds: float, seed: int, folder: Path) -> None:
    """Fuzz in this process, which ends with it; `result.json` in `folder` has what was found."""
    log = os.open(folder / "log", os.O_CREAT | os.O_WRONLY)
    os.dup2(log, 1)
    os.dup2(log, 2)
    tempfile.tempdir = str(folder)
    corpus = folder / "corpus"
    corpus.mkdir()
    for i, data in enumerate(target.seeds):
        (corpus / f"seed-{i}").write_bytes(data)
    found: dict[str, dict[str, str]] = {}
    executions, end = 0, 0.0

    def one(data: bytes) -> None:
        nonlocal executions, end
        end = end or time.monotonic() + seconds
        if executions and time.monotonic() > end:
            (folder / "result.json").write_text(json.dumps({"executions": executions, "found": found}))
            os._exit(0)
        executions += 1
        try:
            target.run(data)
        except target.allowed:
            pass
        except Exception as error:
            *_, last = (at for at in traceback.extract_tb(error.__traceback__) if "site-packages" not in at.filename)
            found.setdefault(
                f"{type(error).__name__} at {last.filename}:{last.lineno}",
                {"input": data.hex(), "traceback": traceback.format_exc()},
            )

    def vary(data: bytes, most: int, seed: int) -> bytes:
        return mutate(data, target.seeds, Random(seed))[:most] if seed % 2 else atheris.Mutate(data, most)

    options = {
        "max_len": _INPUT_MAX,
        "timeout": _RUN_S_MAX,
        "rss_limit_mb": _MEMORY_MB_MAX,
        "seed": seed,
        "artifact_prefix": f"{folder}/",
    }
    atheris.Setup([sys.argv[0], *(f"-{k}={v}" for k, v in options.items()), str(corpus)], one, custom_mutator=vary)
    atheris.Fuzz()


def run(target: Target, seconds: float, seed: int) -> dict[str, Any]:
    """What fuzzing `target` found: `executions`, and `found` by what and where."""
    with tempfile.TemporaryDirectory() as folder:
        child = os.fork()
        if child == 0:
            try:
                fuzz(target, seconds, seed, Path(folder))
            finally:
                os._exit(1)
        os.waitpid(child, 0)
        result = Path(folder) / "result.json"
        if result.exists():
            return dict(json.loads(result.read_text()))
        # It hung, ran out of memory or died: the fuzzer says so, and leaves the input.
        left = [path.read_bytes().hex() for kind in ("crash", "timeout", "oom") for path in Path(folder).glob(f"{kind}-*")]
        end = (Path(folder) / "log").read_text(errors="replace")[-4000:]
        return {"executions": 0, "found": {"the process died": {"input": ", ".join(left), "traceback": end}}}


def main() -> int:
    """1 when something was found."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Fuzz the device's decoders.")
    parser.add_argument("--target", action="append", choices=[target.name for target in TARGETS], help="default: all")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    status = 0
    for target in TARGETS:
        if arguments.target and target.name not in arguments.target:
            continue
        result = run(target, arguments.seconds, arguments.seed)
        print(f"{target.name}: {result['executions']} executions, {len(result['found'])} found", flush=True)
        for what, finding in result["found"].items():
            print(f"  {what}\n  input {finding['input']}\n{finding['traceback']}", flush=True)
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main())
