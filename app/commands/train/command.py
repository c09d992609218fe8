"""The options of ``topk train``."""

from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from app.commands.console import err, note, out, print_json, print_line
from app.commands.options import MODEL_OPTIONS, Json, Report, with_settings
from app.settings import Settings


@with_settings(*MODEL_OPTIONS)
def train(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A folder with one folder of images per class, named after the class.")
    ],
    *,
    out_folder: Annotated[Path, typer.Option("--out", help="Model folder to write. It must not exist, or be empty.")],
    val: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Hold out the images of this folder, with the same layout.")
    ] = None,
    holdout: Annotated[float, typer.Option(help="Without --val: share of each class to hold out.")] = 0.2,
    fine_tune: Annotated[
        bool,
        typer.Option("--fine-tune", help="Train the whole network, starting from the linear head. Slow without a GPU."),
    ] = False,
    epochs: Annotated[int, typer.Option(min=1, help="With --fine-tune: maximum number of epochs.")] = 20,
    batch_size: Annotated[int, typer.Option(min=2, help="With --fine-tune: images per step.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and images give the same model.")] = 0,
    json: Json = False,
    report: Report = None,
    settings: Settings,
) -> None:
    """Train a model on your own classes.

    Starts from a pretrained model and writes a model folder, which `topk serve --model FOLDER` serves. The model
    chooses among these classes for every image: it cannot answer "none of them".
    """
    from app.models import require_torch

    require_torch("training")
    from app.commands.evaluate import table
    from app.commands.reports import page
    from app.commands.train.plan import TrainingPlan
    from app.commands.train.progress import TrainingProgress
    from app.commands.train.report import write
    from app.commands.train.run import run
    from app.telemetry.logging import configure_logging

    configure_logging(settings.log_format, "warning")
    page.check(report)
    plan = TrainingPlan(folder, out_folder, val, holdout, seed, fine_tune, epochs, batch_size)
    try:
        trained = run(plan, settings, TrainingProgress(err))
    except KeyboardInterrupt:
        print_line(err, "interrupted; nothing was written, and the features computed so far are kept")
        raise typer.Exit(130) from None
    if report:
        write(trained, report, settings.max_pixels)
    for text in trained.evaluation.notes:
        note(text)
    if json:
        print_json(trained.as_dict())
        return
    for line in trained.summary():
        print_line(out, line)
    table.print_figures(trained.evaluation, out)
    print_line(out, f"written: {out_folder}; serve it with: topk serve --model {quote(str(out_folder))}")
