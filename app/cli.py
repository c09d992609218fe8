"""The ``topk`` command. Every setting is an option of the commands that use it."""

import asyncio
import inspect
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, get_origin

import orjson
import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Column, Table

from app import __version__
from app.errors import EmptyBody, LoadTestError, ModelError, TopkError
from app.settings import Settings

app = typer.Typer(no_args_is_help=True, add_completion=False, help="POST an image, get the top-k ImageNet classes.")
out, err = Console(), Console(stderr=True)

_MODEL_OPTIONS = (
    *("model", "weights", "trust_checkpoint", "device", "engine", "precision"),
    *("cache_dir", "fast_decode", "max_pixels"),
)
_PREDICT_S = 600.0
_AT_ONCE = 64

Command = Callable[..., None]


def with_settings(*names: str) -> Callable[[Command], Command]:
    """Give a command an option for each named setting (all of them if none is named).

    The command gets the resulting ``Settings`` as its argument ``settings``.
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
    kind = bool if field.annotation is bool else str
    default = "" if field.default is None or get_origin(field.annotation) is tuple else f" [default: {field.default}]"
    option = typer.Option(help=f"{field.description}{default}", show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _settings(given: dict[str, Any]) -> Settings:
    try:
        return Settings(**given)
    except ValidationError as error:
        first = error.errors()[0]
        raise ModelError(f"setting {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except UnicodeDecodeError as error:
        raise ModelError(f"the file .env is no UTF-8: {error}") from error


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"topk {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """POST an image, get the top-k ImageNet classes."""


@app.command()
@with_settings()
def serve(*, settings: Settings) -> None:
    """Serve a model over HTTP. Every option is also an environment variable: --max-pixels is TOPK_MAX_PIXELS."""
    if settings.workers:
        from app.workers.supervisor import serve as run
    else:
        from app.server import serve as run

    raise typer.Exit(run(settings))


@app.command()
@with_settings(*_MODEL_OPTIONS)
def predict(
    files: Annotated[list[Path], typer.Argument(help="Image files, folders of them, or - for standard input.")],
    *,
    top_k: Annotated[int, typer.Option(min=1, help="How many classes.")] = 5,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Leave out classes that score less.")] = 0.0,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    settings: Settings,
) -> None:
    """Classify files: a table on a terminal, --json for machines. Exit code 1 where one could not be classified."""
    paths = list(_images(files))
    if not paths:
        raise ModelError("no image files there")
    answers = _predict(paths, top_k, min_score, settings)
    for answer in answers:
        if json:
            out.file.write(orjson.dumps(answer).decode() + "\n")
        elif "error" in answer:
            err.print(f"{answer['file']}: {answer['error']['detail']}", markup=False, highlight=False)
        else:
            out.print(_table(answer))
    raise typer.Exit(any("error" in answer for answer in answers))


@app.command()
def models(
    *,
    timm: Annotated[
        str | None, typer.Option(help="List those of timm's with such a name: 'convnext*'.", show_default=False)
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """What can be served: weights, size, published accuracy, and whether they are in the cache."""
    from app.models import require_torch

    require_torch("the list of models")
    if timm is not None:
        return _timm_models(timm, json)
    from app.models import download, zoo

    entries = zoo.entries()
    if json:
        for entry in entries:
            out.file.write(
                orjson.dumps(asdict(entry) | {"cached": download.cached(entry.url) is not None}).decode() + "\n"
            )
        return
    table = Table(
        *(Column(name, no_wrap=True) for name in ("model", "weights")),
        *(Column(name, justify="right", no_wrap=True) for name in ("M params", "MB", "top-1", "top-5")),
        "cached",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for entry in entries:
        table.add_row(
            entry.architecture,
            entry.name + ("*" if entry.default else ""),
            f"{entry.parameters / 1e6:.1f}",
            f"{entry.megabytes:.0f}",
            *(f"{value:.2f}" for value in entry.accuracy),
            "yes" if download.cached(entry.url) else "",
        )
    out.print(table)
    out.print(
        "* what a bare model name means. Accuracy in per cent on ImageNet-1k's validation set, as published by "
        "torchvision. Beside these, efficientnet_lite0 is built in and needs no download, and --timm '*' lists timm's.",
        highlight=False,
    )


def _timm_models(pattern: str, json: bool) -> None:
    from app.models.timm import entries

    found = entries(pattern)
    if not found:
        raise ModelError(f"timm has no model that can be served and is named {pattern}")
    if json:
        for entry in found:
            out.file.write(orjson.dumps(entry).decode() + "\n")
        return
    headers = (Column(name, justify="right", no_wrap=True) for name in ("classes", "resize", "crop"))
    table = Table(Column("model", no_wrap=True), *headers, "interpolation", "cached", box=box.SIMPLE_HEAD, padding=0)
    for entry in found:
        resize = f"{entry.resize}x{entry.resize}" if entry.squash else str(entry.resize)
        sizes = (str(entry.classes), resize, str(entry.crop))
        table.add_row(f"timm:{entry.name}", *sizes, entry.interpolation, "yes" if entry.cached else "")
    out.print(table)


@app.command()
@with_settings("weights", "trust_checkpoint", "precision")
def export(
    model: Annotated[str, typer.Argument(help="What `topk serve --model` takes.")],
    *,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write, new or empty.")],
    calibrate: Annotated[Path | None, typer.Option(help="Folder of your photographs, for --precision int8.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Write an int8 model that breaks the accuracy rule.")] = False,
    openvino_only: Annotated[
        bool, typer.Option("--openvino-only", help="Leave out the weights for torch: half the size, for CPUs.")
    ] = False,
    settings: Settings,
) -> None:
    """Write a model as a folder that `topk serve --model FOLDER` serves without a network, and starts fast."""
    from app.models import require_torch

    require_torch("an export")
    from app.models.export import export as run

    with err.status("loading") as status:
        judgement = run(
            settings.model_copy(update={"model": model}), out_folder, calibrate, force, not openvino_only, status.update
        )
    if judgement:
        out.print(f"int8: {judgement}", highlight=False)
    out.print(f"written: {out_folder}; serve it with: topk serve --model {out_folder}", markup=False, highlight=False)


@app.command()
def bench(
    url: Annotated[
        str, typer.Argument(help="A server's root (/v1/predict is used), or the whole URL that takes images.")
    ],
    *,
    clients: Annotated[
        str | None,
        typer.Option(help="Closed loop: this many at once; 1,4,16 is three points. [default: 16]", show_default=False),
    ] = None,
    rate: Annotated[
        str | None,
        typer.Option(help="Open loop: Poisson arrivals, this many a second; 20,40 is two points.", show_default=False),
    ] = None,
    find_capacity: Annotated[
        bool, typer.Option("--find-capacity", help="Search the largest rate that is answered within the SLO.")
    ] = False,
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each point.")] = 10.0,
    warmup: Annotated[float, typer.Option(min=0, help="Seconds before each point that do not count.")] = 2.0,
    slo_ms: Annotated[
        float, typer.Option(min=1, help="Goodput counts answers within this; in an open loop clients leave then.")
    ] = 1000.0,
    images: Annotated[
        Path | None,
        typer.Option(
            exists=True, file_okay=False, help="Folder of images to send. [default: made ones]", show_default=False
        ),
    ] = None,
    multipart: Annotated[bool, typer.Option("--multipart", help="Send forms, not raw bytes.")] = False,
    header: Annotated[list[str] | None, typer.Option(help="'Name: value', repeatable.", show_default=False)] = None,
    api_key: Annotated[str | None, typer.Option(help="Sent as Authorization: Bearer.", show_default=False)] = None,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    report: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write an HTML page with the curves.", show_default=False)
    ] = None,
) -> None:
    """Measure what a server answers under load, and how fast. Ctrl-C shows what was measured so far."""
    from app.loadtest import plan, table
    from app.loadtest import report as page
    from app.loadtest.progress import Live
    from app.loadtest.run import run
    from app.loadtest.target import Target

    mode, counts, rates = plan.load(clients, rate, find_capacity)
    headers = plan.headers(header or [], api_key)
    asked = plan.Plan(mode, counts, rates, seconds, warmup, slo_ms, headers, images, multipart)
    page.check(report)
    with Live(err) as live:
        result = run(Target(url), asked, live)
    for warning in result.warnings:
        err.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)
    if json:
        out.file.write(orjson.dumps(result.as_dict()).decode() + "\n")
    else:
        table.show(result, out)
    if report:
        page.write(result, report)
    raise typer.Exit(130 if result.interrupted else 0)


def _images(files: Iterable[Path]) -> Iterable[Path]:
    for path in files:
        if path.is_dir():
            yield from sorted(child for child in path.rglob("*") if child.is_file())
        else:
            yield path


def _predict(paths: list[Path], top_k: int, min_score: float, settings: Settings) -> list[dict[str, Any]]:
    from app.classifier import Classifier
    from app.telemetry import configure_logging

    configure_logging(settings.log_format, "warning")
    classifier = Classifier(settings)
    with err.status("loading the model"):
        classifier.load()
    try:
        if top_k > len(classifier.model.labels):
            raise ModelError(f"--top-k {top_k} is more than the model's {len(classifier.model.labels)} classes")
        if classifier.model.warning:
            err.print(f"warning: {classifier.model.warning}", style="yellow", markup=False)
        return asyncio.run(_classify(classifier, paths, top_k, min_score))
    finally:
        classifier.close()


async def _classify(classifier: Any, paths: list[Path], top_k: int, min_score: float) -> list[dict[str, Any]]:
    from app.engine import Want

    at_once = asyncio.Semaphore(_AT_ONCE)
    progress = Progress(console=err, transient=True, disable=len(paths) < 2)
    task = progress.add_task("classifying", total=len(paths))

    async def one(path: Path) -> dict[str, Any]:
        async with at_once:
            try:
                content = await asyncio.to_thread(_read, path)
                result = await classifier.classify(content, Want(k=top_k), time.monotonic() + _PREDICT_S)
            except OSError as error:
                return {
                    "file": _shown(path),
                    "error": {"code": "unreadable_file", "detail": error.strerror or str(error)},
                }
            except TopkError as error:
                return {"file": _shown(path), "error": {"code": error.code, "detail": error.detail}}
            finally:
                progress.advance(task)
            return {
                "file": _shown(path),
                "model": classifier.model.name,
                "weights": classifier.model.weights,
                "predictions": [asdict(p) for p in classifier.predictions(result.row, min_score)],
            }

    with progress:
        return list(await asyncio.gather(*map(one, paths)))


def _read(path: Path) -> bytes:
    content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    if not content:
        raise EmptyBody("the file is empty")
    return content


def _shown(path: Path) -> str:
    """A path as text that can be printed: file names may hold anything."""
    name = os.fsencode(path).decode("utf-8", "replace")
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in name)


def _table(answer: dict[str, Any]) -> Table:
    table = Table(Column("score", justify="right"), "label", "wnid", title=answer["file"], title_justify="left")
    for prediction in answer["predictions"]:
        table.add_row(f"{prediction['score']:.4f}", prediction["label"], prediction["wnid"] or "")
    return table


def main() -> None:
    """Entry point: errors of the user's making are one plain line and exit code 1."""
    try:
        app()
    except (LoadTestError, ModelError) as error:
        err.print(f"topk: {error.detail}", style="red", markup=False, highlight=False)
        sys.exit(1)
