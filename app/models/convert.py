"""Conversion from torch to OpenVINO, for the cache (``conversion``), ``topk export`` and container images."""

import warnings

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from app.errors import NotConvertible
from app.models.fuse import fold
from app.models.model import Model
from app.models.openvino import ov
from app.models.split import FeaturesAndLogits, split

# Fractions of the logits' range. Both engines compute in float32 but sum in different orders, and some networks amplify
# the difference. It is accepted if both results are about equally far from the float64 result, and that is not too far.
_TOLERANCE, _MAX_ERROR = 1e-3, 0.1
_MAX_RATIO = 4


def to_openvino(model: Model, built: nn.Module | None = None) -> ov.Model:
    """The network from pixels, float32 [n, crop, crop, 3] in 0..255, to ``features`` and ``logits``, for any ``n``.

    ``built`` is the model's network, if it is already built; it is split and must not be used afterwards. The outputs
    are compared with torch's. Raises NotConvertible, and the ModelError of ``model.build``.
    """
    module = split(built or model.build()).eval()
    crop = model.preprocessing.crop
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exported = torch.export.export(
                fold(module),  # a third of ResNet's layers need no tracing
                (torch.zeros(2, 3, crop, crop),),
                dynamic_shapes=({0: torch.export.Dim("n", min=1)},),
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
    """Prepend the normalisation, which OpenVINO merges into the first convolution."""
    preprocessing = ov.preprocess.PrePostProcessor(network)
    pixels = preprocessing.input()
    pixels.tensor().set_element_type(ov.Type.f32).set_layout(ov.Layout("NHWC"))
    pixels.model().set_layout(ov.Layout("NCHW"))
    mean, std = model.preprocessing.mean, model.preprocessing.std
    pixels.preprocess().mean([255 * value for value in mean]).scale([255 * value for value in std])
    return preprocessing.build()


@torch.inference_mode()
def _check(network: ov.Model, module: FeaturesAndLogits, model: Model) -> None:
    """Raise NotConvertible unless OpenVINO computes what torch does, for a batch size other than the traced one."""
    crop = model.preprocessing.crop
    pixels = np.random.default_rng(0).integers(0, 256, (3, crop, crop, 3)).astype(np.float32)
    compiled = ov.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": ov.Type.f32})
    found = compiled([pixels])["logits"]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (model.preprocessing.mean, model.preprocessing.std))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std
    expected = module(images)[1].numpy()
    if not np.isfinite(expected).all():
        raise NotConvertible(f"{model.architecture} with weights {model.weights} does not compute finite scores")
    span = max(float(np.ptp(expected)), 1e-6)
    close = _distance(found, expected) <= _TOLERANCE * span
    if not close and not _equally_far(found, expected, module, images, span):
        raise NotConvertible(f"{model.architecture} computes different logits in OpenVINO than in torch")


def _equally_far(
    found: npt.NDArray[np.floating],
    expected: npt.NDArray[np.floating],
    module: FeaturesAndLogits,
    images: torch.Tensor,
    span: float,
) -> bool:
    """Whether ``found`` and ``expected`` are about equally far from the float64 result, and both are close to it."""
    try:
        exact = module.double()(images.double())[1].numpy()
    except RuntimeError:  # parts of the network always compute in float32
        return False
    finally:
        module.float()
    own = _distance(expected, exact)
    return own <= _MAX_ERROR * span and _distance(found, exact) <= max(_MAX_RATIO * own, _TOLERANCE * span)


def _distance(found: npt.NDArray[np.floating], expected: npt.NDArray[np.floating]) -> float:
    """The largest absolute difference; infinite if one of the values is NaN."""
    return float(np.nan_to_num(np.abs(found - expected), nan=np.inf).max())
