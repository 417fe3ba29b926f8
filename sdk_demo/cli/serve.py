"""`pocketrank serve`: serves pages and the bundle over HTTP and takes feedback."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pocketrank.sdk_demo.cli.errors import OptionError

if TYPE_CHECKING:
    from pocketrank.device.bundle.signing import TrustedKeys

__all__ = ["serve"]


def serve(
    run: Annotated[
        Path | None, typer.Option(help="Folder that `pocketrank train` wrote. Either this or --runs is required.")
    ] = None,
    runs: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of runs, or `mlflow:URI`: serves the active run, and follows `pocketrank runs activate` and "
            "`rollback` without a restart.",
        ),
    ] = None,
    bundle: Annotated[
        Path | None,
        typer.Option(help="Folder that `pocketrank export` wrote; devices download it. [default: no bundle]"),
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 8080,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    pipeline: Annotated[
        Path | None, typer.Option(help="TOML file that defines how a page is made. [default: retrieve, rank, fuse, spread]")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Worker processes; about one per core.")] = 1,
    feedback_db: Annotated[
        Path | None, typer.Option(help="File of the feedback log. [default: feedback.db in the folder of --run or --runs]")
    ] = None,
    keep_days: Annotated[
        float, typer.Option(min=0, help="Days for which feedback is kept after it was accepted; 0 keeps it for ever.")
    ] = 90.0,
    learn: Annotated[
        bool, typer.Option("--learn", help="Learn from what users do in a process beside it (`pocketrank learn`).")
    ] = False,
    pages: Annotated[
        bool, typer.Option("--pages/--no-pages", help="Keep every page as it was served, so that one can learn from feedback.")
    ] = True,
    tokens: Annotated[
        Path | None, typer.Option(help="File of tokens (`pocketrank token`). [default: no authentication]")
    ] = None,
    user_keys: Annotated[
        Path | None,
        typer.Option(help="JSON Web Key Set that verifies users' tokens, which the app's backend signs. [default: none]"),
    ] = None,
    user_audience: Annotated[str | None, typer.Option(help="Required claim `aud` of users' tokens. [default: none]")] = None,
    user_issuer: Annotated[str | None, typer.Option(help="Required claim `iss` of users' tokens. [default: any]")] = None,
    app_tokens: Annotated[
        bool,
        typer.Option("--app-tokens", help="With --user-keys: accept tokens of scope `device`, too, which speak for any user."),
    ] = False,
    trust_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Public key, in hex or a file KEY.pub, that signs uploaded bundles; may be repeated."),
    ] = None,
    trust_release_key: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="Public key that signs releases; may be repeated. [default: those of --trust-key]"),
    ] = None,
    unverified_bundles: Annotated[
        bool, typer.Option("--unverified-bundles", help="Without --trust-key: accept uploaded bundles that nobody verifies.")
    ] = False,
    anybody: Annotated[
        bool, typer.Option("--open", help="Serve other machines without tokens; only behind a gateway that authenticates.")
    ] = False,
    cors: Annotated[
        list[str] | None, typer.Option(help="Origin of a web page that may call from a browser; may be repeated.")
    ] = None,
    log_format: Annotated[Literal["json", "text"], typer.Option(help="Format of the log on stderr.")] = "text",
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate in PEM; together with --tls-key serves HTTPS.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Private key of the certificate in PEM, without a password.")] = None,
    keep_alive: Annotated[
        float,
        typer.Option(min=1.0, help="Seconds that an idle connection is kept; more than a load balancer in front keeps one."),
    ] = 75.0,
) -> None:
    """Serve pages from a run, or from the active one of a folder of runs, until interrupted.

    Candidates are retrieved from the index of the trained item tower and ranked by the trained ranker. Pages are columnar and
    carry the vectors of the split version that the device requests.

    \b
    pocketrank serve --run runs/world --bundle runs/bundle --port 8080
    curl http://127.0.0.1:8080/healthz

    With `--runs` the server follows the active run without a restart. The next run is opened in the background and replaces the
    one before between two pages. One feedback log serves all runs: what users did after the data of a run counts on top of it.
    A run that cannot be served is refused, and the one before stays; `/readyz` is `degraded` then.

    \b
    pocketrank runs activate world --runs runs
    pocketrank serve --runs runs --port 8080

    Devices that verify signatures follow the release that `pocketrank release` writes into the folder of a signed bundle. The
    file is read at each request, so a roll-out, a revocation or a kill needs no restart. A new bundle does.

    With `--user-keys` a device speaks for the one user of its token. With `--tokens` alone it speaks for any.

    With `--learn` what users do changes the parameters within seconds. It needs `--run` and the libraries of training.

    Answers POST /v1/page, POST /v1/feedback, PUT and DELETE /v1/items and /v1/users, GET /v1/bundle/..., GET /healthz, GET
    /drift and GET /metrics (Prometheus).

    Writes the feedback log and the files beside it.
    """
    from pocketrank.cloud.pipeline.config import PipelineConfig
    from pocketrank.cloud.serving.access.user_keys import UserKeysConfig
    from pocketrank.cloud.serving.bundles.store import BundleStoreConfig
    from pocketrank.cloud.serving.config import ServingConfig
    from pocketrank.cloud.serving.http.cors import CorsConfig
    from pocketrank.cloud.serving.process.connections import ConnectionLimits
    from pocketrank.cloud.serving.process.serve import serve as serve_run
    from pocketrank.cloud.serving.process.server import ServerConfig, TlsConfig
    from pocketrank.cloud.serving.telemetry.devices import DeviceTelemetryConfig
    from pocketrank.cloud.serving.telemetry.logs import LoggingConfig
    from pocketrank.cloud.streams.sqlite import SqliteLogConfig
    from pocketrank.cloud.training.registry_opening import open_registry
    from pocketrank.cloud.training.run import Run
    from pocketrank.device.session.counters import telemetry_names

    if (run is None) == (runs is None):
        raise OptionError("--run", "either --run RUN or --runs FOLDER", "neither" if run is None else "both")
    if learn and (run is None or not pages):
        raise OptionError("--learn", "`--run RUN`, and no `--no-pages`", "`--runs`" if run is None else "`--no-pages`")
    if user_keys is None and (user_audience is not None or user_issuer is not None or app_tokens):
        raise OptionError("--user-keys", "a file of keys, for the options of users' tokens", "none")
    config = ServingConfig(
        pipeline=PipelineConfig.open(pipeline) if pipeline else PipelineConfig(),
        folder=pipeline.resolve().parent if pipeline else Path(),
        workers=workers,
        tokens=tokens,
        log=SqliteLogConfig(keep_days=keep_days or None),
        keeps_pages=pages,
        learns=learn,
        user_keys=UserKeysConfig(user_keys, user_audience, user_issuer, app_tokens=app_tokens) if user_keys else None,
        bundles=BundleStoreConfig(_trusted_keys(trust_key or [], trust_release_key or []), unverified_bundles),
        logs=LoggingConfig(format=log_format),
        cors=CorsConfig(tuple(cors or ())),
        server=ServerConfig(TlsConfig.of(tls_cert, tls_key), connections=ConnectionLimits(keep_alive_s=keep_alive)),
        telemetry=DeviceTelemetryConfig(names_known=telemetry_names()),
    )
    source = Run.open(run) if run is not None else open_registry(runs or "")
    serve_run(source, bundle, host=host, port=port, feedback_db=feedback_db, config=config, anybody=anybody)


def _trusted_keys(manifest: list[str], release: list[str]) -> TrustedKeys | None:
    """Return the keys of `--trust-key` and `--trust-release-key`, None without any. Raises `OptionError`."""
    from pocketrank.device.bundle.signing import TrustedKeys

    if not manifest:
        if release:
            raise OptionError("--trust-release-key", "`--trust-key` as well", release[0])
        return None
    keys = [_public_key("--trust-key", text) for text in manifest]
    return TrustedKeys(tuple(keys), tuple(_public_key("--trust-release-key", text) for text in release) or tuple(keys))


def _public_key(option: str, text: str) -> str:
    # Only files of public keys: a private key is hex of the same length.
    try:
        key = Path(text).read_text("ascii").strip() if text.endswith(".pub") else text
        if len(bytes.fromhex(key)) == 32:
            return key
    except OSError as error:
        raise OptionError(option, "a public key", f"{text}: {error.strerror}") from None
    except ValueError:
        pass  # not ASCII, or not hex
    raise OptionError(option, "a public key of 32 bytes in hex, or a file KEY.pub", text[:80])
