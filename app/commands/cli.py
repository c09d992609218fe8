"""The ``topk`` command. Every setting is an option of the commands that use it."""

import asyncio
import inspect
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, Literal, get_args, get_origin

import orjson
import typer
from pydantic import ValidationError
from rich import box
from rich.console import Console, Group
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

from app import __version__
from app.commands.filenames import shown
from app.errors import EmptyBody, EvaluationError, LoadTestError, ModelError, ReportError, TopkError, TrainingError
from app.settings import Settings
from app.settings.messages import explain

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # it takes [default: 5] for markup, and cuts what a narrow column cannot hold
    help="POST an image, get the top-k ImageNet classes.",
)
out, err = Console(), Console(stderr=True)

_MODEL_OPTIONS = (
    *("model", "weights", "trust_checkpoint", "device", "engine", "precision"),
    *("cache_dir", "fast_decode", "max_pixels"),
)
_TOP_K = 5
_PREDICT_S = 600.0
_AT_ONCE = 64

Command = Callable[..., None]

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_Report = Annotated[
    Path | None, typer.Option(dir_okay=False, help="Write an HTML page with plots.", show_default=False)
]


def say(console: Console, line: str, style: str | None = None) -> None:
    """One line, however long it is and wherever it goes."""
    console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


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
    """Taken as text, whatever it is: the settings themselves say what is wrong with it."""
    kind = bool if field.annotation is bool else str
    metavar = None if kind is bool else f"<{_kind(field.annotation)}>"
    option = typer.Option(help=f"{field.description}{_default(field.default)}", metavar=metavar, show_default=False)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _kind(annotation: Any) -> str:
    """What an option takes, in a word."""
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
        from app.server.serving import serve as run

    raise typer.Exit(run(settings))


@app.command()
@with_settings(*_MODEL_OPTIONS)
def predict(
    files: Annotated[list[Path], typer.Argument(help="Image files, folders of them, or - for standard input.")],
    *,
    top_k: Annotated[
        int | None, typer.Option(min=1, help="How many classes. [default: 5, of fewer all]", show_default=False)
    ] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Leave out classes that score less.")] = 0.0,
    taxonomy: Annotated[
        bool, typer.Option("--taxonomy", help="Add each image's place in WordNet, and how far down one can be sure.")
    ] = False,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="With --taxonomy: what the answer's score reaches, more than 0 and at most 1. [default: 0.9]",
            show_default=False,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    settings: Settings,
) -> None:
    """Classify files: a table on a terminal, --json for machines. Exit code 1 where one could not be classified."""
    paths = list(_images(files))
    if not paths:
        raise ModelError("no image files there")
    answers = _predict(paths, Asked(top_k, min_score, _sure(taxonomy, confidence)), settings)
    for answer in answers:
        if json:
            out.file.write(orjson.dumps(answer).decode() + "\n")
        elif "error" in answer:
            say(err, f"{answer['file']}: {answer['error']['detail']}")
        else:
            out.print(_table(answer))
            if taxonomy:
                out.print(_tree(answer))
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
        say(out, f"int8: {judgement}")
    say(out, f"written: {out_folder}; serve it with: topk serve --model {quote(str(out_folder))}")


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
    json: _Json = False,
    report: _Report = None,
) -> None:
    """Measure what a server answers under load, and how fast. Ctrl-C shows what was measured so far."""
    from app.commands.bench import plan, table
    from app.commands.bench.progress import Live
    from app.commands.bench.report import write
    from app.commands.bench.run import run
    from app.commands.bench.target import Target
    from app.commands.reports import page

    mode, counts, rates = plan.load(clients, rate, find_capacity)
    headers = plan.headers(header or [], api_key)
    asked = plan.Plan(mode, counts, rates, seconds, warmup, slo_ms, headers, images, multipart)
    page.check(report)
    with Live(err) as live:
        result = run(Target(url), asked, live)
    for warning in result.warnings:
        say(err, f"warning: {warning}", "yellow")
    if json:
        out.file.write(orjson.dumps(result.as_dict()).decode() + "\n")
    else:
        table.show(result, out)
    if report:
        write(result, report)
    raise typer.Exit(130 if result.interrupted else 0)


