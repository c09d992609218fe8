"""Command-line options: those made from settings, and those that several commands share."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import ValidationError

from app.errors import ModelError
from app.settings import Settings
from app.settings.messages import explain

MODEL_OPTIONS = (
    *("model", "weights", "trust_checkpoint", "device", "engine", "precision"),
    *("cache_dir", "fast_decode", "max_pixels"),
)

Command = Callable[..., None]

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
JsonLines = Annotated[bool, typer.Option("--json", help="Print one JSON object per line.")]
Report = Annotated[
    Path | None, typer.Option(dir_okay=False, help="Write an HTML report to this file.", show_default=False)
]
ApiKey = Annotated[str | None, typer.Option(help="API key, sent as `Authorization: Bearer KEY`.", show_default=False)]


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Add an option for each named setting to a command, or for all settings if none is named.

    The command receives the resulting ``Settings`` as its argument ``settings``.
    """
    fields = {name: Settings.model_fields[name] for name in names or Settings.model_fields}

    def decorate(command: Command) -> Command:
        def wrapper(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in fields}
            command(**arguments, settings=_settings({k: v for k, v in given.items() if v is not None}))

        own = [p for p in inspect.signature(command).parameters.values() if p.name != "settings"]
        wrapper.__signature__ = inspect.Signature(own + [_option(*item) for item in fields.items()])  # type: ignore[attr-defined]
        wrapper.__name__, wrapper.__doc__ = command.__name__, command.__doc__
        wrapper.__annotations__ = {p.name: p.annotation for p in wrapper.__signature__.parameters.values()}  # type: ignore[attr-defined]
        return wrapper

    return decorate


def _option(name: str, field: Any) -> inspect.Parameter:
    """An option that accepts any text: ``Settings`` validates the value and explains what is wrong with it."""
    kind = bool if field.annotation is bool else str
    metavar = None if kind is bool else f"<{_type_name(field.annotation)}>"
    option = typer.Option(help=f"{field.description}{_default(field.default)}", metavar=metavar, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _type_name(annotation: Any) -> str:
    """The type of an option in one word."""
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    if get_origin(annotation) is tuple:
        return "list"
    kinds = {annotation, *get_args(annotation)}
    return "int" if int in kinds else "path" if Path in kinds else "str"


def _default(value: Any) -> str:
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    if value is None or value == "":
        return ""
    return f" [default: {str(value).lower() if isinstance(value, bool) else value}]"


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        raise ModelError(explain(error, given)) from error
    except UnicodeDecodeError as error:
        raise ModelError(f"the file .env is not valid UTF-8 ({error}); save it as UTF-8") from error
