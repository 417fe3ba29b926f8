"""The servers that are measured, each by name: `python -m benchmarks.serving.subjects CORE PORT NAME RUN`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

__all__ = ["PATHS"]

PATHS = {
    "ours": "/v1/page",
    "http_ours": "/v1/page",
    "http_raw": "/v1/page",
    "fastapi_plain": "/page",
    "fastapi_msgpack": "/page",
    "mosec": "/inference",
    "litserve": "/predict",
}
"""Where each takes page requests."""


def _main() -> None:
    core, port, name, run = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
    os.sched_setaffinity(0, {core})  # before any library counts cores or starts threads
    match name:
        case "ours":
            _serve_ours(run, port)
        case "http_ours" | "http_raw":
            from benchmarks.serving.constant import serve_constant

            serve_constant(run, port, ours=name == "http_ours")
        case "fastapi_plain" | "fastapi_msgpack":
            from benchmarks.serving.peer_fastapi import serve_fastapi

            serve_fastapi(run, port, msgpack=name == "fastapi_msgpack")
        case "mosec":
            from benchmarks.serving.peer_mosec import serve_mosec

            serve_mosec(run, port)
        case "litserve":
            from benchmarks.serving.peer_litserve import serve_litserve

            serve_litserve(run, port)
        case _:
            raise SystemExit(f"expected one of {', '.join(PATHS)}, got {name}")


def _serve_ours(run: Path, port: int) -> None:
    """The product as `pocketrank serve --no-pages` starts it, since no peer keeps pages, without a bundle. Its feedback log is
    beside the run."""
    from pocketrank.cloud.serving.config import ServingConfig
    from pocketrank.cloud.serving.process.serve import serve
    from pocketrank.cloud.training.run import Run

    serve(
        Run.open(run), None, port=port, feedback_db=run / f"feedback-{os.getpid()}.db", config=ServingConfig(keeps_pages=False)
    )


if __name__ == "__main__":
    _main()
