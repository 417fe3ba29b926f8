"""Small applications to serve, each in a process of its own: what `run_workers` starts by name."""

import os
import signal
import sys
from pathlib import Path

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pocketrank.cloud.serving.process.server import ServerConfig, listen, run_server
from pocketrank.cloud.serving.process.workers import WorkersConfig, WorkersError, run_workers


async def _pid(_: Request) -> Response:
    return PlainTextResponse(str(os.getpid()))


async def _when_there(request: Request) -> Response:
    """Says that it has begun, and answers once a file is there."""
    file = Path(request.query_params["file"])
    file.with_suffix(".begun").touch()
    while not file.exists():
        await anyio.sleep(0.01)
    return PlainTextResponse(str(os.getpid()))


def serve_pid(sock, ready, folder, config=ServerConfig()):  # type: ignore[no-untyped-def]  # noqa: B008
    """Answers with its process id. While the file `broken` is in `folder`, it does not start."""
    if (Path(folder) / "broken").exists():
        sys.exit(3)

    def draining() -> None:
        (Path(folder) / f"draining-{os.getpid()}").touch()

    app = Starlette(routes=[Route("/", _pid), Route("/when", _when_there)])
    run_server(app, sock, config, ready=ready, draining=draining)


def die(sock, ready):  # type: ignore[no-untyped-def]
    """Is ready, and dies at once."""
    ready()
    sys.exit(4)


def stuck(sock, ready, folder):  # type: ignore[no-untyped-def]
    """Is ready, and does not end when it is told to."""
    signal.signal(signal.SIGTERM, lambda *_: (Path(folder) / f"told-{os.getpid()}").touch())
    (Path(folder) / f"stuck-{os.getpid()}").touch()
    ready()
    while True:
        signal.pause()


def place(sock, ready, folder):  # type: ignore[no-untyped-def]
    """Tells what `run_workers` put in its environment."""
    (Path(folder) / os.environ["PLACE"]).touch()
    serve_pid(sock, ready, folder)


def main(target: str, workers: str, folder: str, *more: str) -> None:
    """The supervisor of a test: quick, and on a free port."""
    settings = dict(one.split("=") for one in more)
    config = WorkersConfig(backoff_s=0.02, deaths_max=3, stop_s=float(settings.get("stop_s", "20")))
    args = () if target == "die" else (folder,)
    if "drain_s" in settings:
        args = (*args, ServerConfig(drain_s=float(settings["drain_s"])))  # type: ignore[assignment]
    gone = Path(folder) / "gone"
    gone.mkdir(exist_ok=True)
    try:
        run_workers(
            f"tests.cloud.serving.small_apps:{target}",
            args,
            listen("127.0.0.1", 0),
            int(workers),
            config,
            environment=lambda place: {"PLACE": f"place-{place}"},
            died=lambda place: (gone / str(place)).touch(),
        )
    except WorkersError as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(*sys.argv[1:])
