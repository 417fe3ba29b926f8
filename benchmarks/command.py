"""What a benchmark's command line does with an error: one line for ours, a traceback for everything else."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from benchmarks.errors import BenchmarkError
from pocketrank.sdk_demo.cli.errors import is_domain_error

__all__ = ["tells_wrong_input"]

P = ParamSpec("P")

_WRONG_INPUT = 2


def tells_wrong_input(main: Callable[P, int]) -> Callable[P, int]:
    """`main`, with the exit code 2 and a line `error: …` on stderr for an error of ours."""

    @wraps(main)
    def told(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs)
        except Exception as error:
            if not (isinstance(error, BenchmarkError) or is_domain_error(error)):
                raise
            print(f"error: {error}", file=sys.stderr)
            return _WRONG_INPUT

    return told
