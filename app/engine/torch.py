"""The torch engine for CUDA, MPS and CPU. ``forward`` runs on the threads of the streams, each batch on a free lane.

There are two lanes on CUDA, one per core on a CPU and one on MPS. On CUDA the network is folded, fused, and captured as
CUDA graphs before it serves. ``cudnn.benchmark`` stays off: to measure the algorithms for each convolution and batch
size would take most of the start, and cuDNN's own choice is the same at each start.
"""

import copy
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any, NamedTuple, cast

import numpy as np
import numpy.typing as npt
import structlog
import torch

from app import machine
from app.engine import recording
from app.engine.base import (
    Floats,
    Jpeg,
    Pixels,
    Rows,
    Want,
    check_outputs,
    device_errors,
    explained_classes,
    no_maps,
)
from app.engine.jpeg import JpegDecoder
from app.engine.lane import Lane, Network
from app.engine.recording import Recording
from app.errors import DeviceLost, Inexplicable, ModelError
from app.images import Preprocessing
from app.models.fuse import fold, fuse
from app.models.model import Model
from app.models.split import FeaturesAndLogits, split

log = structlog.get_logger(__name__)

_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01}  # relative to the range of the logits
_CPU_BUCKETS = (1, 2, 4, 8)
_CUDA_BUCKETS = (1, 2, 4, 8, 16, 32, 48, 64, 96, 128, 192, 256)
_MPS_BUCKETS = (1, 2, 4, 8, 16, 32, 64)
_CUDA_STREAMS = 2  # one copies its batch or fetches its outputs while the other one computes
_CHECKED_TOGETHER = 8  # images of a float32 pass, which needs more memory than a captured one

Rewrite = Callable[[FeaturesAndLogits], FeaturesAndLogits]
CreateJpegDecoder = Callable[[Preprocessing, torch.device], JpegDecoder | None]


class Sample(NamedTuple):
    """Crops, uint8 [n, crop, crop, 3], and their logits in float32, [n, classes]."""

    crops: npt.NDArray[np.uint8]
    logits: Floats


