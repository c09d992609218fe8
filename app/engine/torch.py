"""The torch engine: CUDA, MPS or CPU. ``forward`` runs on the streams' threads: one for a GPU, one a core on a CPU."""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from app import machine
from app.engine import Row, Want
from app.errors import ModelError
from app.models.model import Model
from app.models.split import split

_CPU_BUCKETS = (1, 2, 4, 8)
_GPU_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class TorchEngine:
    """Float32, bfloat16 or float16, channels last, eager."""

    name = "torch"

    def __init__(self, model: Model, device: str, precision: str) -> None:
        self._model = model
        self._device = _device(device)
        self.device = str(self._device)
        precision = model.precision if precision == "auto" else precision
        if precision == "int8":
            raise ModelError(f"{model.name} is int8, which the engine openvino computes, on a CPU")
        self.precision = _precision(self._device) if precision == "auto" else precision
        self._dtype: torch.dtype = getattr(torch, self.precision)
        on_cpu = self._device.type == "cpu"
        # Measured on 2 cores with resnet50 in bfloat16: 90 img/s with a single-threaded stream a core, 77 with one
        # stream across both, and 63 against 32 at batch 1.
        self.streams = machine.cores() if on_cpu else 1
        self.spreads = False  # a second thread takes no time off an eager pass
        self.buckets: tuple[int, ...] = _CPU_BUCKETS if on_cpu else _GPU_BUCKETS
        self._prepared = threading.local()

    @property
    def dim(self) -> int:
        dim: int = self._module.dim
        return dim

    def load(self) -> None:
        try:
            module = split(self._model.build()).eval().requires_grad_(False)
            self._module = module.to(self._device).to(memory_format=torch.channels_last)
            self._module.backbone.to(self._dtype)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"{self._model.name} does not fit into the memory of {self.device}") from error
        if self._device.type == "cuda" and self.precision == "float32":
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # TF32 is no float32
        preprocessing = self._model.preprocessing
        self._mean = torch.tensor(preprocessing.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=self._device).view(3, 1, 1)

    @torch.inference_mode()
    def forward(self, images: Sequence[npt.NDArray[Any]], wants: Sequence[Want], alone: bool = False) -> list[Row]:
        self._prepare_thread()
        features, logits = self._module(self._padded(self._batch(images)).to(self._dtype))
        logits = logits[: len(images)].float()
        probabilities = logits.softmax(1)
        scores, class_ids = (t.cpu().numpy() for t in probabilities.topk(max((want.k for want in wants), default=0), 1))
        rows_of = {
            "features": self._whole(features, [want.features for want in wants]),
            "logits": self._whole(logits, [want.logits for want in wants]),
            "probabilities": self._whole(probabilities, [want.probabilities for want in wants]),
        }
        return [
            Row(class_ids[i, : want.k], scores[i, : want.k], **{name: rows.get(i) for name, rows in rows_of.items()})
            for i, want in enumerate(wants)
        ]

    def _prepare_thread(self) -> None:
        """Torch keeps the number of threads an operator may use per calling thread."""
        if not getattr(self._prepared, "done", False):
            if self._device.type == "cpu":
                torch.set_num_threads(1)
            self._prepared.done = True

    def _batch(self, images: Sequence[npt.NDArray[Any]]) -> torch.Tensor:
        """Normalised float32 [n, 3, crop, crop], channels last."""
        crops = [i for i, image in enumerate(images) if image.dtype == np.uint8]
        normalised = None
        if crops:
            pixels = self._to_device(np.stack([images[i] for i in crops])).permute(0, 3, 1, 2)
            normalised = pixels.float().div_(255).sub_(self._mean).div_(self._std)
            if len(crops) == len(images):
                return normalised
        first = next(image for image in images if image.dtype != np.uint8)
        batch = torch.empty((len(images), *first.shape), device=self._device, memory_format=torch.channels_last)
        if normalised is not None:
            batch[crops] = normalised
        tensors = [i for i, image in enumerate(images) if image.dtype != np.uint8]
        batch[tensors] = self._to_device(np.stack([images[i] for i in tensors]))
        return batch

    def _padded(self, batch: torch.Tensor) -> torch.Tensor:
        """On a GPU batches have one of few shapes; on a CPU an eager pass costs what its images cost."""
        bucket = next((b for b in self.buckets if b >= len(batch)), len(batch))
        if self._device.type == "cpu" or bucket == len(batch):
            return batch
        return torch.nn.functional.pad(batch, (0, 0, 0, 0, 0, 0, 0, bucket - len(batch)))

    def _to_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def _whole(self, rows: torch.Tensor, wanted: list[bool]) -> dict[int, npt.NDArray[np.float32]]:
        """The rows of the items that want them, by item: only these leave the device."""
        indices = [i for i, want in enumerate(wanted) if want]
        return dict(zip(indices, rows[indices].float().cpu().numpy(), strict=True)) if indices else {}


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"no device {name}: {torch.cuda.device_count()} CUDA devices are visible")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("no device mps on this machine")
    return device


def _precision(device: torch.device) -> str:
    """bfloat16 where the hardware computes it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    else:
        native = False
    return "bfloat16" if native else "float32"
