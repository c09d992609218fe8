"""A tiny network as a model folder. It is made without torch in a moment, and a server with it starts in a second.

Its weights are random. Use it where a test needs some model, and ``efficientnet_lite0`` where the classes matter.
"""

import functools
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import orjson

from app import __version__
from app.calibration import Calibration, stored
from app.calibration.conformal import Regularisation
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models import download, folder
from app.models.openvino import ov

ops = ov.opset13

NAME = "tiny"
DIM = 8
PRECISIONS = ("float32", "bfloat16", "float16")
PREPROCESSING = Preprocessing(256, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # as efficientnet_lite0's


@functools.cache
def model() -> tuple[str, str]:
    """The options of ``topk`` that name it. The processes of a test run share one folder."""
    return "--model", str(_made(NAME, write))


@functools.cache
def calibrated() -> tuple[str, str]:
    """The options that name a copy with a calibration of 200 made-up images."""
    return "--model", str(_made(f"{NAME}-calibrated", _write_calibrated))


def calibrate(
    path: Path, *precisions: str, energy: float = 0.0, spread: float = 20.0, images: int = 200
) -> Calibration:
    """Write a calibration into a copy of the folder: made-up scores, and energies around ``energy``."""
    random = np.random.default_rng(0)
    scores, energies = random.uniform(0.3, 1.3, images), random.normal(energy, spread, images)
    made = Calibration("2026-11-28T09:30:00+00:00", 1.5, Regularisation(0.1, 1), np.sort(scores), np.sort(energies))
    stored.write(path, folder.identity(path), dict.fromkeys(precisions or PRECISIONS, made))
    return made


def _write_calibrated(path: Path) -> None:
    write(path)
    calibrate(path, energy=60.0)


def _made(name: str, make: Callable[[Path], None]) -> Path:
    """A folder of the run's cache, made by the first process that needs it."""
    cache = Path(os.environ["TOPK_CACHE_DIR"])
    made = cache / name
    if not made.exists():
        new = Path(tempfile.mkdtemp(dir=cache, prefix=name))
        make(new)
        try:
            new.rename(made)
        except OSError:  # another process was faster
            shutil.rmtree(new)
    return made


def network(hidden: bool = False) -> ov.Model:
    """From grey levels, float32 [n, 224, 224, 3], to ``features`` and ``logits``. ``hidden``: with a layer between."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> ov.Node:
        return ops.constant(random.standard_normal(shape, np.float32))

    pixels = ops.parameter([-1, PREPROCESSING.crop, PREPROCESSING.crop, 3], np.float32, name="pixels")
    planes = ops.transpose(ops.divide(pixels, np.float32(255)), np.array([0, 3, 1, 2]))
    small = ops.avg_pool(planes, [7, 7], [0, 0], [0, 0], [7, 7], exclude_pad=True)
    for kernels in (weights(DIM, 3, 3, 3), weights(DIM, DIM, 3, 3)):
        small = ops.relu(ops.convolution(small, kernels, [2, 2], [1, 1], [1, 1], [1, 1]))
    features = ops.reduce_mean(small, np.array([2, 3]), keep_dims=False)
    if hidden:
        features = ops.relu(ops.matmul(features, weights(DIM, DIM), transpose_a=False, transpose_b=False))
    logits = ops.matmul(features, weights(DIM, len(imagenet1k())), transpose_a=False, transpose_b=False)
    made = ov.Model([ops.result(features), ops.result(logits)], [pixels], NAME)
    for output, name in zip(made.outputs, ("features", "logits"), strict=True):
        output.get_tensor().set_names({name})
    return made


def write_int8(path: Path, made: ov.Model | None = None) -> None:
    """Write the folder of an int8 model with this network. The digest of its weights does not depend on the network."""
    write(path, made)
    document = orjson.loads((path / folder.DESCRIPTION).read_bytes())
    (path / folder.DESCRIPTION).write_bytes(orjson.dumps(document | {"precision": "int8", "digest": "0" * 64}))


def write(path: Path, made: ov.Model | None = None) -> None:
    """Write the folder as ``topk export`` does, with this network."""
    ov.save_model(made or network(), path / folder.OPENVINO, compress_to_fp16=False)
    files = {file.name: download.sha256(file) for file in path.iterdir()}
    description = folder.Description(
        format=folder.FORMAT,
        architecture=NAME,
        weights="random",
        digest=files["openvino.bin"],
        preprocessing=PREPROCESSING,
        labels=tuple((label.label, label.wnid) for label in imagenet1k()),
        precision="auto",
        files=files,
        versions={"topk": __version__},
    )
    (path / folder.DESCRIPTION).write_text(description.model_dump_json(exclude_none=True))
