"""Each decoder, briefly: bytes that are almost right bring out only the errors that it may raise."""

import importlib.util
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fuzz.mutate import mutate
from tests.fuzz.targets import TARGETS, Target

SECONDS = 0.3
by_name = pytest.mark.parametrize("target", TARGETS, ids=[target.name for target in TARGETS])


@by_name
def test_seeds(target: Target) -> None:
    assert target.seeds
    for data in target.seeds:
        with suppress(*target.allowed):
            target.run(data)


@by_name
@settings(max_examples=60)
@given(st.data())
def test_mutated_seeds(target: Target, data: st.DataObject) -> None:
    seed = data.draw(st.sampled_from(target.seeds))
    with suppress(*target.allowed):
        target.run(mutate(seed, target.seeds, Random(data.draw(st.integers(0, 2**32)))))


@by_name
@settings(max_examples=15)
@given(st.binary(max_size=200))
def test_any_bytes(target: Target, data: bytes) -> None:
    with suppress(*target.allowed):
        target.run(data)


def test_targets_have_names_of_their_own() -> None:
    assert len({target.name for target in TARGETS}) == len(TARGETS)


def test_mutations_are_many_and_replay() -> None:
    seeds = TARGETS[0].seeds
    changed = [mutate(seeds[0], seeds, Random(n)) for n in range(200)]
    assert changed == [mutate(seeds[0], seeds, Random(n)) for n in range(200)]
    assert len(set(changed)) > 100


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed here")
def test_guided_by_coverage() -> None:
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(SECONDS)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    executions = dict(re.findall(r"^(\w+): (\d+) executions, 0 found$", done.stdout, re.MULTILINE))
    assert done.returncode == 0, done.stdout + done.stderr
    assert executions.keys() == {target.name for target in TARGETS}
    assert all(int(count) > 0 for count in executions.values())
