"""A small real server behind the door: access, limits, uploads, CORS and TLS over a bundle store, without a model."""

import logging
import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import Response

from cloud.serving.access import REFUSALS, Access
from cloud.serving.bundle_files import BundleFile
from cloud.serving.bundle_store import BundleStore, BundleStoreConfig
from cloud.serving.cors import CorsConfig, with_cors
from cloud.serving.limits import LimitsConfig, RequestLimits
from cloud.serving.openapi import add_structs
from cloud.serving.server import listen
from cloud.serving.tls import TlsConfig
from cloud.serving.tokens import TokenFile, TokenFileConfig
from cloud.serving.uploads import UPLOAD_STRUCTS, UploadsConfig, upload_routes
from cloud.serving.wire import WireError, error_response
from device.contract import ContractError
from tests.cloud.serving.running import Live, started


class _App(FastAPI):
    def openapi(self) -> dict[str, Any]:
        return add_structs(super().openapi(), *UPLOAD_STRUCTS)


class Guarded(msgspec.Struct, kw_only=True):
    """What a server is started with."""

    folder: str
    """Of the bundle store."""
    tokens: str | None = None
    origins: tuple[str, ...] = ()
    certfile: str = ""
    keyfile: str = ""
    file_bytes_max: int = 0
    """The longest file that the process may write; 0 leaves it to the disk."""
    stall_s: float = 30.0
    limits: dict[str, Any] = {}
    store: dict[str, Any] = {}


@contextmanager
def guarded(folder: Path, *, stderr: Path | None = None, **config: Any) -> Iterator[Live]:
    """Start one and wait until it listens; killed at the end. All that it logs goes to the file `stderr`."""
    text = msgspec.json.encode(Guarded(folder=str(folder), **config)).decode()
    with started([sys.executable, "-m", "tests.cloud.serving.guarded", text], stderr) as live:
        yield live


def app_of(config: Guarded) -> Any:
    limits = RequestLimits(msgspec.convert(config.limits, LimitsConfig))
    tokens = TokenFile(Path(config.tokens), TokenFileConfig(look_every_s=0.0)) if config.tokens else None
    access = Access(tokens, limits)
    store = BundleStore(Path(config.folder), lambda: ("5m4ll",), BundleStoreConfig(**config.store))
    app = _App(docs_url=None, redoc_url=None)
    for kind in (WireError, ContractError, Exception):
        app.add_exception_handler(kind, error_response)
    app.include_router(upload_routes(store, access, UploadsConfig(stall_s=config.stall_s)))

    refused: Any = {status: {"description": text} for status, text in {**REFUSALS, 404: "Not here."}.items()}

    @app.get("/v1/bundle/manifest.json", response_class=Response, responses=refused, dependencies=[access.requires("device")])
    def manifest() -> Response:
        bundle = store.current()
        return _answer(None if bundle is None else bundle.manifest)

    @app.get(
        "/v1/bundle/files/{path:path}", response_class=Response, responses=refused, dependencies=[access.requires("device")]
    )
    def file(path: str) -> Response:
        bundle = store.current()
        return _answer(None if bundle is None else bundle.get(path))

    @app.get("/metrics", dependencies=[access.requires("admin")])
    async def metrics(request: Request) -> Response:
        raise RuntimeError("a server that breaks logs a traceback")

    return with_cors(app, CorsConfig(config.origins))


def _answer(file: BundleFile | None) -> Response:
    if file is None:
        raise WireError(404, "url", "a file of the bundle", "another")
    return Response(file.data, media_type="application/json")


def main() -> None:
    config = msgspec.json.decode(sys.argv[1], type=Guarded)
    if config.file_bytes_max:
        resource.setrlimit(resource.RLIMIT_FSIZE, (config.file_bytes_max, config.file_bytes_max))
    logging.basicConfig(level=logging.DEBUG)  # everything, and all of it to stderr
    tls: Any = TlsConfig(Path(config.certfile), Path(config.keyfile)).uvicorn() if config.certfile else {}
    with listen("127.0.0.1", 0) as sock:
        server = uvicorn.Server(uvicorn.Config(app_of(config), log_config=None, log_level="trace", **tls))
        print(f"Serving on http://127.0.0.1:{sock.getsockname()[1]}", flush=True)
        server.run(sockets=[sock])


if __name__ == "__main__":
    main()
