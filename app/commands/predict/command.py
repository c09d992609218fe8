"""The options of ``topk predict``."""

from pathlib import Path
from typing import Annotated

import typer

from app.commands.console import note, print_json
from app.commands.filenames import left_out
from app.commands.options import MODEL_OPTIONS, JsonLines, with_settings
from app.errors import ModelError
from app.settings import Settings


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
    coverage: Annotated[
        float | None,
        typer.Option(
            help="Add a set of classes that contains the true one with this probability, between 0 and 1, and the"
            " typicality of the image. With --taxonomy, the answer then contains the whole set. Needs a model that"
            " `topk calibrate` has calibrated.",
            show_default=False,
        ),
    ] = None,
    unknown: Annotated[
        float | None,
        typer.Option(
            help="Add the typicality of the image, and mark the image as unknown if that is at most this value, between"
            " 0 and 1. Needs a calibrated model.",
            show_default=False,
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            "--explain",  # the setting of this name is another thing
            help="Write the image with the class activation map of the best class and the frame of the crop. Give a"
            " .png file for one image, or a folder for several: IMAGE.jpg becomes IMAGE.jpg.png.",
            show_default=False,
        ),
    ] = None,
    explain_class: Annotated[
        str | None,
        typer.Option(
            metavar="<class>",
            help="With --explain: explain this class instead, a class id or a wnid.",
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
    from app.commands.predict import answers, inputs, pictures
    from app.commands.predict.table import print_answer

    if explain_class and not picture:
        raise ModelError("--explain-class requires --explain, which names the picture")
    options = answers.options(
        top_k=top_k,
        min_score=min_score,
        taxonomy=taxonomy,
        confidence=confidence,
        coverage=coverage,
        unknown=unknown,
        explain=(explain_class or answers.BEST_CLASS) if picture else None,
    )
    found = inputs.find(files)
    for text in left_out(found.skipped):
        note(text)
    drawn = pictures.targets(picture, found.paths) if picture else []
    answered = answers.answer_files(found.paths, drawn, options, settings)
    for answer in answered:
        if json:
            print_json(answer)
        else:
            print_answer(answer, options)
    raise typer.Exit(any("error" in answer for answer in answered) or bool(found.skipped.unreadable))