class TorchEngine:
    """Computes in float32, bfloat16 or float16, in channels-last memory format.

    ``create_jpegs`` creates a decoder for JPEGs on the device, or returns None.
    """

    name = "torch"

    def __init__(
        self, model: Model, device: str, precision: str, create_jpegs: CreateJpegDecoder | None = None
    ) -> None:
        self._model = model
        self._device = device_of(device)
        self.device = str(self._device)
        precision = model.precision if precision == "auto" else precision
        if precision == "int8":
            raise ModelError(f"{model.name} is an int8 model, which torch cannot run; use `--engine openvino` on a CPU")
        self.precision = native_precision(self._device) if precision == "auto" else precision
        self._dtype: torch.dtype = getattr(torch, self.precision)
        self._cuda = self._device.type == "cuda"
        self._on_cpu = self._device.type == "cpu"
        # Measured on 2 cores with resnet50 in bfloat16: 90 img/s with one single-threaded stream per core, 77 img/s
        # with one stream across both cores. At batch size 1: 63 img/s and 32 img/s.
        self.streams = machine.cores() if self._on_cpu else _CUDA_STREAMS if self._cuda else 1
        self.spreads = False  # a second thread does not speed up an eager pass
        self.pads = not self._on_cpu  # where padding would only cost time
        self.buckets: tuple[int, ...] = _CUDA_BUCKETS if self._cuda else _CPU_BUCKETS if self._on_cpu else _MPS_BUCKETS
        self.compilation = "eager"
        self.start_s: dict[str, float] = {}
        self.dim = 0
        self.inexplicable: str | None = no_maps(model)  # until ``load`` has run the network
        self._create_jpegs = create_jpegs
        self._jpegs: JpegDecoder | None = None
        self._lanes = SimpleQueue[Lane]()
        self._thread = threading.local()

    @property
    def device_name(self) -> str:
        return torch.cuda.get_device_name(self._device) if self._cuda else machine.processor()

    @property
    def decodes_jpegs(self) -> bool:
        return self._jpegs is not None

    def memory(self) -> dict[str, int]:
        if not self._cuda:
            return {}
        total = torch.cuda.get_device_properties(self._device).total_memory
        return {"held": torch.cuda.memory_reserved(self._device), "total": total}

    def load(self) -> None:
        with device_errors():
            self._load()
        if self._cuda:
            torch.cuda.empty_cache()  # of the float32 network
        log.info("the network is loaded", compilation=self.compilation, seconds=self.start_s)

    def _load(self) -> None:
        with self._phase("build"):
            network = split(self._model.build()).eval().requires_grad_(False)
        with self._phase("copy"):
            network.to(self._device).to(memory_format=torch.channels_last)
        if self._cuda and self.precision == "float32":
            cudnn = cast(Any, torch.backends.cudnn)
            for kind in (cudnn.conv, cudnn.rnn):  # both, because torch refuses to read its flags while they differ
                kind.fp32_precision = "ieee"  # not TF32
        with self._phase("check"):
            self._check_outputs(network)
        if self._create_jpegs:
            with self._phase("decoder"):
                self._jpegs = self._create_jpegs(self._model.preprocessing, self._device)
        for lane in self._fastest_lanes(network):
            self._lanes.put(lane)

    def explaining(self) -> "TorchExplainer":
        return TorchExplainer(self._model, self.device, self.precision)

    def forward(self, images: Sequence[Jpeg | Pixels], wants: Sequence[Want], alone: bool = False) -> Rows:
        self._limit_threads()
        lane = self._lanes.get()
        try:
            with device_errors():
                return lane.run(images, wants)
        except MemoryError:
            if self._cuda:
                torch.cuda.empty_cache()  # frees the blocks that torch caches for other batch sizes
            raise
        finally:
            self._lanes.put(lane)

    @torch.inference_mode()
    def _check_outputs(self, network: FeaturesAndLogits) -> None:
        """Raise ModelError if the network does not accept the crops or does not have the classes of the model."""
        crop = self._model.preprocessing.crop
        images = torch.randn((1, 3, crop, crop), generator=torch.Generator().manual_seed(0)).to(self._device)
        try:
            with device_errors():
                features, logits = network(images)
                self.inexplicable = None if recording.find(network, images) else no_maps(self._model)
        except (MemoryError, DeviceLost):
            raise
        except Exception as error:  # architectures raise various exceptions for an unsupported size
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{self._model.name} does not accept crops of {crop}x{crop}: {reason}") from error
        check_outputs(self._model, logits.shape[1], features.shape[1])
        self.dim = features.shape[1]

    def _fastest_lanes(self, reference: FeaturesAndLogits) -> list[Lane]:
        """Create the lanes with the fastest form of the network that computes what ``reference`` does in float32.

        The last form is calls of the network as it is, in the precision of the engine. It needs no check.
        """
        forms: list[tuple[Rewrite, bool]] = []
        if self._cuda:
            forms = [(_folded_and_fused, True), (_unchanged, True)]
        elif self.precision != "float32" or not self._on_cpu:
            forms = [(fold, False)]
        if forms:
            with self._phase("check"):  # before the lanes take the memory
                sample = self._sample(reference, self.buckets[-1] if self._cuda else 1)
        for rewrite, graphs in forms:
            if lanes := self._rewritten_lanes(rewrite, reference, graphs, sample):
                self.compilation = "captured" if graphs else "eager"
                return lanes
        return self._create_lanes(reference, graphs=False)

    def _rewritten_lanes(
        self, rewrite: Rewrite, reference: FeaturesAndLogits, graphs: bool, sample: Sample
    ) -> list[Lane] | None:
        """Create lanes with the rewritten network; None if it fails or does not compute the logits of ``sample``."""
        try:
            with self._phase("fold"):
                network = copy.deepcopy(rewrite(reference))
            lanes = self._create_lanes(network, graphs)
            with self._phase("check"), device_errors():
                for lane in lanes if graphs else lanes[:1]:  # calls do the same on each lane and at each size
                    self._check(lane, sample)
        except (MemoryError, ModelError):
            raise
        except Exception as error:  # also the CUDA errors of a failed capture, which leave the device usable
            reason = str(error.__cause__ or error).partition("\n")[0]
            log.warning("a slower form of the network is used", failed=rewrite.__name__, graphs=graphs, reason=reason)
            return None
        return lanes

    def _create_lanes(self, network: FeaturesAndLogits, graphs: bool) -> list[Lane]:
        """Create a lane for each stream, with as many buckets as there is memory for. Raises MemoryError."""
        network.backbone.to(self._dtype).to(memory_format=torch.channels_last)
        while True:
            try:
                with self._phase("capture"), device_errors():
                    return [self._lane(network, graphs) for _ in range(self.streams)]
            except MemoryError:
                if len(self.buckets) == 1:
                    raise
            # Not within the handler, where the error's traceback holds on to the memory.
            log.warning("out of memory; batches are kept smaller", size=self.buckets[-1])
            self.buckets = self.buckets[:-1]
            if self._cuda:
                torch.cuda.empty_cache()

    def _lane(self, network: FeaturesAndLogits, graphs: bool) -> Lane:
        return self._new_lane(network, graphs)

    def _new_lane(self, network: Network, graphs: bool) -> Lane:
        model, sizes = self._model, self.buckets if self.pads else ()
        classes, preprocessing = len(model.labels), model.preprocessing
        temperature = model.temperature(self.precision)
        return Lane(network, classes, preprocessing, self._device, self._dtype, sizes, graphs, self._jpegs, temperature)

    def _check(self, lane: Lane, sample: Sample) -> None:
        """Raise RuntimeError if the logits of a batch size differ from the expected ones by more than the tolerance."""
        span = max(float(np.ptp(sample.logits)), 1e-6)
        for bucket in (bucket for bucket in self.buckets if bucket <= len(sample.crops)):
            found = lane.run(list(sample.crops[:bucket]), [Want(logits=True)] * bucket).logits
            distances = [np.abs(found[place] - sample.logits[place]).max() for place in range(bucket)]
            deviation = float(np.max(distances)) / span
            if not deviation <= _TOLERANCE[self.precision]:
                raise RuntimeError(f"logits deviate by {deviation:.1%} of their range at batch size {bucket}")

    @torch.inference_mode()
    def _sample(self, reference: FeaturesAndLogits, count: int) -> Sample:
        """Random crops, and the logits that ``reference`` computes for them."""
        preprocessing = self._model.preprocessing
        shape = (count, preprocessing.crop, preprocessing.crop, 3)
        crops = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        mean, std = (torch.tensor(v, device=self._device) for v in (preprocessing.mean, preprocessing.std))
        logits = []
        for first in range(0, len(crops), _CHECKED_TOGETHER):
            pixels = torch.from_numpy(crops[first : first + _CHECKED_TOGETHER]).to(self._device)
            images = ((pixels / 255 - mean) / std).permute(0, 3, 1, 2)
            logits.append(reference(images)[1].cpu().numpy())
        return Sample(crops, np.concatenate(logits))

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        """Add the seconds of a phase of the start to ``start_s``. On CUDA the device has finished it at the end."""
        started = time.monotonic()
        try:
            yield
            if self._cuda:
                torch.cuda.synchronize(self._device)
        finally:
            self.start_s[name] = round(self.start_s.get(name, 0.0) + time.monotonic() - started, 3)

    def _limit_threads(self) -> None:
        """On a CPU, limit the calling thread to one core."""
        if self._on_cpu and not hasattr(self._thread, "limited"):
            torch.set_num_threads(1)
            self._thread.limited = True


