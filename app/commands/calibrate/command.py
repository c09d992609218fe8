"""The options of ``topk calibrate``."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from app.commands.console import err, note, out, print_json, print_line
from app.commands.options import MODEL_OPTIONS, Json, with_settings
from app.settings import Settings


@with_settings(*MODEL_OPTIONS)
def calibrate(
    images: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Labelled photographs that the model was not trained on: a folder with one folder of images per class,"
            " named by wnid, label or index; or a CSV file with the header file,label.",
        ),
    ],
    *,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Model folder to write: a new or an empty folder, or the model's own. By default the model's own, if"
            " --model is a folder.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
    settings: Settings,
) -> None:
    """Calibrate a model on labelled images.

    Afterwards its scores match how often the answers are right, and `coverage` and `unknown` are available. Writes a
    model folder. By default, calibrates every precision that this machine supports natively. If interrupted, the same
    command resumes where it stopped.
    """
    from app.commands.calibrate.run import run
    from app.commands.calibrate.table import print_calibration
    from app.commands.evaluate.progress import EvaluationProgress
    from app.telemetry.logging import configure_logging

    configure_logging(settings.log_format, "warning")
    progress = EvaluationProgress(err)
    try:
        calibrated = run(images, settings, out_folder, progress)
    except KeyboardInterrupt:
        print_line(err, progress.interrupted)
        raise typer.Exit(130) from None
    for text in calibrated.notes:
        note(text)
    if json:
        print_json({"out": str(calibrated.out), "precisions": [one.as_dict() for one in calibrated.measured]})
        return
    print_calibration(calibrated, out)
    print_line(out, f"written: {calibrated.out}; serve it with: topk serve --model {quote(str(calibrated.out))}")
