"""The console command `pocketrank`: one file for each of its commands, and what they share.

A command parses its options, calls the library and prints the result; it computes nothing itself. Importing this package is
cheap: typer is imported when `main` runs, the libraries of a command when that command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from pocketrank.sdk_demo.cli.extras import install_hint

__all__ = ["main"]

_WRONG_INPUT = 2


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: that of the process) and exit.

    The exit code is 0 when the command is done, and 2 for wrong input, a library that is not installed, or any other error that
    Pocketrank defines: one line `error: …` on stderr. Any other exception keeps its traceback.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    try:
        from pocketrank.sdk_demo.cli.app import run

        run(arguments)
    except ModuleNotFoundError as error:
        hint = install_hint(next(iter(arguments), None), error)
        if hint is None:
            raise
        print(f"error: {hint}", file=sys.stderr)
        raise SystemExit(_WRONG_INPUT) from None