class TorchExplainer(TorchEngine):
    """The same network in a single lane of plain calls, which keeps the input of its final pooling."""

    def __init__(self, model: Model, device: str, precision: str) -> None:
        super().__init__(model, device, precision)
        self.streams = 1
        self.buckets = (1,)
        self.pads = False

    def forward(self, images: Sequence[Jpeg | Pixels], wants: Sequence[Want], alone: bool = False) -> Rows:
        rows = super().forward(images, wants, alone)
        classes = explained_classes(wants, rows.class_ids)
        with torch.inference_mode(), device_errors():
            maps = {i: self._recording.activation(i, class_id).cpu().numpy() for i, class_id in classes.items()}
        return dataclasses.replace(rows, activations=maps)

    def _fastest_lanes(self, reference: FeaturesAndLogits) -> list[Lane]:
        return self._create_lanes(reference, graphs=False)

    def _lane(self, network: FeaturesAndLogits, graphs: bool) -> Lane:
        crop = self._model.preprocessing.crop
        images = torch.randn((1, 3, crop, crop), generator=torch.Generator().manual_seed(0))
        # In the memory format of a lane, on which the operations of a network can depend.
        images = images.to(self._device, self._dtype, memory_format=torch.channels_last)
        place = recording.find(network, images)
        if place is None:
            raise Inexplicable(no_maps(self._model))
        self._recording = Recording(network, place)
        return self._new_lane(self._recording, graphs)


def _folded_and_fused(network: FeaturesAndLogits) -> FeaturesAndLogits:
    return fuse(fold(network))


def _unchanged(network: FeaturesAndLogits) -> FeaturesAndLogits:
    return network


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
