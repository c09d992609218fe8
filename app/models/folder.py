"""A model as a folder: ``model.json``, ``model.safetensors`` and the engine's own files; nothing is pickled.

``openvino.xml`` and ``openvino.bin`` are the network from grey levels to features and logits (see ``convert``).
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
from app.errors import ModelError
from app.imagenet.labels import Label
from app.images import Preprocessing
from app.models import download
from app.models.architecture import ULTRALYTICS, allowed_name, network
from app.models.model import Model, Training

if TYPE_CHECKING:
    from torch import nn

    from app.models.openvino import ov

DESCRIPTION = "model.json"
WEIGHTS = "model.safetensors"
OPENVINO = "openvino.xml"
_OPENVINO_WEIGHTS = "openvino.bin"
FORMAT = 1
_MOST_PIXELS = 8192  # along an edge


class Description(BaseModel):
    """``model.json``. ``files`` maps each file's name to its SHA-256.

    ``parent`` and ``metrics`` are there where `topk train` made it: see ``Training``.
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
    """Whether this names a model folder."""
    return os.path.isfile(os.path.join(path, DESCRIPTION))


def load(folder: Path) -> Model:
    """The model in a folder; its name is the folder's. Files are checked against their digests. Raises ModelError."""
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
        labels=tuple(Label(label, wnid) for label, wnid in description.labels),
        build=lambda: _build(folder, description),
        precision=description.precision,
        openvino=ir if has_ir else None,
        training=Training(description.parent, description.metrics or {}) if description.parent else None,
    )


def check_target(folder: Path) -> None:
    """Raise ModelError unless a model can be written there: a folder that does not exist yet, or an empty one."""
    try:
        if os.path.lexists(folder) and any(folder.iterdir()):
            raise ModelError(f"{folder} is not empty")
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
    """Write ``model`` into ``folder``, which must not exist or be empty.

    ``weights=False`` leaves out the safetensors: such a folder is served by OpenVINO alone. ``network`` is what to
    write instead of the converted float32 one. Raises ModelError.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_model

    from app.models.convert import to_openvino
    from app.models.openvino import ov

    check_target(folder)
    built = model.build()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if weights and not model.architecture.startswith(ULTRALYTICS):  # nothing but the pickle has that network
            with _full_disk_said(SafetensorError):
                save_model(built, str(folder / WEIGHTS))
            os.chmod(folder / WEIGHTS, 0o644)  # safetensors writes it for the owner alone
        network = network or to_openvino(model, built)
        with _full_disk_said(RuntimeError):
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
    """Put into its description what a trained model was measured to do. Raises ModelError."""
    try:
        _write(folder, _read(folder).model_copy(update={"metrics": metrics}))
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error}") from error


def _write(folder: Path, description: Description) -> None:
    document = description.model_dump(mode="json", exclude_none=True)
    document |= {"preprocessing": asdict(description.preprocessing)}
    (folder / DESCRIPTION).write_bytes(orjson.dumps(document, option=orjson.OPT_INDENT_2))


@contextmanager
def _full_disk_said(error_of_library: type[Exception]) -> Iterator[None]:
    """Libraries have errors of their own where a file cannot be written, and do not all say why."""
    try:
        yield
    except error_of_library as error:
        raise OSError(f"a file could not be written, as happens on a full disk ({error})") from error


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
        raise ModelError(f"{folder / DESCRIPTION} is no description of a model: {error}") from error
    except ValidationError as error:
        raise ModelError(f"{folder / DESCRIPTION} is no description of a model: {_wrong(error)}") from error
    if description.format != FORMAT:
        raise ModelError(f"{folder} has format {description.format}; this topk reads {FORMAT}")
    fed = description.preprocessing
    sizes = 1 <= fed.crop <= fed.resize <= _MOST_PIXELS
    if not (sizes and all(math.isfinite(mean) for mean in fed.mean) and all(0 < std < math.inf for std in fed.std)):
        raise ModelError(f"{folder / DESCRIPTION} is no description of a model: preprocessing cannot be {asdict(fed)}")
    return description


def _wrong(error: ValidationError) -> str:
    """What is missing, else the first thing that is wrong."""
    found = [(".".join(map(str, one["loc"])), one) for one in error.errors()]
    if missing := [place for place, one in found if one["type"] == "missing"]:
        return f"it has no {', '.join(missing)}"
    place, first = found[0]
    return f"{place}: {first['msg']}" if place else "it is no JSON object"


def _verify(folder: Path, description: Description, *names: str) -> None:
    for name in names:
        if download.sha256(folder / name) != description.files.get(name):
            raise ModelError(f"{folder / name} is damaged: its SHA-256 is not the one in {DESCRIPTION}")


def _build(folder: Path, description: Description) -> nn.Module:
    from app.models.files import load_state, read_state
    from app.models.split import set_classes

    if WEIGHTS not in description.files:
        raise ModelError(f"{folder} holds no {WEIGHTS}: it is served by OpenVINO alone")
    _verify(folder, description, WEIGHTS)
    module = network(description.architecture, description.preprocessing.crop)
    if description.parent:
        set_classes(module, len(description.labels))
    load_state(module, read_state(folder / WEIGHTS), description.architecture, str(folder / WEIGHTS))
    return module
