"""From a name to a servable model. Resolving may download weights and imports torch only if that is necessary."""

import importlib.util
import os
from dataclasses import replace
from pathlib import Path

from app.errors import ModelError, NotConvertible
from app.models import cache, catalogue, download, embedded, folder
from app.models.architecture import network as network
from app.models.model import Model
from app.models.names import TIMM, is_checkpoint, is_path
from app.settings import Settings

AUTO = "resnet50"
AUTO_WEIGHTS = "IMAGENET1K_V2"
AUTO_URL = "https://download.pytorch.org/models/resnet50-11ad3fa6.pth"  # torchvision's, known here without torch


def resolve(settings: Settings, converted: bool = False) -> Model:
    """The model that ``settings`` name, with its weights on disk. ``converted`` is for OpenVINO and needs no torch.

    Blocks, and may download. Raises ModelError, and NotConvertible if OpenVINO cannot run the model.
    """
    spec = check(settings)
    model = _auto(settings, converted) if spec == "auto" else _named(settings, spec, converted)
    return replace(model, name=settings.model_name) if settings.model_name else model


def check(settings: Settings) -> str:
    """What to resolve: ``settings.model``, or the mounted model folder if that is ``auto``.

    Raises ModelError for a model, a file or a combination of both that cannot be served. Takes milliseconds: it reads
    no weights and imports no framework.
    """
    spec = settings.model
    if spec == "auto" and (mounted := _mounted(settings.model_folders)):
        spec = f"{mounted}{os.sep}"
    if spec == "auto":
        if settings.weights:
            raise ModelError("weights need the architecture they are for: add it, such as --model resnet50")
        require_torch("the model auto")
    else:
        _check_named(settings, spec)
    return spec


def require_torch(purpose: str) -> None:
    """Raise ModelError if PyTorch is not installed. The slim container image does not contain it."""
    if importlib.util.find_spec("torch") is None:
        raise ModelError(
            f"{purpose} needs PyTorch, which is not installed; without it, topk serves model folders written by"
            " `topk export`, on a CPU"
        )


def _check_named(settings: Settings, spec: str) -> None:
    if folder.is_folder(spec):
        if settings.weights:
            raise ModelError(f"{spec} is a model folder, which contains its weights; remove --weights")
    elif is_checkpoint(spec):
        _check_checkpoint(settings, spec)
    else:
        _check_architecture(settings, spec)


def _check_checkpoint(settings: Settings, spec: str) -> None:
    if settings.weights:
        raise ModelError(f"{spec} is a checkpoint, which contains its weights; remove --weights")
    if not settings.trust_checkpoint:
        if not os.path.exists(Path(spec).expanduser()):
            raise ModelError(f"{spec} does not exist")
        raise ModelError(
            f"{spec} is a pickled checkpoint: loading it runs any code that its author put into it. If you trust it,"
            " set TOPK_TRUST_CHECKPOINT=true"
        )
    require_torch(f"the checkpoint {spec}")
    if importlib.util.find_spec("ultralytics") is None:
        raise ModelError(f"the checkpoint {spec} needs Ultralytics: pip install '.[ultralytics]'")


def _check_architecture(settings: Settings, spec: str) -> None:
    architecture, _, entry = spec.partition(":")
    if architecture == embedded.NAME and (settings.weights or entry):
        raise ModelError(f"{embedded.NAME} has built-in weights only; remove --weights and the weights entry")
    if is_path(spec):
        raise ModelError(_not_a_model(spec))
    require_torch(f"the model {spec}")
    catalogue.check(spec)
    if settings.weights:
        download.check_file(settings.weights.expanduser())


def _not_a_model(path: str) -> str:
    """Why ``path``, which is not a model folder, cannot be served."""
    if not os.path.exists(path):
        return f"{path} does not exist"
    if os.path.isdir(path):
        return f"{path} is not a model folder: it has no {folder.DESCRIPTION}"
    return f"{path} is a file; weights need the architecture they are for: --model ARCHITECTURE --weights {path}"


def _named(settings: Settings, spec: str, converted: bool) -> Model:
    if folder.is_folder(spec):
        return folder.load(Path(spec))
    if is_checkpoint(spec):
        path = Path(spec).expanduser()
        if converted:
            return cache.converted(str(path), None, settings.cache_dir)
        from app.models import ultralytics

        return ultralytics.from_checkpoint(path)
    weights = settings.weights.expanduser() if settings.weights else None
    return cache.converted(spec, weights, settings.cache_dir) if converted else _built(spec, weights)


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
    """The first of the folders that is not empty."""
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
    try:
        download.fetch(AUTO_URL)
        return _named(settings, f"{AUTO}:{AUTO_WEIGHTS}", converted)
    except NotConvertible:
        raise
    except ModelError as error:
        return replace(
            _named(settings, embedded.NAME, converted),
            warning=f"serving the small embedded EfficientNet-Lite0 instead of {AUTO}: {error.detail}. Set the model"
            f" to {AUTO} to get an error instead of this fallback",
        )
