"""The ``topk`` command: its subcommands, and how it ends.

Every error of the user's, an invalid option included, is one line on stderr and exit code 1. Ctrl-C is exit code 130.
"""

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from app import __version__
from app.commands.bench.command import bench
from app.commands.calibrate.command import calibrate
from app.commands.console import err, print_line
from app.commands.evaluate.command import evaluate
from app.commands.export import export
from app.commands.models import models
from app.commands.predict.command import predict
from app.commands.serve import serve
from app.commands.train.command import train
from app.errors import CommandError, DeviceLost


class Commands(TyperGroup):
    """The subcommands of ``topk``."""

    def main(self, *arguments: Any, **options: Any) -> None:
        """Run a subcommand, then exit the process."""
        try:
            sys.exit(super().main(*arguments, **options | {"standalone_mode": False}))
        except (CommandError, DeviceLost) as error:
            _fail(error.detail)
        except typer.TyperException as error:
            _fail(_usage_error(error))


app = typer.Typer(
    cls=Commands,
    add_completion=False,
    rich_markup_mode=None,  # Rich takes [default: 5] for markup and truncates text in narrow columns
    help="POST an image, get the top-k ImageNet classes.",
)
for _command in (serve, predict, models, export, bench, evaluate, calibrate, train):
    app.command()(_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"topk {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """POST an image, get the top-k ImageNet classes."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _usage_error(error: typer.TyperException) -> str:
    """Typer's message in the form of ours, and the command whose help explains more."""
    message = " ".join(error.format_message().split()).replace("Value error, ", "").rstrip(".")
    context = getattr(error, "ctx", None)
    hint = f"; see {context.command_path} --help" if context else ""
    return f"{message[:1].lower()}{message[1:]}{hint}"


def _fail(message: str) -> None:
    print_line(err, f"topk: {message}", "red")
    sys.exit(1)


def main() -> None:
    """Entry point."""
    app(prog_name="topk")
