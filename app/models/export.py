"""``topk export``: any servable model as a folder, in int8 where that is asked for and its answers hold."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from app import models
from app.errors import ModelError
from app.models import folder
from app.models.convert import to_openvino
from app.models.model import Model
from app.models.quantize import Judgement, Photographs, judge, quantize, read
from app.settings import Settings

Step = Callable[[str], None]


class RuleBroken(ModelError):
    """The int8 model answers otherwise too often."""


def export(
    settings: Settings, out: Path, calibrate: Path | None, force: bool, weights: bool, step: Step
) -> Judgement | None:
    """Write the model that ``settings`` name into ``out``; the judgement where it is int8.

    ``weights`` are what torch reads; without them OpenVINO alone serves the folder. ``step`` is told what is being
    done. Raises ModelError; RuleBroken, with nothing written, where the int8 model breaks the accuracy rule and
    ``force`` is not given.
    """
    folder.check_target(out)
    if (settings.precision == "int8") != (calibrate is not None):
        raise ModelError("--precision int8 and --calibrate DIR, a folder of your photographs, go together")
    step("resolving the model")
    model = models.resolve(settings)
    if not calibrate:
        step("converting")
        folder.write(model, out, weights=weights, precision=settings.precision)
        return None
    photographs = read(calibrate, model.preprocessing, model.labels, settings.max_pixels, step)
    return _export_int8(model, out, photographs, force, weights, step)


def _export_int8(
    model: Model, out: Path, photographs: Photographs, force: bool, weights: bool, step: Step
) -> Judgement:
    step("converting")
    network = to_openvino(model)
    judgement = judge(network, photographs, step)
    if not judgement.holds and not force:
        raise RuleBroken(f"int8 changes too many answers: {judgement}; --force writes it all the same")
    step("calibrating on all photographs")
    if model.training:  # what float32 was measured to do is not what int8 does
        model = replace(model, training=replace(model.training, metrics={}))
    folder.write(model, out, weights=weights, precision="int8", network=quantize(network, photographs.served))
    return judgement
