"""``topk export``: write any servable model as a folder, in int8 on request if its accuracy holds."""

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
    """The int8 model breaks the accuracy rule."""


def export(
    settings: Settings, out: Path, calibrate: Path | None, force: bool, weights: bool, step: Step
) -> Judgement | None:
    """Write the model that ``settings`` name into ``out``. Return the judgement of an int8 model.

    Without ``weights``, the folder has no weights for torch and only OpenVINO can serve it. ``step`` is called with the
    name of each phase. Raises ModelError, and RuleBroken if the int8 model breaks the accuracy rule and ``force`` is
    false; nothing is written then.
    """
    folder.check_target(out)
    if (settings.precision == "int8") != (calibrate is not None):
        raise ModelError("--precision int8 and --calibrate DIR, a folder of your photographs, must be given together")
    step("loading the model")
    model = models.resolve(settings)
    if not calibrate:
        step("converting the model")
        folder.write(model, out, weights=weights, precision=settings.precision)
        return None
    photographs = read(calibrate, model.preprocessing, model.labels, settings.max_pixels, step)
    return _export_int8(model, out, photographs, force, weights, step)


def _export_int8(
    model: Model, out: Path, photographs: Photographs, force: bool, weights: bool, step: Step
) -> Judgement:
    step("converting the model")
    network = to_openvino(model)
    judgement = judge(network, photographs, step)
    if not judgement.holds and not force:
        raise RuleBroken(f"int8 changes too many predictions: {judgement}; use --force to write the model anyway")
    step("calibrating on all photographs")
    if model.training:  # they were measured in float32
        model = replace(model, training=replace(model.training, metrics={}))
    folder.write(model, out, weights=weights, precision="int8", network=quantize(network, photographs.served))
    return judgement
