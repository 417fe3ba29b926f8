"""`pocketrank data drift`: how far the inputs of a run's models have drifted since its training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from pocketrank.sdk_demo.cli.errors import DriftError, OptionError
from pocketrank.sdk_demo.cli.options import parse_date, parse_source
from pocketrank.sdk_demo.cli.output import JsonTarget, check_file, print_line, progress, write_file
from pocketrank.sdk_demo.cli.source import load_log

if TYPE_CHECKING:
    from pocketrank.cloud.published.profile import InputProfiles

__all__ = ["drift"]

_ANSWER_MAX = 64 << 20
"""Bytes of a server's answer."""


def drift(
    run: Annotated[Path | None, typer.Argument(help="Folder that `pocketrank train` wrote.")] = None,
    log: Annotated[
        str | None, typer.Argument(help="Later data: a data file `FILE.toml`, the folder of a log, or `world`.")
    ] = None,
    server: Annotated[
        str | None, typer.Option(metavar="URL", help="Server to ask for what it serves now, instead of RUN and LOG.")
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="With --server: file with a token of scope `admin`, as `pocketrank token create --out` writes it."),
    ] = None,
    allow_http: Annotated[
        bool, typer.Option("--allow-http", help="Send the token unencrypted to another machine; for private networks.")
    ] = False,
    since: Annotated[
        str | None, typer.Option("--from", metavar="YYYY-MM-DD", help="First day of LOG to compare. [default: all days]")
    ] = None,
    tables: Annotated[
        Path | None, typer.Option(help="Folder where the paths in the data file begin. [default: that of the file]")
    ] = None,
    json: Annotated[str | None, typer.Option(metavar="FILE", help="Report as JSON; `-` is stdout. [default: none]")] = None,
    page: Annotated[Path | None, typer.Option(help="File for the report as one HTML page with plots. [default: none]")] = None,
    fail_above: Annotated[
        float | None, typer.Option(min=0, help="End with exit code 2 if an index is larger. [default: never]")
    ] = None,
) -> None:
    """Compare the inputs of models with those of training.

    For each input: the share of values that are known, in training and now, and the population stability index (PSI) of its
    distribution, the largest first. Below 0.1 it is stable, from 0.25 on the change is large. Where too few pages are counted
    there is no verdict.

    \b
    pocketrank data drift runs/first tables/new.toml --from 2026-03-20
    pocketrank data drift --server https://pages.example --token-file admin.token --page drift.html

    A server compares what it served in the last hour. Writes a table to the terminal and, where asked, the report.
    """
    if (server is None) == (run is None or log is None) or (server is not None and (run, log) != (None, None)):
        got = " and ".join(name for name, value in (("RUN", run), ("LOG", log), ("--server", server)) if value is not None)
        raise OptionError("drift", "either RUN and LOG or --server URL", got or "neither")
    day = None if since is None else parse_date(since, "--from")
    target = JsonTarget(json)
    if page is not None:
        check_file("--page", page)

        from pocketrank.sdk_demo.report.drift_page import drift_page

    from pocketrank.cloud.published.profile import drift as compared

    report: dict[str, Any]
    if server is not None:
        served = _served(server, token_file, allow_http)
        report = {"run": served.run, "against": f"pages of the last {_span(served.window_s)}", "server": server}
        training, serving = served.training, served.serving
    else:
        assert run is not None
        assert log is not None
        from pocketrank.cloud.training.profile import log_profile, run_profile
        from pocketrank.cloud.training.run import Run

        opened = Run.open(run)
        training = run_profile(opened)
        loaded = load_log(target.console, parse_source(log, "LOG"), world=None, seed=0, tables=tables)
        with progress(target.console, "counting"):
            serving = log_profile(opened, loaded, day)
        report = {"run": run.as_posix(), "against": f"log {loaded.name}" + (f" from {day} on" if day else "")}
    report |= compared(training, serving)
    target.write(report)
    if page is not None:
        write_file("--page", page, drift_page(report).encode())
    _print(target.console, report)
    _check(report, fail_above)


