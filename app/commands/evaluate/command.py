"""The options of ``topk evaluate``."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from app.commands.console import err, note, out, print_json, print_line
from app.commands.options import MODEL_OPTIONS, ApiKey, Json, Report, with_settings
from app.settings import Settings


class Reference(StrEnum):
    """Precisions of the reference."""

    float32 = "float32"
    bfloat16 = "bfloat16"


@with_settings(*MODEL_OPTIONS)
def evaluate(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="A folder with one folder of images per class, named by wnid, label or index; or a CSV file with the"
            " header file,label.",
        ),
    ],
    *,
    url: Annotated[
        str | None,
        typer.Option(
            help="Evaluate a running topk. The model options then describe the reference.", show_default=False
        ),
    ] = None,
    api_key: ApiKey = None,
    compare: Annotated[
        Reference | None,
        typer.Option(
            help="Also run the reference, torch in this precision with every pixel decoded, and print the agreement.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    report: Report = None,
    settings: Settings,
) -> None:
    """Measure accuracy on labelled images.

    If interrupted, the same command resumes where it stopped.
    """
    from app.commands.evaluate import table
    from app.commands.evaluate.evaluation import EvaluationPlan, evaluated
    from app.commands.evaluate.progress import EvaluationProgress
    from app.commands.evaluate.report import PICTURES, write
    from app.commands.reports import page
    from app.telemetry.logging import configure_logging

    configure_logging(settings.log_format, "warning")
    page.check(report)
    progress = EvaluationProgress(err)
    plan = EvaluationPlan(images, url, api_key, compare, explain=PICTURES if report else 0)
    try:
        with evaluated(plan, settings, progress) as evaluation:
            if report:
                write(evaluation, report, settings.max_pixels)
            for text in evaluation.notes:
                note(text)
            if json:
                print_json(evaluation.as_dict())
            else:
                table.print_evaluation(evaluation, out)
    except KeyboardInterrupt:
        print_line(err, progress.interrupted)
        raise typer.Exit(130) from None
