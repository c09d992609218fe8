"""A tiny network as a model folder. It is made without torch in a moment, and a server with it starts in a second.

Its weights are random. Use it where a test needs some model, and ``efficientnet_lite0`` where the classes matter.
"""

import functools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from app import __version__
from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models import download, folder
from app.models.openvino import ov

ops = ov.opset13

NAME = "tiny"
DIM = 8
PREPROCESSING = Preprocessing(256, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))  # as efficientnet_lite0's


@functools.cache
def model() -> tuple[str, str]:
    """The options of ``topk`` that name it. The processes of a test run share one folder."""
    cache = Path(os.environ["TOPK_CACHE_DIR"])
    made = cache / NAME
    if not made.exists():
        new = Path(tempfile.mkdtemp(dir=cache, prefix=NAME))
        write(new)
        try:
            new.rename(made)
        except OSError:  # another process was faster
            shutil.rmtree(new)
    return "--model", str(made)


def network() -> ov.Model:
    """From grey levels, float32 [n, 224, 224, 3], to ``features`` and ``logits``."""
    random = np.random.default_rng(0)

    def weights(*shape: int) -> ov.Node:
        return ops.constant(random.standard_normal(shape, np.float32))

    pixels = ops.parameter([-1, PREPROCESSING.crop, PREPROCESSING.crop, 3], np.float32, name="pixels")
    planes = ops.transpose(ops.divide(pixels, np.float32(255)), np.array([0, 3, 1, 2]))
    small = ops.avg_pool(planes, [7, 7], [0, 0], [0, 0], [7, 7], exclude_pad=True)
    for kernels in (weights(DIM, 3, 3, 3), weights(DIM, DIM, 3, 3)):
        small = ops.relu(ops.convolution(small, kernels, [2, 2], [1, 1], [1, 1], [1, 1]))
    features = ops.reduce_mean(small, np.array([2, 3]), keep_dims=False)
    logits = ops.matmul(features, weights(DIM, len(imagenet1k())), transpose_a=False, transpose_b=False)
    made = ov.Model([ops.result(features), ops.result(logits)], [pixels], NAME)
    for output, name in zip(made.outputs, ("features", "logits"), strict=True):
        output.get_tensor().set_names({name})
    return made


def write(path: Path) -> None:
    """Write the folder as ``topk export`` does."""
    ov.save_model(network(), path / folder.OPENVINO, compress_to_fp16=False)
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