class _Reference(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


@app.command()
@with_settings(*_MODEL_OPTIONS)
def evaluate(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A folder with a folder of images for each class, named by wnid, label or index; or a CSV with the"
            " header file,label.",
        ),
    ],
    *,
    url: Annotated[
        str | None,
        typer.Option(help="Evaluate a running topk; the model options are then the reference's.", show_default=False),
    ] = None,
    api_key: Annotated[str | None, typer.Option(help="Sent as Authorization: Bearer.", show_default=False)] = None,
    compare: Annotated[
        _Reference | None,
        typer.Option(
            help="Run the reference beside it: torch in this precision, every pixel decoded. Prints the agreement.",
            show_default=False,
        ),
    ] = None,
    json: _Json = False,
    report: _Report = None,
    settings: Settings,
) -> None:
    """How good are the answers on labelled images? Interrupted, the same command goes on where it stopped."""
    from app.commands.evaluate import table
    from app.commands.evaluate.evaluation import Asked, evaluated
    from app.commands.evaluate.progress import Live
    from app.commands.evaluate.report import write
    from app.commands.reports import page
    from app.telemetry.logging import configure_logging

    configure_logging(settings.log_format, "warning")
    page.check(report)
    live = Live(err)
    try:
        with evaluated(Asked(images, url, api_key, compare), settings, live) as found:
            if report:
                write(found, report, settings.max_pixels)
            for note in found.notes:
                say(err, note, "yellow")
            if json:
                out.file.write(orjson.dumps(found.as_dict()).decode() + "\n")
            else:
                table.tell(found, out)
    except KeyboardInterrupt:
        err.print(live.interrupted, markup=False, highlight=False)
        raise typer.Exit(130) from None


@app.command()
@with_settings(*_MODEL_OPTIONS)
def train(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder with a folder of images for each class, named after it.")
    ],
    *,
    out_folder: Annotated[Path, typer.Option("--out", help="Model folder to write, new or empty.")],
    val: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the same kind: hold these images out.")
    ] = None,
    holdout: Annotated[float, typer.Option(help="Without --val: share of each class that is held out.")] = 0.2,
    fine_tune: Annotated[
        bool, typer.Option("--fine-tune", help="Train the whole network, from the linear head on; best on a GPU.")
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="With --fine-tune: most passes over the images.")] = 20,
    batch_size: Annotated[int, typer.Option(min=2, help="With --fine-tune: images a step.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and folder give the same model.")] = 0,
    json: _Json = False,
    report: _Report = None,
    settings: Settings,
) -> None:
    """Your own classes: a model folder from a folder of folders, on top of a pretrained model."""
    from app.models import require_torch

    require_torch("training")
    from app.commands.evaluate import table
    from app.commands.reports import page
    from app.commands.train.plan import Plan
    from app.commands.train.progress import Bars
    from app.commands.train.report import write
    from app.commands.train.run import run
    from app.telemetry.logging import configure_logging

    configure_logging(settings.log_format, "warning")
    page.check(report)
    plan = Plan(folder, out_folder, val, holdout, seed, fine_tune, epochs, batch_size)
    try:
        trained = run(plan, settings, Bars(err))
    except KeyboardInterrupt:
        err.print("interrupted; nothing was written, and the features computed so far are kept")
        raise typer.Exit(130) from None
    if report:
        write(trained, report, settings.max_pixels)
    for note in trained.evaluation.notes:
        say(err, note, "yellow")
    if json:
        out.file.write(orjson.dumps(trained.as_dict()).decode() + "\n")
        return
    for line in trained.words():
        say(out, line)
    table.show(trained.evaluation, out)
    say(out, f"written: {out_folder}; serve it with: topk serve --model {quote(str(out_folder))}")


def _images(files: Iterable[Path]) -> Iterable[Path]:
    for path in files:
        if path.is_dir():
            yield from sorted(child for child in path.rglob("*") if child.is_file())
        else:
            yield path


@dataclass(frozen=True, slots=True)
class Asked:
    """What is asked of each image. ``sure`` is what the answer from WordNet has to reach, None where none is wanted."""

    top_k: int | None
    min_score: float
    sure: float | None


