"""Small applications that `run_workers` starts by name, each in a process of its own."""

import os
import signal
import sys
from pathlib import Path
from threading import Event

import anyio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from pocketrank.cloud.serving.process.server import ServerConfig, listen, run_server
from pocketrank.cloud.serving.process.workers import WorkersConfig, WorkersError, run_workers


async def _pid(_: Request) -> Response:
    return PlainTextResponse(str(os.getpid()))


async def _hang(request: Request) -> Response:
    """Block the event loop for a minute, and leave a file that says so."""
    Path(request.query_params["file"]).write_text(str(os.getpid()))
    Event().wait(60)
    return PlainTextResponse(str(os.getpid()))


async def until_there(request: Request) -> None:
    """Report that the request has begun, and return once a file is there."""
    file = Path(request.query_params["file"])
    file.with_suffix(".begun").touch()
    while not file.exists():
        await anyio.sleep(0.01)


async def _when_there(request: Request) -> Response:
    await until_there(request)
    return PlainTextResponse(str(os.getpid()))


def serve_pid(sock, heartbeat, folder, config=ServerConfig()):  # type: ignore[no-untyped-def]  # noqa: B008
    """Answer with the process id. While the file `broken` is in `folder`, the worker does not start."""
    if (Path(folder) / "broken").exists():
        sys.exit(3)

    def draining() -> None:
        (Path(folder) / f"draining-{os.getpid()}").touch()

    app = Starlette(routes=[Route("/", _pid), Route("/when", _when_there), Route("/hang", _hang)])
    run_server(app, sock, config, heartbeat=heartbeat, draining=draining)


def die(sock, heartbeat):  # type: ignore[no-untyped-def]
    """Be ready, and die at once."""
    heartbeat()
    sys.exit(4)


def stuck(sock, heartbeat, folder):  # type: ignore[no-untyped-def]
    """Be ready, and ignore SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: (Path(folder) / f"terminated-{os.getpid()}").touch())
    (Path(folder) / f"stuck-{os.getpid()}").touch()
    heartbeat()
    while True:
        signal.pause()


def place(sock, heartbeat, folder):  # type: ignore[no-untyped-def]
    """Leave a file named by what `run_workers` put in the environment, and serve."""
    (Path(folder) / os.environ["PLACE"]).touch()
    serve_pid(sock, heartbeat, folder)


def main(target: str, workers: str, folder: str, *more: str) -> None:
    """The supervisor of a test: quick, and on a free port. `more` holds times as `drain_s=0.5`."""
    times = {name: float(value) for name, value in (one.split("=") for one in more)}
    server = (ServerConfig(drain_s=times.pop("drain_s")),) if "drain_s" in times else ()
    config = WorkersConfig(backoff_s=0.02, deaths_max=3, **{"stop_s": 20.0, **times})
    args = () if target == "die" else (folder, *server)
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
