"""From a name to a servable model. Resolving may download weights; torch is imported only when that is needed."""

from dataclasses import replace

from app.errors import ModelError
from app.models.model import Model
from app.settings import Settings

EMBEDDED = "efficientnet_lite0"
AUTO = "resnet50"
AUTO_WEIGHTS = "IMAGENET1K_V2"


def resolve(settings: Settings) -> Model:
    """The model that ``settings`` name, its weights on disk. Blocks, may download. Raises ModelError."""
    model = _auto(settings) if settings.model == "auto" else _named(settings)
    return replace(model, name=settings.model_name) if settings.model_name else model


def _named(settings: Settings) -> Model:
    from app.models import zoo

    architecture, _, entry = settings.model.partition(":")
    if architecture == EMBEDDED:
        from app.models.embedded import embedded

        if settings.weights or entry:
            raise ModelError(f"{EMBEDDED} is served with its own weights only")
        return embedded()
    if settings.weights:
        return zoo.from_file(architecture, entry or None, settings.weights.expanduser())
    return zoo.official(architecture, entry or None)


def _auto(settings: Settings) -> Model:
    from app.models import zoo
    from app.models.embedded import embedded

    if settings.weights:
        raise ModelError("weights need the architecture they are for: name it, as in --model resnet50")
    try:
        return zoo.official(AUTO, AUTO_WEIGHTS)
    except ModelError as error:
        return embedded(
            f"serving the small embedded EfficientNet-Lite0 instead of {AUTO}: {error.detail};"
            f" name the model to have it or an error"
        )
