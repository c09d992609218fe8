"""Photographs, weights and reference logits: from the kit, else from ../shared."""

import lzma
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from app.models.model import Model
from tests.conftest import PHOTOGRAPHS, REPOSITORY, RESNET50
from tests.gpu.figures import Context

KIT = REPOSITORY / "gpu-kit"
PHOTOGRAPHS_IN_KIT = 64
_QUICK = 2

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Material:
    """ResNet-50's weights, and photographs. ``stored`` has their logits, if the kit has computed them."""

    weights: Path
    photographs: list[Path]
    stored: Path | None = None

    @property
    def files(self) -> list[bytes]:
        return [path.read_bytes() for path in self.photographs]

    def logits(self) -> Logits:
        """The logits [n, 1000] of the photographs that torchvision's preset gives in float32."""
        if self.stored:
            return np.asarray(np.load(self.stored)[: len(self.photographs)], np.float32)
        return reference_logits(self.weights, self.photographs)

    def model(self) -> Model:
        from app.models import zoo

        return zoo.from_file("resnet50", None, self.weights)


def find(context: Context) -> Material:
    """The material of the kit; without one, that of ../shared. Few photographs if the run is quick.

    Raises FileNotFoundError if there is neither.
    """
    kit, count = Path(context.kit), _QUICK if context.quick else PHOTOGRAPHS_IN_KIT
    photographs = sorted((kit / "images" / "imagenet").glob("*/*.JPEG"))[:count]
    if photographs:
        return Material(weights(kit), photographs, kit / "logits.npy")
    if not (PHOTOGRAPHS and RESNET50.is_file()):
        raise FileNotFoundError(f"neither {kit} nor ../shared has photographs and weights: run `make gpu-kit`")
    return Material(RESNET50, chosen(count))


def weights(kit: Path) -> Path:
    """The unpacked weights. The kit's folder then has the layout of ../shared."""
    path = kit / "weights" / "resnet50.safetensors"
    if not path.exists():
        new = path.with_suffix(".new")
        with lzma.open(path.with_suffix(".safetensors.xz")) as packed, new.open("wb") as file:
            shutil.copyfileobj(packed, file, 2**20)
        new.rename(path)
    return path


def chosen(count: int) -> list[Path]:
    """So many photographs of ../shared, spread over its classes."""
    return PHOTOGRAPHS[:: len(PHOTOGRAPHS) // count][:count]


def reference_logits(path: Path, photographs: Sequence[Path]) -> Logits:
    """The logits of torchvision's network and preset in float32 on the CPU."""
    import torch
    import torchvision
    from PIL import Image
    from safetensors.torch import load_file

    network = torchvision.models.resnet50().eval()
    network.load_state_dict(load_file(path), strict=True)
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    with torch.inference_mode():
        rows = [network(preset(Image.open(path).convert("RGB"))[None])[0] for path in photographs]
    return torch.stack(rows).numpy()
