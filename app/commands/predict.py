"""``topk predict``: files to predictions, in this process."""

import asyncio
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Group
from rich.progress import Progress
from rich.table import Column, Table
from rich.text import Text
from rich.tree import Tree

from app.commands.console import err, note, out, print_json, print_line, warn
from app.commands.filenames import exact, left_out, printable
from app.commands.options import MODEL_OPTIONS, JsonLines, with_settings
from app.errors import EmptyBody, ModelError, TopkError
from app.settings import Settings

if TYPE_CHECKING:
    from app.classifier import Classifier
    from app.commands.inference import Outcome
    from app.images.files import ImageFiles

STDIN = Path("-")
_TOP_K = 5


@dataclass(frozen=True, slots=True)
class PredictionOptions:
    """Options of ``predict``. ``confidence`` is None unless the taxonomy is printed."""

    top_k: int | None
    min_score: float
    confidence: float | None


@with_settings(*MODEL_OPTIONS)
def predict(
    files: Annotated[list[Path], typer.Argument(help="Image files, folders of image files, or - for stdin.")],
    *,
    top_k: Annotated[
        int | None,
        typer.Option(min=1, help="Number of classes. [default: 5, or all if the model has fewer]", show_default=False),
    ] = None,
    min_score: Annotated[float, typer.Option(min=0, max=1, help="Omit classes with a lower score.")] = 0.0,
    taxonomy: Annotated[
        bool,
        typer.Option(
            "--taxonomy",
            help="Add the path of each image through WordNet, and the most specific synset whose score reaches"
            " --confidence.",
        ),
    ] = False,
    confidence: Annotated[
        float | None,
        typer.Option(
            help="With --taxonomy: minimum score of that synset, more than 0 and at most 1. [default: 0.9]",
            show_default=False,
        ),
    ] = None,
    json: JsonLines = False,
    settings: Settings,
) -> None:
    """Classify image files.

    Prints a table for each file, or one JSON object per line with --json. The exit code is 1 if a file cannot be
    classified or a folder cannot be read. Files in a folder that are not images are skipped.
    """
    options = PredictionOptions(top_k, min_score, _confidence(taxonomy, confidence))
    found = _paths(files)
    for text in left_out(found.skipped):
        note(text)
    answers = _answers(found.paths, options, settings)
    for answer in answers:
        if json:
            print_json(answer)
        elif "error" in answer:
            print_line(err, f"{printable(answer['file'])}: {answer['error']['detail']}")
        else:
            out.print(_table(answer))
            if taxonomy:
                out.print(_tree(answer))
    raise typer.Exit(any("error" in answer for answer in answers) or bool(found.skipped.unreadable))


def _confidence(taxonomy: bool, confidence: float | None) -> float | None:
    from app.imagenet.taxonomy import answer_confidence

    try:
        return answer_confidence(taxonomy, confidence)
    except ValueError as error:
        raise ModelError(f"--{error}") from error


def _paths(files: Sequence[Path]) -> "ImageFiles":
    """The files to classify, those in folders included. Raises ModelError before any work if one does not exist."""
    from app.commands.files import Finder
    from app.images.files import ImageFiles, Skipped, find_images

    finder = Finder()
    files = [path if path == STDIN else finder.find(path) for path in files]
    if missing := [printable(path) for path in files if path != STDIN and not path.exists()]:
        raise ModelError(f"no such file or folder: {', '.join(missing)}")
    paths: list[Path] = []
    skipped = Skipped()
    for path in files:
        if path.is_dir():
            try:
                images = find_images(path)
            except OSError as error:
                raise ModelError(f"{printable(path)} cannot be read: {error.strerror}") from error
            paths += images.paths
            skipped.add(images.skipped)
        else:
            paths.append(path)
    if not paths:
        raise ModelError("; ".join([f"no image files in {', '.join(map(printable, files))}", *left_out(skipped)]))
    return ImageFiles(tuple(paths), skipped)


def _answers(paths: Sequence[Path], options: PredictionOptions, settings: Settings) -> list[dict[str, Any]]:
    from app.commands import inference
    from app.engine import Want
    from app.telemetry.logging import configure_logging

    configure_logging(settings.log_format, "warning")
    with err.status("loading the model"):
        classifier = inference.load(settings)
    try:
        _check(classifier, options)
        if classifier.model.warning:
            warn(classifier.model.warning)
        want = Want(k=options.top_k or _TOP_K, probabilities=options.confidence is not None)
        found: dict[int, dict[str, Any]] = {}
        with Progress(console=err, transient=True, disable=len(paths) < 2 or not err.is_terminal) as progress:
            task = progress.add_task("classifying", total=len(paths))

            def done(position: int, outcome: "Outcome") -> None:
                found[position] = {"file": exact(paths[position])} | _answer(classifier, outcome, options)
                progress.advance(task)

            inference.classify_files(classifier, paths, want, done, _read)
        return [found[position] for position in range(len(paths))]
    finally:
        classifier.close()


def _check(classifier: "Classifier", options: PredictionOptions) -> None:
    classes = len(classifier.model.labels)
    if options.top_k and options.top_k > classes:
        raise ModelError(f"--top-k {options.top_k} is more than the model's {classes} classes")
    if options.confidence and classifier.taxonomy is None:
        raise ModelError("--taxonomy: the model's classes are not in WordNet")


def _answer(classifier: "Classifier", outcome: "Outcome", options: PredictionOptions) -> dict[str, Any]:
    """The members of the JSON object that follow ``file``."""
    if isinstance(outcome, TopkError):
        return {"error": {"code": outcome.code, "detail": outcome.detail}}
    if isinstance(outcome, OSError):
        return {"error": {"code": "unreadable_file", "detail": outcome.strerror or str(outcome)}}
    answer = {
        "model": classifier.model.name,
        "weights": classifier.model.weights,
        "predictions": [asdict(p) for p in classifier.predictions(outcome, options.min_score)],
    }
    if options.confidence is None or classifier.taxonomy is None or outcome.probabilities is None:
        return answer
    return answer | asdict(classifier.taxonomy.placing(outcome.probabilities, options.confidence))


async def _read(path: Path) -> bytes:
    from app.commands.files import read_file

    if path != STDIN:
        return await read_file(path)
    content: bytes = await asyncio.to_thread(sys.stdin.buffer.read)
    if not content:
        raise EmptyBody("standard input is empty")
    return content


def _table(answer: dict[str, Any]) -> Table:
    title = printable(answer["file"])
    table = Table(Column("score", justify="right"), "label", "wnid", title=title, title_justify="left")
    for prediction in answer["predictions"]:
        table.add_row(f"{prediction['score']:.4f}", prediction["label"], prediction["wnid"] or "")
    return table


def _tree(answer: dict[str, Any]) -> Group:
    """The path from WordNet's root to the best class, and the answer, which is usually on it."""
    confident = answer["answer"]

    def line(node: dict[str, Any]) -> Text:
        return Text(f"{node['label']} {node['score']:.4f}", style="bold green" if node == confident else "")

    root, *below = answer["taxonomy"]
    tree = branch = Tree(line(root), guide_style="dim")
    tree.ASCII_GUIDES = ("  ", "| ", "+ ", "` ")  # narrow, because a path may have 18 steps
    tree.TREE_GUIDES = [("  ", "│ ", "├ ", "└ ")] * 3
    for node in below:
        branch = branch.add(line(node))
    return Group(tree, Text.assemble("answer: ", line(confident), f" {confident['wnid']}\n"))