def _sure(taxonomy: bool, confidence: float | None) -> float | None:
    from app.imagenet.taxonomy import CONFIDENCE

    if confidence is None:
        return CONFIDENCE if taxonomy else None
    if not taxonomy:
        raise ModelError("--confidence is that of the answer from WordNet, which --taxonomy asks for")
    if not 0 < confidence <= 1:
        raise ModelError("--confidence must be more than 0 and at most 1")
    return confidence


def _predict(paths: list[Path], asked: Asked, settings: Settings) -> list[dict[str, Any]]:
    from app import loading
    from app.classifier import Classifier
    from app.telemetry.logging import configure_logging

    configure_logging(settings.log_format, "warning")
    classifier = Classifier(settings)
    with err.status("loading the model"):
        loading.load(classifier)
    try:
        if asked.top_k and asked.top_k > len(classifier.model.labels):
            raise ModelError(f"--top-k {asked.top_k} is more than the model's {len(classifier.model.labels)} classes")
        if asked.sure and classifier.taxonomy is None:
            raise ModelError("--taxonomy: the model's classes have no place in WordNet")
        if classifier.model.warning:
            say(err, f"warning: {classifier.model.warning}", "yellow")
        return asyncio.run(_classify(classifier, paths, asked))
    finally:
        classifier.close()


async def _classify(classifier: Any, paths: list[Path], asked: Asked) -> list[dict[str, Any]]:
    from app.engine import Want

    want = Want(k=asked.top_k or _TOP_K, probabilities=asked.sure is not None)
    at_once = asyncio.Semaphore(_AT_ONCE)
    progress = Progress(console=err, transient=True, disable=len(paths) < 2)
    task = progress.add_task("classifying", total=len(paths))

    async def one(path: Path) -> dict[str, Any]:
        async with at_once:
            try:
                content = await asyncio.to_thread(_read, path)
                result = await classifier.classify(content, want, time.monotonic() + _PREDICT_S)
            except OSError as error:
                return {
                    "file": shown(path),
                    "error": {"code": "unreadable_file", "detail": error.strerror or str(error)},
                }
            except TopkError as error:
                return {"file": shown(path), "error": {"code": error.code, "detail": error.detail}}
            finally:
                progress.advance(task)
            answer = {
                "file": shown(path),
                "model": classifier.model.name,
                "weights": classifier.model.weights,
                "predictions": [asdict(p) for p in classifier.predictions(result.row, asked.min_score)],
            }
            if asked.sure is None:
                return answer
            return answer | asdict(classifier.taxonomy.placing(result.row.probabilities, asked.sure))

    with progress:
        return list(await asyncio.gather(*map(one, paths)))


def _read(path: Path) -> bytes:
    content = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
    if not content:
        raise EmptyBody("the file is empty")
    return content


def _table(answer: dict[str, Any]) -> Table:
    table = Table(Column("score", justify="right"), "label", "wnid", title=answer["file"], title_justify="left")
    for prediction in answer["predictions"]:
        table.add_row(f"{prediction['score']:.4f}", prediction["label"], prediction["wnid"] or "")
    return table


def _tree(answer: dict[str, Any]) -> Group:
    """The way down through WordNet, and the answer, which mostly lies on it."""
    sure = answer["answer"]

    def line(node: dict[str, Any]) -> Text:
        return Text(f"{node['label']} {node['score']:.4f}", style="bold green" if node == sure else "")

    root, *below = answer["taxonomy"]
    tree = branch = Tree(line(root), guide_style="dim")
    tree.ASCII_GUIDES = ("  ", "| ", "+ ", "` ")  # narrow: there may be eighteen steps
    tree.TREE_GUIDES = [("  ", "│ ", "├ ", "└ ")] * 3
    for node in below:
        branch = branch.add(line(node))
    return Group(tree, Text.assemble("answer: ", line(sure), f" {sure['wnid']}\n"))


def main() -> None:
    """Entry point: errors of the user's making are one plain line and exit code 1."""
    try:
        app()
    except (EvaluationError, LoadTestError, ModelError, ReportError, TrainingError) as error:
        say(err, f"topk: {error.detail}", "red")
        sys.exit(1)
