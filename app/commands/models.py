"""``topk models``: the models that can be served."""

from dataclasses import asdict
from typing import Annotated

import typer
from rich import box
from rich.table import Column, Table

from app.commands.console import out, print_json
from app.commands.options import JsonLines
from app.errors import ModelError


def models(
    *,
    timm: Annotated[
        str | None,
        typer.Option(help="List timm's models whose name matches this pattern: 'convnext*'.", show_default=False),
    ] = None,
    json: JsonLines = False,
) -> None:
    """List the models that can be served.

    Shows each model's weights, size and published accuracy, and whether its weights are in the cache.
    """
    from app.models import require_torch

    require_torch("the list of models")
    if timm is None:
        _torchvision_models(json)
    else:
        _timm_models(timm, json)


def _torchvision_models(json: bool) -> None:
    from app.models import download, zoo

    entries = [(entry, download.cached(entry.url) is not None) for entry in zoo.entries()]
    if json:
        for entry, cached in entries:
            print_json(asdict(entry) | {"cached": cached})
        return
    table = Table(
        *(Column(name, no_wrap=True) for name in ("model", "weights")),
        *(Column(name, justify="right", no_wrap=True) for name in ("M params", "MB", "top-1", "top-5")),
        "cached",
        box=box.SIMPLE_HEAD,
        padding=0,
    )
    for entry, cached in entries:
        table.add_row(
            entry.architecture,
            entry.name + ("*" if entry.default else ""),
            f"{entry.parameters / 1e6:.1f}",
            f"{entry.megabytes:.0f}",
            *(f"{value:.2f}" for value in entry.accuracy),
            "yes" if cached else "",
        )
    out.print(table)
    out.print(
        "* The weights used if a model is named without weights. Accuracy is in per cent on the validation set of"
        " ImageNet-1k, as published by torchvision. efficientnet_lite0 is built in and needs no download."
        " --timm '*' lists timm's models.",
        highlight=False,
    )


def _timm_models(pattern: str, json: bool) -> None:
    from app.models.timm import entries

    found = entries(pattern)
    if not found:
        raise ModelError(f"no servable timm model matches {pattern!r}; --timm '*' lists all of them")
    if json:
        for entry in found:
            print_json(entry)
        return
    headers = (Column(name, justify="right", no_wrap=True) for name in ("classes", "resize", "crop"))
    table = Table(Column("model", no_wrap=True), *headers, "interpolation", "cached", box=box.SIMPLE_HEAD, padding=0)
    for entry in found:
        resize = f"{entry.resize}x{entry.resize}" if entry.squash else str(entry.resize)
        sizes = (str(entry.classes), resize, str(entry.crop))
        table.add_row(f"timm:{entry.name}", *sizes, entry.interpolation, "yes" if entry.cached else "")
    out.print(table)
