"""`python -m tests.mutants`: whether the tests notice one-line mistakes in the code of pages and swipes.

mutmut makes the mistakes (a comparison flipped, a number changed, an argument dropped) in a copy of the tree, and runs the
tests that reach each of them. A seeded sample of each area is tried, because all of them take hours. The copies stay in
`runs/mutants`: `cd runs/mutants/AREA && mutmut show NAME` prints a survivor.

Report (`--json`): `areas.AREA.{mutants, tried, killed, share}`, and `areas.AREA.survivors`, the names of those that no test
noticed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
AREAS: dict[str, tuple[str, ...]] = {
    "device/session": ("tests/device/session",),
    "device/model": ("tests/device/model", "tests/device/session"),
    "device/strategies": ("tests/device/strategies",),
    "cloud/pages": ("tests/cloud/pages", "tests/cloud/serving/test_app.py"),
    "cloud/pipeline": ("tests/cloud/pipeline", "tests/cloud/retrieval", "tests/cloud/ranking"),
}
"""Each area with the tests that must notice its mistakes."""

_SURVIVED = frozenset({0, 33})
"""mutmut's codes of a mutant whose tests passed, and of one that no test reaches."""

_CONFIG = """
[tool.mutmut]
source_paths = ["src"]
only_mutate = [{area}]
also_copy = ["benchmarks", "README.md"]
pytest_add_cli_args = ["-p", "no:cacheprovider", "-p", "no:xdist"]
pytest_add_cli_args_test_selection = {tests}
use_git_change_detection = false
# What a log or an error says in full is for people; that it is raised, and where, is tested.
do_not_mutate_patterns = ["logger\\\\.", "raise [A-Z]\\\\w+\\\\("]
"""


def copy(area: str, folder: Path) -> None:
    """Copy the tree into `folder`, links as real folders, with mutmut told to change `area`."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("tests", "benchmarks"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "README.md", folder)
    tests = list(AREAS[area])
    config = _CONFIG.format(area=json.dumps(f"src/pocketrank/{area}/*.py"), tests=json.dumps(tests))
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text() + config)


def run(folder: Path, *names: str) -> str:
    """Have mutmut try the mutants called `names`; returns what it printed."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, "-m", "mutmut", "run", *names]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def verdicts(folder: Path) -> dict[str, int | None]:
    """What is known of each mutant: the exit code of its tests, None when it was not tried."""
    files = (folder / "mutants" / "src").rglob("*.meta")
    return {name: code for file in files for name, code in json.loads(file.read_text())["exit_code_by_key"].items()}


def measure(area: str, folder: Path, sample: int, seed: int, only: str) -> dict[str, Any]:
    """Try `sample` mutants of `area` (0: all) whose names fit the pattern `only`."""
    copy(area, folder)
    said = run(folder, "no mutant has this name")  # makes them, and learns which tests reach which
    known = sorted(name for name in verdicts(folder) if fnmatch(name, only))
    if not known:
        raise SystemExit(f"error: Expected mutants of {area} that fit `{only}`, got none. mutmut printed:\n{said[-2000:]}")
    chosen = Random(seed).sample(known, min(sample or len(known), len(known)))
    said = run(folder, *chosen)
    found = verdicts(folder)
    tried = [name for name in chosen if found[name] is not None]
    if len(tried) < len(chosen):
        raise SystemExit(
            f"error: Expected {len(chosen)} mutants of {area} tried, got {len(tried)}. mutmut printed:\n{said[-2000:]}"
        )
    survivors = sorted(name for name in tried if found[name] in _SURVIVED)
    killed = len(tried) - len(survivors)
    return {"mutants": len(known), "tried": len(tried), "killed": killed, "share": killed / len(tried), "survivors": survivors}


def main() -> None:
    """Measure the areas and print what survived. The exit code is 1 when less than `--min` of an area was killed."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description="Try whether the tests notice mistakes.")
    parser.add_argument("--areas", default=",".join(AREAS), help="comma-separated (default: %(default)s)")
    parser.add_argument("--sample", type=int, default=60, help="mutants tried in each area, 0 for all (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the sample (default: %(default)s)")
    parser.add_argument("--only", default="*", help="pattern of mutants' names, such as '*refill*' (default: all)")
    parser.add_argument("--min", type=float, default=0.85, help="share that must be noticed (default: %(default)s)")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "mutants", help="where the copies go")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    options = parser.parse_args()
    areas = options.areas.split(",")
    if unknown := set(areas) - set(AREAS):
        parser.error(f"expected areas among {', '.join(AREAS)}, got {', '.join(sorted(unknown))}")
    report: dict[str, Any] = {"seed": options.seed, "areas": {}}
    for area in areas:
        found = measure(area, options.work / area.replace("/", "-"), options.sample, options.seed, options.only)
        report["areas"][area] = found
        print(
            f"{area:18} {found['killed']:4} of {found['tried']:4} noticed, {found['share']:.0%} ({found['mutants']} in all)",
            flush=True,
        )
        for name in found["survivors"]:
            print(f"    {name}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    sys.exit(any(found["share"] < options.min for found in report["areas"].values()))


if __name__ == "__main__":
    main()
