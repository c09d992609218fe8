"""From a name to a servable model. Resolving may download weights; torch is imported only when that is needed."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

from app.errors import ModelError, NotConvertible
from app.models import cache, download, embedded, folder
from app.models.architecture import TIMM, is_checkpoint, is_path
from app.models.architecture import network as network
from app.models.model import Model
from app.settings import Settings

AUTO = "resnet50"
AUTO_WEIGHTS = "IMAGENET1K_V2"
AUTO_URL = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"  # torchvision's, known here without torch


def resolve(settings: Settings, converted: bool = False) -> Model:
    """The model that ``settings`` name, its weights on disk; ``converted`` for OpenVINO, which needs no torch.

    Blocks, may download. Raises ModelError; NotConvertible where OpenVINO does not take it.
    """
    model = _auto(settings, converted) if settings.model == "auto" else _named(settings, settings.model, converted)
    return replace(model, name=settings.model_name) if settings.model_name else model


def require_torch(purpose: str) -> None:
    """Raise ModelError in one sentence where PyTorch is not installed: the slim container image is without it."""
    if importlib.util.find_spec("torch") is None:
        raise ModelError(
            f"{purpose} needs PyTorch, which is not installed here; what is served without it, on a CPU, is a folder"
            " written by `topk export`"
        )


def _named(settings: Settings, spec: str, converted: bool) -> Model:
    if folder.is_folder(spec):
        if settings.weights:
            raise ModelError(f"{spec} is a model folder: it brings its own weights")
        return folder.load(Path(spec))
    if is_checkpoint(spec):
        return _checkpoint(settings, spec, converted)
    weights = settings.weights.expanduser() if settings.weights else None
    architecture, _, entry = spec.partition(":")
    if architecture == embedded.NAME and (weights or entry):
        raise ModelError(f"{embedded.NAME} is served with its own weights only")
    if is_path(spec):
        raise ModelError(_no_model(spec))
    require_torch(f"the model {spec}")
    if converted:
        return cache.converted(spec, weights, settings.cache_dir)
    return _built(spec, weights)


def _no_model(path: str) -> str:
    """Why what is there cannot be served."""
    if not os.path.exists(path):
        return f"{path} does not exist"
    if os.path.isdir(path):
        return f"{path} is no model folder: it has no {folder.DESCRIPTION}"
    return f"{path} is a file; weights need the architecture they are for: --model ARCHITECTURE --weights {path}"


def _checkpoint(settings: Settings, spec: str, converted: bool) -> Model:
    if settings.weights:
        raise ModelError(f"{spec} is a checkpoint: it brings its own weights")
    path = Path(spec).expanduser()
    if not settings.trust_checkpoint:
        if not os.path.exists(path):
            raise ModelError(f"{spec} does not exist")
        raise ModelError(
            f"{spec} is a checkpoint that has to be unpickled, which runs whatever code its maker put into it;"
            " if you trust it, set TOPK_TRUST_CHECKPOINT=true"
        )
    require_torch(f"the checkpoint {spec}")
    if importlib.util.find_spec("ultralytics") is None:
        raise ModelError(f"the checkpoint {spec} needs Ultralytics: pip install 'topk[ultralytics]'")
    if converted:
        return cache.converted(str(path), None, settings.cache_dir)
    from app.models import ultralytics

    return ultralytics.from_checkpoint(path)


def _built(spec: str, weights: Path | None) -> Model:
    architecture, _, entry = spec.partition(":")
    if architecture == embedded.NAME:
        return embedded.embedded()
    if spec.startswith(TIMM):
        from app.models import timm

        return timm.from_file(entry, weights) if weights else timm.official(entry)
    from app.models import zoo

    return zoo.from_file(architecture, entry or None, weights) if weights else zoo.official(architecture, entry or None)


def _mounted(folders: tuple[Path, ...]) -> Path | None:
    """The first of these that somebody has put something into."""
    for path in folders:
        try:
            if any(path.iterdir()):
                return path
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
    return None


def _auto(settings: Settings, converted: bool) -> Model:
    if found := _mounted(settings.model_folders):
        return _named(settings, f"{found}{os.sep}", converted)
    if settings.weights:
        raise ModelError("weights need the architecture they are for: name it, as in --model resnet50")
    require_torch("the model auto")
    try:
        download.fetch(AUTO_URL)
        return _named(settings, f"{AUTO}:{AUTO_WEIGHTS}", converted)
    except NotConvertible:
        raise
    except ModelError as error:
        return replace(
            _named(settings, embedded.NAME, converted),
            warning=f"serving the small embedded EfficientNet-Lite0 instead of {AUTO}: {error.detail};"
            f" name the model to have it or an error",
        )
