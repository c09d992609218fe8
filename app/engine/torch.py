"""The torch engine for CUDA, MPS and CPU. ``forward`` runs on the threads of the streams.

There are two streams on CUDA, one per core on a CPU and one on MPS. On CUDA the engine starts with the eager network
and compiles in a background thread. It switches to the compiled network once both networks produce the same outputs.
"""

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import numpy.typing as npt
import structlog
import torch

from app import machine
from app.engine.base import Pixels, Rows, Want, check_outputs, memory_errors
from app.errors import ModelError
from app.models.model import Model
from app.models.split import split

log = structlog.get_logger(__name__)

_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}  # relative to the range of the logits
_CPU_BUCKETS = (1, 2, 4, 8)
_GPU_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class TorchEngine:
    """Computes in float32, bfloat16 or float16, in channels-last memory format."""

    name = "torch"

    def __init__(self, model: Model, device: str, precision: str) -> None:
        self._model = model
        self._device = device_of(device)
        self.device = str(self._device)
        precision = model.precision if precision == "auto" else precision
        if precision == "int8":
            raise ModelError(f"{model.name} is an int8 model, which torch cannot run; use `--engine openvino` on a CPU")
        self.precision = native_precision(self._device) if precision == "auto" else precision
        self._dtype: torch.dtype = getattr(torch, self.precision)
        on_cpu = self._device.type == "cpu"
        # Measured on 2 cores with resnet50 in bfloat16: 90 img/s with one single-threaded stream per core, 77 img/s
        # with one stream across both cores. At batch size 1: 63 img/s and 32 img/s.
        # On CUDA one stream copies its batch or fetches its outputs while the other one computes.
        self.streams = machine.cores() if on_cpu else 2 if self._device.type == "cuda" else 1
        self.spreads = False  # a second thread does not speed up an eager pass
        self.buckets: tuple[int, ...] = _CPU_BUCKETS if on_cpu else _GPU_BUCKETS
        self._per_thread = threading.local()
        self.compilation = "eager"

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self._device) if self._device.type == "cuda" else machine.processor()

    @property
    def dim(self) -> int:
        dim: int = self._module.dim
        return dim

    @property
    def pads(self) -> bool:
        return self._device.type != "cpu"  # where padding would only cost time

    def memory(self) -> dict[str, int]:
        if self._device.type != "cuda":
            return {}
        total = torch.cuda.get_device_properties(self._device).total_memory
        return {"held": torch.cuda.memory_reserved(self._device), "total": total}

    def load(self) -> None:
        try:
            module = split(self._model.build()).eval().requires_grad_(False)
            self._module = module.to(self._device).to(memory_format=torch.channels_last)
            self._module.backbone.to(self._dtype)
        except torch.OutOfMemoryError as error:
            raise ModelError(f"{self._model.name} does not fit in the memory of {self.device}") from error
        self._check_outputs()
        if self._device.type == "cuda" and self.precision == "float32":
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # not TF32
        preprocessing = self._model.preprocessing
        self._mean = torch.tensor(preprocessing.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=self._device).view(3, 1, 1)
        self._network: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = self._module
        if self._device.type == "cuda":
            options = {"freezing": True}
            threading.Thread(target=self.compile, kwargs={"options": options}, name="topk-compile", daemon=True).start()

    @torch.inference_mode()
    def _check_outputs(self) -> None:
        """Raise ModelError if the network does not accept the crops or does not have the classes of the model."""
        crop = self._model.preprocessing.crop
        try:
            with memory_errors():
                features, logits = self._module(torch.zeros((1, 3, crop, crop), device=self._device, dtype=self._dtype))
        except MemoryError as error:
            raise ModelError(f"{self._model.name} does not fit in the memory of {self.device}") from error
        except Exception as error:  # architectures raise various exceptions for an unsupported size
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{self._model.name} does not accept crops of {crop}x{crop}: {reason}") from error
        check_outputs(self._model, logits.shape[1], features.shape[1])

    def compile(self, **arguments: Any) -> None:
        """Compile, compare with the eager network at each bucket, then switch. On any failure stay eager. Blocks.

        ``arguments`` are passed to ``torch.compile``, which needs a C compiler. A runtime image may not have one.
        """
        self.compilation = "compiling"
        try:
            compiled = torch.compile(self._module, dynamic=True, **arguments)
            for bucket in self.buckets:
                self._check(compiled, bucket)
        except Exception as error:
            log.warning("compilation failed; the network stays eager", reason=str(error).strip().splitlines()[0])
            self.compilation = "eager"
            return
        self._network = compiled
        self.compilation = "compiled"
        log.info("the network is compiled")

    @torch.inference_mode()
    def _check(self, compiled: Any, bucket: int) -> None:
        """Raise RuntimeError if the compiled logits differ from the eager ones by more than the tolerance."""
        crop = self._model.preprocessing.crop
        noise = torch.randn((bucket, 3, crop, crop), generator=torch.Generator().manual_seed(0))
        images = noise.to(self._device, self._dtype).contiguous(memory_format=torch.channels_last)
        expected, found = self._module(images)[1], compiled(images)[1]
        deviation = float((found - expected).abs().max() / (expected.max() - expected.min()))
        if not deviation <= _TOLERANCE[self.precision]:
            raise RuntimeError(f"compiled logits deviate by {deviation:.1%} of their range at batch size {bucket}")

    @torch.inference_mode()
    def forward(self, images: Sequence[Pixels], wants: Sequence[Want], alone: bool = False) -> Rows:
        with self._on_own_stream():
            try:
                with memory_errors():
                    return self._forward(images, wants)
            except MemoryError:
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()  # frees the blocks that torch caches for other batch sizes
                raise

    def _forward(self, images: Sequence[Pixels], wants: Sequence[Want]) -> Rows:
        features, logits = self._network(self._padded(self._batch(images)).to(self._dtype))
        features, logits = features[: len(images)].float(), logits[: len(images)].float()
        probabilities = logits.softmax(1)
        k = min(max((want.k for want in wants), default=0), logits.shape[1])
        scores, class_ids = (t.cpu().numpy() for t in probabilities.topk(k, 1))
        return Rows(
            class_ids,
            scores,
            (features.isfinite().all(1) & logits.isfinite().all(1)).cpu().numpy(),
            features=self._selected(features, [want.features for want in wants]),
            logits=self._selected(logits, [want.logits for want in wants]),
            probabilities=self._selected(probabilities, [want.probabilities for want in wants]),
        )

    def _on_own_stream(self) -> AbstractContextManager[Any]:
        """Give each calling thread its own CUDA stream. On a CPU, limit the thread to one core instead."""
        if not hasattr(self._per_thread, "stream"):
            cuda = self._device.type == "cuda"
            self._per_thread.stream = torch.cuda.Stream(self._device) if cuda else None  # type: ignore[no-untyped-call]
            if self._device.type == "cpu":
                torch.set_num_threads(1)
        return torch.cuda.stream(self._per_thread.stream)

    def _batch(self, images: Sequence[Pixels]) -> torch.Tensor:
        """Return normalised float32 of shape [n, 3, crop, crop], channels last."""
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
        """On a GPU, pad the batch to a bucket to limit the number of shapes."""
        bucket = next((b for b in self.buckets if b >= len(batch)), len(batch))
        if not self.pads or bucket == len(batch):
            return batch
        return torch.nn.functional.pad(batch, (0, 0, 0, 0, 0, 0, 0, bucket - len(batch)))

    def _to_device(self, array: npt.NDArray[Any]) -> torch.Tensor:
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            return tensor.pin_memory().to(self._device, non_blocking=True)
        return tensor.to(self._device)

    def _selected(self, rows: torch.Tensor, wanted: list[bool]) -> dict[int, npt.NDArray[np.float32]]:
        """Copy only the requested rows from the device. Returns them by index."""
        indices = [i for i, want in enumerate(wanted) if want]
        return dict(zip(indices, rows[indices].float().cpu().numpy(), strict=True)) if indices else {}


def device_of(name: str) -> torch.device:
    """Return the torch device for the setting ``device``. Raises ModelError if it is not available."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda:0")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ModelError(f"device {name} is not available; visible CUDA devices: {torch.cuda.device_count()}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ModelError("device mps is not available on this machine; use `--device cpu`")
    return device


def native_precision(device: torch.device) -> str:
    """Return bfloat16 if the hardware supports it natively, otherwise float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    else:
        native = False
    return "bfloat16" if native else "float32"
