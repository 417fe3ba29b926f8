"""The application: the table of commands, their order in the help, and the global options."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from pocketrank.sdk_demo.cli.data import data
from pocketrank.sdk_demo.cli.demo import demo
from pocketrank.sdk_demo.cli.emulate import emulate
from pocketrank.sdk_demo.cli.errors import exit_on_domain_error
from pocketrank.sdk_demo.cli.evaluate import evaluate
from pocketrank.sdk_demo.cli.export import export
from pocketrank.sdk_demo.cli.forget import forget
from pocketrank.sdk_demo.cli.inspect import inspect
from pocketrank.sdk_demo.cli.keygen import keygen
from pocketrank.sdk_demo.cli.learn import learn
from pocketrank.sdk_demo.cli.log import log
from pocketrank.sdk_demo.cli.release import release
from pocketrank.sdk_demo.cli.runs import runs
from pocketrank.sdk_demo.cli.serve import serve
from pocketrank.sdk_demo.cli.token import token
from pocketrank.sdk_demo.cli.train import train
from pocketrank.sdk_demo.cli.tune import tune
from pocketrank.sdk_demo.cli.upload import rollback, upload
from pocketrank.sdk_demo.cli.workflow import workflow

__all__ = ["app", "run"]

_COMMANDS: dict[str, Callable[..., None] | typer.Typer] = {
    "data": data,
    "train": train,
    "tune": tune,
    "evaluate": evaluate,
    "runs": runs,
    "keygen": keygen,
    "export": export,
    "release": release,
    "inspect": inspect,
    "token": token,
    "serve": serve,
    "learn": learn,
    "forget": forget,
    "log": log,
    "upload": upload,
    "rollback": rollback,
    "workflow": workflow,
    "emulate": emulate,
    "demo": demo,
}


class _InOrder(TyperGroup):
    """Group that lists its commands in the order of `_COMMANDS`, where typer would list subgroups first."""

    def __init__(self, **options: Any) -> None:
        commands = options.pop("commands")
        super().__init__(commands={name: commands[name] for name in _COMMANDS}, **options)


app = typer.Typer(
    name="pocketrank",
    cls=_InOrder,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
"""The application. Its commands are in the order of use: log to run, run to bundle, bundle to phones."""

for name, command in _COMMANDS.items():
    if isinstance(command, typer.Typer):
        app.add_typer(command, name=name)
    else:
        app.command(name)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"pocketrank {version('pocketrank')}")
        raise typer.Exit


@app.callback()
def _pocketrank(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """The last ranking stage, in the user's hand.

    Train a ranker and a small device model, export the model for phones, serve pages of candidates, and let emulated phones
    reorder them. `pocketrank COMMAND --help` explains a command; `pocketrank demo` does all of it.

    \b
    pocketrank train --data world --out runs/first
    pocketrank evaluate runs/first
    pocketrank export runs/first --formats onnx,tflite --out runs/bundle
    pocketrank inspect runs/bundle
    pocketrank serve --run runs/first --bundle runs/bundle --port 8080
    pocketrank emulate --server http://127.0.0.1:8080 --clients 8 --sessions 100 --seed 1 --json -
    """


def run(arguments: list[str]) -> None:
    """Run one command line and exit with its code; see `pocketrank.sdk_demo.cli.main`."""
    with exit_on_domain_error():
        get_command(app)(args=arguments, prog_name="pocketrank")
