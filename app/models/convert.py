"""Torch to OpenVINO, once a model: in a child process (``conversion``), at ``topk export``, or for an image."""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from app.errors import NotConvertible
from app.models.model import Model
from app.models.openvino import ov
from app.models.split import FeaturesAndLogits, split

# Of the logits' range. Float32 on both sides is summed in another order, which some networks make much of: where both
# are about as far from what float64 gives, that is no reason to refuse, unless it tells nothing at all.
_TOLERANCE, _TELLING = 1e-3, 0.1
_AS_FAR = 4


def to_openvino(model: Model, built: nn.Module | None = None) -> ov.Model:
    """The network from grey levels, float32 [n, crop, crop, 3], to ``features`` and ``logits``, batch size free.

    ``built`` is the model's network where it has been built; it is cut in two. The answers are compared with torch's.
    Raises NotConvertible, and the ModelError of ``model.build``.
    """
    module = split(built or model.build()).eval()
    crop = model.preprocessing.crop
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                module, (torch.zeros(2, 3, crop, crop),), dynamic_shapes=({0: torch.export.Dim("n", min=1)},)
            )
            network = ov.convert_model(exported)
    except Exception as error:
        raise NotConvertible(f"{model.architecture} does not convert to OpenVINO ({error})") from error
    for output, name in zip(network.outputs, ("features", "logits"), strict=True):
        output.get_tensor().set_names({name})
    network = _from_pixels(network, model)
    _check(network, module, model)
    return network


def _from_pixels(network: ov.Model, model: Model) -> ov.Model:
    """Put the normalisation in front: it melts into the first convolution."""
    preprocessing = ov.preprocess.PrePostProcessor(network)
    pixels = preprocessing.input()
    pixels.tensor().set_element_type(ov.Type.f32).set_layout(ov.Layout("NHWC"))
    pixels.model().set_layout(ov.Layout("NCHW"))
    mean, std = model.preprocessing.mean, model.preprocessing.std
    pixels.preprocess().mean([255 * value for value in mean]).scale([255 * value for value in std])
    return preprocessing.build()


@torch.inference_mode()
def _check(network: ov.Model, module: FeaturesAndLogits, model: Model) -> None:
    """Raise NotConvertible unless OpenVINO computes what torch does, for a batch of another size than traced."""
    crop = model.preprocessing.crop
    pixels = np.random.default_rng(0).integers(0, 256, (3, crop, crop, 3)).astype(np.float32)
    compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
    found = compiled([pixels])["logits"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocessing.mean, model.preprocessing.std))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    expected = module(images)[1].numpy()
    if not np.isfinite(expected).all():
        raise NotConvertible(f"{model.architecture} with weights {model.weights} computes no finite scores")
    span = max(float(np.ptp(expected)), 1e-6)
    near = _distance(found, expected) <= _TOLERANCE * span
    if not near and not _as_far(found, expected, module, images, span):
        raise NotConvertible(f"{model.architecture} computes other logits in OpenVINO than in torch")


def _as_far(
    found: npt.NDArray[np.floating],
    expected: npt.NDArray[np.floating],
    module: FeaturesAndLogits,
    images: torch.Tensor,
    span: float,
) -> bool:
    """Whether ``found`` and ``expected`` are about as far from what float64 gives, and that is no great distance."""
    try:
        exact = module.double()(images.double())[1].numpy()
    except RuntimeError:  # parts of it are float32 whatever it is given
        return False
    finally:
        module.float()
    own = _distance(expected, exact)
    return own <= _TELLING * span and _distance(found, exact) <= max(_AS_FAR * own, _TOLERANCE * span)


def _distance(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """The largest; infinite where one is no number."""
    return float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max())
