"""A small application behind the limits of connections: `python -m tests.cloud.serving.process.bounded LIMITS FILE TLS`."""

import json
import resource
import sys
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, PlainTextResponse, Response
from starlette.routing import Route

from pocketrank.cloud.serving.process.connections import ConnectionLimits
from pocketrank.cloud.serving.process.server import ServerConfig, TlsConfig, listen, run_server
from pocketrank.cloud.serving.telemetry.logs import LoggingConfig, configure_logs
from tests.cloud.serving.small_apps import until_there

FILES_MAX = 256


async def _livez(_: Request) -> Response:
    return PlainTextResponse("ok")


async def _body(request: Request) -> Response:
    return PlainTextResponse(str(len(await request.body())))


async def _when_there(request: Request) -> Response:
    await until_there(request)
    return PlainTextResponse("done")


async def _left(_: Request, error: Exception) -> Response:
    return PlainTextResponse(str(error), 400)


def main(limits: str, file: str, tls: str) -> None:
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES_MAX, FILES_MAX))
    configure_logs(LoggingConfig())

    async def large(_: Request) -> Response:
        return FileResponse(file)

    routes = [
        Route("/livez", _livez),
        Route("/body", _body, methods=["POST"]),
        Route("/when", _when_there),
        Route("/file", large),
    ]
    files = TlsConfig(Path(tls, "one.pem"), Path(tls, "one.key")) if tls else None
    config = ServerConfig(files, connections=ConnectionLimits(**json.loads(limits)))
    app = Starlette(routes=routes, exception_handlers={ClientDisconnect: _left})
    run_server(app, listen("127.0.0.1", 0), config)


if __name__ == "__main__":
    main(*sys.argv[1:])