def _served(server: str, token_file: Path | None, allow_http: bool) -> InputProfiles:
    """Return what a server has counted. Raises `OptionError`, `UploadError` for a token that cannot be read."""
    import httpx
    import msgspec

    from pocketrank.cloud.published.profile import InputProfiles
    from pocketrank.cloud.published.published import PublishedError
    from pocketrank.cloud.serving.access.access import is_loopback
    from pocketrank.sdk_demo.uploader import read_token

    try:
        url = httpx.URL(server)
    except httpx.InvalidURL:
        url = httpx.URL("")
    if not url.host or url.scheme not in ("http", "https"):
        raise OptionError("--server", "a URL like `https://host:port`", server[:200])
    headers = {}
    if token_file is not None:
        if not (allow_http or url.scheme == "https" or is_loopback(url.host)):
            raise OptionError("--server", "an https:// URL, or `--allow-http`", server[:200])
        headers["Authorization"] = f"Bearer {read_token(token_file)}"
    at = f"{server.rstrip('/')}/drift"
    try:
        # No redirects and no proxies of the environment: the token goes to this server and nowhere else.
        with httpx.stream("GET", at, headers=headers, timeout=60.0, follow_redirects=False, trust_env=False) as answer:
            body = b""
            for part in answer.iter_bytes():
                body += part
                if len(body) > _ANSWER_MAX:
                    raise OptionError("--server", f"an answer of at most {_ANSWER_MAX:,} bytes", "a larger one")
    except httpx.HTTPError as error:
        raise OptionError("--server", "a server that answers", f"{type(error).__name__}: {error} - at {at}") from None
    if answer.status_code != 200:
        raise OptionError("--server", "the counts of a server", f"{answer.status_code} {_reason(body)} - at {at}")
    try:
        served = msgspec.json.decode(body, type=InputProfiles)
        for profile in (served.training, served.serving):
            profile.check(at)
    except (msgspec.DecodeError, PublishedError, UnicodeDecodeError) as error:
        raise OptionError("--server", "the counts of a server", f"{error} - at {at}") from None
    return served


def _reason(body: bytes) -> str:
    """Return the reason in the body of an error."""
    import msgspec

    try:
        return str(msgspec.json.decode(body, type=dict[str, Any])["error"])[:500]
    except (msgspec.DecodeError, KeyError):
        return ""


def _span(seconds: float) -> str:
    return f"{seconds / 3600:g} hours" if seconds >= 7200 else f"{seconds / 60:g} minutes"


def _print(console: Console, report: Mapping[str, Any]) -> None:
    pages = report["pages"]
    print_line(console, f"{report['run']} against {report['against']}")
    print_line(console, f"{pages['training']:,} pages of training, {pages['serving']:,} since")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    heads = ("input", "PSI", "verdict", "training\nknown", "\nrows", "since\nknown", "\nrows")
    for number, name in enumerate(heads):
        table.add_column(name, justify="right" if number else "left", no_wrap=True)
    for name, one in report["features"].items():
        psi = "" if one["psi"] is None else f"{one['psi']:.3f}"
        table.add_row(name, psi, one["verdict"], *_side(one["training"]), *_side(one["serving"]))
    console.print(table)


def _side(side: Mapping[str, Any] | None) -> tuple[str, str]:
    if side is None:
        return "", ""
    return "" if side["coverage"] is None else f"{side['coverage']:.1%}", f"{side['rows']:,}"


def _check(report: Mapping[str, Any], fail_above: float | None) -> None:
    """Raise `DriftError` if an index is above `fail_above`."""
    if fail_above is not None:
        for name, one in report["features"].items():  # the largest first
            if one["psi"] is not None and one["psi"] > fail_above:
                raise DriftError(f"Expected a PSI of at most {fail_above:g}, got {one['psi']:.3f} - at `{name}`")
