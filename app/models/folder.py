"""Model folders: ``model.json``, ``model.safetensors`` and the engine's own files. Nothing is pickled.

``openvino.xml`` and ``openvino.bin`` contain the network from pixels to features and logits (see ``convert``).
"""

from __future__ import annotations

import importlib.metadata
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from app import __version__
from app.calibration import stored
from app.calibration.stored import Identity
from app.errors import ModelError
from app.imagenet.labels import Label
from app.images import Preprocessing
from app.models import download
from app.models.architecture import network
from app.models.model import Model, Training
from app.models.names import ULTRALYTICS, allowed_name

if TYPE_CHECKING:
    from torch import nn

    from app.models.openvino import ov

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
OPENVINO = "openvino.xml"
_OPENVINO_WEIGHTS = "openvino.bin"
FORMAT = 1
_MAX_EDGE = 8192  # pixels


class Description(BaseModel):
    """``model.json``. ``files`` maps each file's name to its SHA-256.

    ``parent`` and ``metrics`` are set by `topk train`: see ``Training``.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int
    architecture: str
    weights: str
    digest: str
    preprocessing: Preprocessing
    labels: tuple[tuple[str, str | None], ...]
    precision: str
    files: dict[str, str]
    versions: dict[str, str]
    parent: str | None = None
    metrics: dict[str, Any] | None = None


def is_folder(path: str | os.PathLike[str]) -> bool:
    """Whether ``path`` is a model folder."""
    return os.path.isfile(os.path.join(path, DESCRIPTION))


def load(folder: Path) -> Model:
    """The model in a folder, named after the folder. Checks the files' digests. Raises ModelError."""
    description = _read(folder)
    ir = folder / OPENVINO
    has_ir = OPENVINO in description.files
    if has_ir:
        _verify(folder, description, OPENVINO, _OPENVINO_WEIGHTS)
    return Model(
        name=allowed_name(folder.resolve().name),
        architecture=description.architecture,
        weights=description.weights,
        digest=description.digest,
        preprocessing=description.preprocessing,
        labels=_labels(description),
        build=lambda: _build(folder, description),
        precision=description.precision,
        openvino=ir if has_ir else None,
        training=Training(description.parent, description.metrics or {}) if description.parent else None,
        calibrations=stored.load(folder, _identity(description)),
    )


def identity(folder: Path) -> Identity:
    """What a calibration of the model in a folder is bound to. Raises ModelError."""
    return _identity(_read(folder))


def _identity(description: Description) -> Identity:
    network = description.files[_OPENVINO_WEIGHTS] if description.precision == "int8" else None
    return Identity.of(description.digest, _labels(description), description.preprocessing, network)


def _labels(description: Description) -> tuple[Label, ...]:
    return tuple(Label(label, wnid) for label, wnid in description.labels)


def copy_calibration(source: Path, target: Path) -> None:
    """Copy the calibration of one model folder into another one with the same model; do nothing if there is none.

    Raises ModelError.
    """
    if is_folder(source) and (mine := identity(target)) == identity(source) and (found := stored.load(source, mine)):
        stored.write(target, mine, found)


def check_target(folder: Path) -> None:
    """Raise ModelError unless ``folder`` is empty or does not exist."""
    try:
        if os.path.lexists(folder) and any(folder.iterdir()):
            raise ModelError(f"{folder} is not empty; choose a new folder")
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror or error}") from error


