"""The torch engine: CUDA, MPS or CPU. ``forward`` runs on the streams' threads: two for CUDA, one a core on a CPU.

On a CUDA GPU it starts eager and compiles in a thread of its own; once the compiled network answers as the eager one
does, batches go to it.
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
from app.engine.base import Pixels, Row, Want, check_outputs, memory_errors
from app.errors import ModelError
from app.models.model import Model
from app.models.split import split

log = structlog.get_logger(__name__)

_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}  # of the logits' range
_CPU_BUCKETS = (1, 2, 4, 8)
_GPU_BUCKETS = (1, 2, 4, 8, 16, 32, 64)


class TorchEngine:
    """Float32, bfloat16 or float16, channels last."""

    name = "torch"

    def __init__(self, model: Model, device: str, precision: str) -> None:
        self._model = model
        self._device = device_of(device)
        self.device = str(self._device)
        precision = model.precision if precision == "auto" else precision
        if precision == "int8":
            raise ModelError(f"{model.name} is int8, which the engine openvino computes, on a CPU")
        self.precision = native_precision(self._device) if precision == "auto" else precision
        self._dtype: torch.dtype = getattr(torch, self.precision)
        on_cpu = self._device.type == "cpu"
        # Measured on 2 cores with resnet50 in bfloat16: 90 img/s with a single-threaded stream a core, 77 with one
        # stream across both, and 63 against 32 at batch 1.
        # Beside a CUDA GPU one batch is copied and its answers fetched while the other is computed.
        self.streams = machine.cores() if on_cpu else 2 if self._device.type == "cuda" else 1
        self.spreads = False  # a second thread takes no time off an eager pass
        self.buckets: tuple[int, ...] = _CPU_BUCKETS if on_cpu else _GPU_BUCKETS
        self._prepared = threading.local()
        self.compilation = "eager"

    @property
    def dim(self) -> int:
        dim: int = self._module.dim
        return dim

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
            raise ModelError(f"{self._model.name} does not fit into the memory of {self.device}") from error
        self._check_outputs()
        if self._device.type == "cuda" and self.precision == "float32":
            torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]  # TF32 is no float32
        preprocessing = self._model.preprocessing
        self._mean = torch.tensor(preprocessing.mean, device=self._device).view(3, 1, 1)
        self._std = torch.tensor(preprocessing.std, device=self._device).view(3, 1, 1)
        self._network: Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]] = self._module
        if self._device.type == "cuda":
            options = {"freezing": True}
            threading.Thread(target=self.compile, kwargs={"options": options}, name="topk-compile", daemon=True).start()

    @torch.inference_mode()
    def _check_outputs(self) -> None:
        """Raise ModelError unless the network takes the crops of its preprocessing, and has the model's classes."""
        crop = self._model.preprocessing.crop
        try:
            with memory_errors():
                features, logits = self._module(torch.zeros((1, 3, crop, crop), device=self._device, dtype=self._dtype))
        except MemoryError as error:
            raise ModelError(f"{self._model.name} does not fit into the memory of {self.device}") from error
        except Exception as error:  # whatever an architecture raises on a picture of another size than its own
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{self._model.name} cannot take crops of {crop}x{crop}: {reason}") from error
        check_outputs(self._model, logits.shape[1], features.shape[1])

    def compile(self, **how: Any) -> None:
        """Compile, check against the eager network bucket by bucket, then switch; on any failure stay eager. Blocks.

        ``how`` goes to ``torch.compile``. It needs a C compiler, which a runtime image may lack.
        """
        self.compilation = "compiling"
        try:
            compiled = torch.compile(self._module, dynamic=True, **how)
            for bucket in self.buckets:
                self._check(compiled, bucket)
        except Exception as error:
            log.warning("the network is served eagerly", reason=str(error).strip().splitlines()[0])
            self.compilation = "eager"
            return
        self._network = compiled
        self.compilation = "compiled"
        log.info("the network is compiled")

    @torch.inference_mode()
    def _check(self, compiled: Any, bucket: int) -> None:
        """Raise unless the compiled network answers as the eager one, within what the precision rounds."""
        crop = self._model.preprocessing.crop
        noise = torch.randn((bucket, 3, crop, crop), generator=torch.Generator().manual_seed(0))
        images = noise.to(self._device, self._dtype).contiguous(memory_format=torch.channels_last)
        expected, found = self._module(images)[1], compiled(images)[1]
        off = float((found - expected).abs().max() / (expected.max() - expected.min()))
        if not off <= _TOLERANCE[self.precision]:
            raise RuntimeError(f"compiled logits are off by {off:.1%} of their range at batch {bucket}")

    @torch.inference_mode()
    def forward(self, images: Sequence[Pixels], wants: Sequence[Want], alone: bool = False) -> list[Row]:
        with self._on_own_stream():
            try:
                with memory_errors():
                    return self._forward(images, wants)
            except MemoryError:
                if self._device.type == "cuda":
                    torch.cuda.empty_cache()  # what torch keeps for batches of other sizes
                raise

    def _forward(self, images: Sequence[Pixels], wants: Sequence[Want]) -> list[Row]:
        features, logits = self._network(self._padded(self._batch(images)).to(self._dtype))
        logits = logits[: len(images)].float()
        probabilities = logits.softmax(1)
        k = min(max((want.k for want in wants), default=0), logits.shape[1])
        scores, class_ids = (t.cpu().numpy() for t in probabilities.topk(k, 1))
        rows_of = {
            "features": self._whole(features, [want.features for want in wants]),
            "logits": self._whole(logits, [want.logits for want in wants]),
            "probabilities": self._whole(probabilities, [want.probabilities for want in wants]),
        }
        return [
            Row(class_ids[i, : want.k], scores[i, : want.k], **{name: rows.get(i) for name, rows in rows_of.items()})
            for i, want in enumerate(wants)
        ]

    def _on_own_stream(self) -> AbstractContextManager[Any]:
        """A CUDA stream a calling thread; on a CPU one core, which torch also keeps per calling thread."""
        if not hasattr(self._prepared, "stream"):
            cuda = self._device.type == "cuda"
            self._prepared.stream = torch.cuda.Stream(self._device) if cuda else None  # type: ignore[no-untyped-call]
            if self._device.type == "cpu":
                torch.set_num_threads(1)
        return torch.cuda.stream(self._prepared.stream)

    def _batch(self, images: Sequence[Pixels]) -> torch.Tensor:
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


def device_of(name: str) -> torch.device:
    """What the setting ``device`` means here. Raises ModelError."""
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


def native_precision(device: torch.device) -> str:
    """bfloat16 where the hardware computes it natively, else float32."""
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu":
        capabilities: dict[str, bool] = getattr(torch.cpu, "get_capabilities", dict)()
        native = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    else:
        native = False
    return "bfloat16" if native else "float32"
