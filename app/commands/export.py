"""``topk export``: a model as a folder."""

import contextlib
import io
import logging
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from app.commands.console import err, note, out, print_line, warn
from app.commands.filenames import left_out
from app.commands.options import with_settings
from app.settings import Settings

FEW_PHOTOGRAPHS = 100
"""Fewer are too few to judge int8 to a per cent."""


@with_settings("weights", "trust_checkpoint", "precision")
def export(
    model: Annotated[str, typer.Argument(help="The model, named as for `topk serve --model`.")],
    *,
    out_folder: Annotated[Path, typer.Option("--out", help="Folder to write. It must not exist, or be empty.")],
    calibrate: Annotated[
        Path | None, typer.Option(help="Folder with your own photographs, for --precision int8.", show_default=False)
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Write an int8 model even if it breaks the accuracy rule.")
    ] = False,
    openvino_only: Annotated[
        bool, typer.Option("--openvino-only", help="Omit the weights for torch: half the size, for CPUs only.")
    ] = False,
    settings: Settings,
) -> None:
    """Write a model as a folder that starts fast.

    `topk serve --model FOLDER` serves the folder without network access.
    """
    from app import models
    from app.commands import training_images

    models.require_torch("an export")
    from app.models import folder
    from app.models.export import export as run
    from app.telemetry.logging import configure_logging

    settings = settings.model_copy(update={"model": model})
    configure_logging(settings.log_format, "warning")
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # its warnings about CUDA do not matter here
    with err.status("loading") as status, contextlib.redirect_stdout(io.StringIO()):  # NNCF prints progress bars
        show_phase = status.update if err.is_terminal else partial(print_line, err)
        judgement = run(
            settings,
            out_folder,
            calibrate,
            force,
            not openvino_only,
            show_phase,
        )
    source = Path(models.check(settings))
    training_images.copy(source, out_folder)
    folder.copy_calibration(source, out_folder)
    if judgement:
        for text in left_out(judgement.skipped):
            note(text)
        print_line(out, f"int8: {judgement}")
        if judgement.images < FEW_PHOTOGRAPHS:
            warn(
                f"{judgement.images} photographs are few: the figures above are uncertain;"
                f" calibrate with {FEW_PHOTOGRAPHS} or more"
            )
    print_line(out, f"written: {out_folder}; serve it with: topk serve --model {quote(str(out_folder))}")
