"""`pocketrank serve`: pages, feedback and the bundle over HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = ["serve"]


def serve(
    run: Annotated[Path, typer.Option(help="Folder that `pocketrank train` wrote.")],
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder that `pocketrank export` wrote; devices download it. [default: none to download]"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 opens it to other machines.")] = "127.0.0.1",
) -> None:
    """Serve pages from a run until interrupted.

    Retrieves from the index of the trained item tower, ranks with the trained ranker, and answers columnar pages with the
    vectors of the split version that the device asks for.

    \b
    pocketrank serve --run runs/world --bundle runs/bundle --port 8080
    curl http://127.0.0.1:8080/healthz

    With a signed bundle, devices that check signatures follow the release that `pocketrank release` puts beside it. It is read
    anew for each of them: a roll-out, a revocation or a kill needs no restart. A new bundle does.

    Answers POST /v1/page, POST /v1/feedback, GET /v1/bundle/..., GET /healthz and GET /metrics (Prometheus).
    """
    from cloud.serving.app import ServingConfig
    from cloud.serving.app import serve as serve_run
    from cloud.serving.telemetry import DeviceTelemetryConfig
    from cloud.training.run import Run
    from device.session import telemetry_names

    config = ServingConfig(telemetry=DeviceTelemetryConfig(names_known=telemetry_names()))
    serve_run(Run.open(run), bundle, host=host, port=port, config=config)
