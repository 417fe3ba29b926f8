"""The console command `pocketrank`: train, evaluate, export, inspect, serve, emulate, demo.

One file per command. A command parses its options, calls the library and prints what came back. Importing this package is
free: typer and the libraries are imported when a command runs.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line `argv` (default: the process's own) and exit.

    Exit codes: 0 done, 1 something is not installed, 2 wrong input (one line `error: …` on stderr). An error that is none of
    ours keeps its traceback.
    """
    try:
        from pocketrank.sdk_demo.cli.app import run
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich"):
            raise
        print(
            f"error: the command line needs `{error.name}`, which is not installed: pip install 'pocketrank[demo]'",
            file=sys.stderr,
        )
        raise SystemExit(1) from None
    run(argv)