def write(
    model: Model,
    folder: Path,
    *,
    weights: bool = True,
    precision: str = "auto",
    network: ov.Model | None = None,
) -> None:
    """Write ``model`` into ``folder``, which must be empty or not exist.

    ``weights=False`` omits the safetensors file; only OpenVINO can serve such a folder. ``network`` replaces the
    converted float32 network. Raises ModelError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    from app.models.convert import to_openvino
    from app.models.openvino import ov

    check_target(folder)
    built = model.build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if weights and not model.architecture.startswith(ULTRALYTICS):  # that network exists only as a pickle
            with _write_errors(SafetensorError):
                save_model(built, str(folder / WEIGHTS))
            os.chmod(folder / WEIGHTS, 0o644)  # safetensors makes it readable for its owner only
        network = network or to_openvino(model, built)
        with _write_errors(RuntimeError):
            ov.save_model(network, folder / OPENVINO, compress_to_fp16=False)
        files = {path.name: download.sha256(path) for path in sorted(folder.iterdir())}
        description = Description(
            format=FORMAT,
            architecture=model.architecture,
            weights=model.weights,
            digest=model.digest,
            preprocessing=model.preprocessing,
            labels=tuple((label.label, label.wnid) for label in model.labels),
            precision=precision,
            files=files,
            versions=_versions(),
            parent=model.training.parent if model.training else None,
            metrics=model.training.metrics or None if model.training else None,
        )
        _write(folder, description)
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error}") from error


def add_metrics(folder: Path, metrics: dict[str, Any]) -> None:
    """Add a trained model's metrics to its description. Raises ModelError."""
    try:
        _write(folder, _read(folder).model_copy(update={"metrics": metrics}))
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error}") from error


def _write(folder: Path, description: Description) -> None:
    document = description.model_dump(mode="json", exclude_none=True)
    document |= {"preprocessing": asdict(description.preprocessing)}
    (folder / DESCRIPTION).write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


@contextmanager
def _write_errors(library_error: type[Exception]) -> Iterator[None]:
    """Convert a library's own error for a file that cannot be written to OSError."""
    try:
        yield
    except library_error as error:
        raise OSError(f"a file could not be written; the disk may be full ({error})") from error


def _versions() -> dict[str, str]:
    names = ("torch", "torchvision", "timm", "openvino")
    return {"topk": __version__} | {name: importlib.metadata.version(name) for name in names}


def _read(folder: Path) -> Description:
    try:
        document: Any = orjson.loads((folder / DESCRIPTION).read_bytes())
        description = Description.model_validate(document)
    except OSError as error:
        raise ModelError(f"{folder / DESCRIPTION} cannot be read: {error}") from error
    except orjson.JSONDecodeError as error:
        raise ModelError(f"{folder / DESCRIPTION} is not a model description: {error}") from error
    except ValidationError as error:
        raise ModelError(f"{folder / DESCRIPTION} is not a model description: {_wrong(error)}") from error
    if description.format != FORMAT:
        raise ModelError(f"{folder} has format {description.format}; this version of topk reads format {FORMAT}")
    missing = [name for name in (OPENVINO, _OPENVINO_WEIGHTS) if name not in description.files]
    if description.precision == "int8" and missing:
        raise ModelError(
            f"{folder / DESCRIPTION} is not a model description: files has no {', '.join(missing)}, which an int8 model"
            " needs"
        )
    preprocessing = description.preprocessing
    sizes = 1 <= preprocessing.crop <= preprocessing.resize <= _MAX_EDGE
    finite = all(map(math.isfinite, preprocessing.mean)) and all(0 < std < math.inf for std in preprocessing.std)
    if not (sizes and finite):
        raise ModelError(
            f"{folder / DESCRIPTION} is not a model description: invalid preprocessing {asdict(preprocessing)}"
        )
    return description


def _wrong(error: ValidationError) -> str:
    """The missing members, or the first invalid one."""
    found = [(".".join(map(str, fault["loc"])), fault) for fault in error.errors()]
    if missing := [place for place, fault in found if fault["type"] == "missing"]:
        return f"it has no {', '.join(missing)}"
    place, first = found[0]
    return f"{place}: {first['msg']}" if place else "it is not a JSON object"


def _verify(folder: Path, description: Description, *names: str) -> None:
    for name in names:
        if download.sha256(folder / name) != description.files.get(name):
            raise ModelError(f"{folder / name} is damaged: its SHA-256 is not the one in {DESCRIPTION}")


def _build(folder: Path, description: Description) -> nn.Module:
    from app.models.files import load_state, read_state
    from app.models.split import set_classes

    if WEIGHTS not in description.files:
        raise ModelError(f"{folder} has no {WEIGHTS}; only the engine openvino can serve it")
    _verify(folder, description, WEIGHTS)
    module = network(description.architecture, description.preprocessing.crop)
    if description.parent:
        set_classes(module, len(description.labels))
    load_state(module, read_state(folder / WEIGHTS), description.architecture, str(folder / WEIGHTS))
    return module
