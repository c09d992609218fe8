"""A lane: what one batch at a time needs on a device. It is used by the thread that borrows it.

On CUDA a lane owns pinned memory, the input and the outputs on the device, and a CUDA graph for each batch size. One
launch then normalises the crops, runs the network, and copies the best classes to the host. All of it is allocated
before the lane serves. On other devices the same steps are plain calls.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from app.engine.base import Jpeg, Pixels, Rows, Want
from app.engine.jpeg import JpegDecoder
from app.images import Preprocessing

Network = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps normalised images [n, 3, crop, crop] to float32 features [n, dim] and logits [n, classes]."""

_K = 10  # classes per image that each batch copies to the host


class Outputs(NamedTuple):
    """Outputs on the device, float32 [n, dim] or [n, classes]. The next batch of the same size overwrites them."""

    features: Tensor
    logits: Tensor
    probabilities: Tensor


class Lane:
    """Runs batches with ``network``, which computes in ``dtype`` and has ``classes``.

    A batch is padded to the next of ``sizes``, ascending. Without sizes it runs as it is. ``graphs``: capture each size
    as a CUDA graph. Batches are limited to the largest size then. ``jpegs`` decodes files to the device's input.
    Logits are divided by ``temperature`` before the softmax.
    """

    @torch.inference_mode()
    def __init__(
        self,
        network: Network,
        classes: int,
        preprocessing: Preprocessing,
        device: torch.device,
        dtype: torch.dtype,
        sizes: Sequence[int] = (),
        graphs: bool = False,
        jpegs: JpegDecoder | None = None,
        temperature: float = 1.0,
    ) -> None:
        self._network = network
        self._classes = classes
        self._k = min(_K, classes)
        self._crop = preprocessing.crop
        self._device = device
        self._dtype = dtype
        self._sizes = sizes
        self._jpegs = jpegs
        self._temperature = temperature
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        self._scale, self._shift = (1 / (255 * std)).to(device), (-mean / std).to(device)
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._finished = torch.cuda.Event(blocking=True) if self._cuda else None  # type: ignore[no-untyped-call]
        self._reserve(max(sizes, default=1))
        self._graphs: dict[int, Callable[[], Outputs]] = {}
        if graphs:
            with torch.cuda.stream(self._stream):
                pool = torch.cuda.graph_pool_handle()
                for size in reversed(sizes):  # the largest one first: the others reuse its memory
                    self._graphs[size] = self._capture(size, pool)

    @torch.inference_mode()
    def run(self, images: Sequence[Jpeg | Pixels], wants: Sequence[Want]) -> Rows:
        """Classify one batch: see ``Engine.forward``."""
        size = next((size for size in self._sizes if size >= len(images)), len(images))
        with torch.cuda.stream(self._stream):
            tensors = self._fill(images)
            undecodable = self._decode({p: image for p, image in enumerate(images) if isinstance(image, Jpeg)})
            if tensors:
                outputs = self._compute(self._with_tensors(self._normalised(size), tensors))
            else:
                outputs = self._graphs.get(size, partial(self._pass, size))()
            return self._rows(outputs, wants, undecodable)

    def _reserve(self, count: int) -> None:
        """Allocate the buffers for batches of up to ``count`` images."""
        shape = (count, self._crop, self._crop, 3)
        staging = torch.empty(shape, dtype=torch.uint8, pin_memory=self._cuda)
        on_cpu = self._device.type == "cpu"
        self._pixels = staging if on_cpu else torch.empty(shape, dtype=torch.uint8, device=self._device)
        self._scores = torch.empty((count, self._k), pin_memory=self._cuda)
        self._class_ids = torch.empty((count, self._k), dtype=torch.int64, pin_memory=self._cuda)
        self._finite = torch.empty(count, dtype=torch.bool, pin_memory=self._cuda)
        self._energies = torch.empty(count, pin_memory=self._cuda)
        self._staging = staging  # the last one, whose length tells how many images there is room for

    def _fill(self, images: Sequence[Jpeg | Pixels]) -> dict[int, Pixels]:
        """Copy the crops to their places in the device's input. Returns the preprocessed tensors by their places."""
        count = len(images)
        if count > len(self._staging):
            if self._graphs:  # which hold the addresses of the buffers
                raise MemoryError(f"a batch of {count} images is larger than the largest CUDA graph")
            self._reserve(count)
        staging = self._staging.numpy()
        tensors: dict[int, Pixels] = {}
        filled = False
        for place, image in enumerate(images):
            if isinstance(image, Jpeg):
                continue
            filled = True
            if image.dtype == np.uint8:
                staging[place] = image
            else:
                tensors[place] = image
        if filled and self._pixels is not self._staging:
            self._pixels[:count].copy_(self._staging[:count], non_blocking=self._cuda)
        return tensors

    def _decode(self, files: dict[int, Jpeg]) -> list[int]:
        """Decode files to their places in the device's input. Returns the places of those that it cannot decode."""
        if not files:
            return []
        assert self._jpegs
        return self._jpegs.decode(list(files.values()), list(files), self._pixels)

    def _capture(self, size: int, pool: Any) -> Callable[[], Outputs]:
        """Capture a pass as a CUDA graph. Returns the function that replays it."""
        for _ in range(2):  # cuDNN chooses its algorithms, and cuBLAS allocates; neither is possible during a capture
            self._pass(size)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=self._stream, capture_error_mode="thread_local"):
            outputs = self._pass(size)

        def replay() -> Outputs:
            graph.replay()
            return outputs

        return replay

    def _pass(self, size: int) -> Outputs:
        """Run the first ``size`` places of the device's input."""
        return self._compute(self._normalised(size))

    def _normalised(self, size: int) -> Tensor:
        """The crops as normalised [size, 3, crop, crop], channels last, computed in float32."""
        pixels = self._pixels[:size].permute(0, 3, 1, 2)
        if self._device.type == "mps":  # where addcmul is not known to mix types
            pixels = pixels.float()
        images = torch.empty_like(pixels, dtype=self._dtype)
        return torch.addcmul(self._shift, pixels, self._scale, out=images)

    def _with_tensors(self, images: Tensor, tensors: dict[int, Pixels]) -> Tensor:
        """Copy preprocessed tensors to their places. They are rare, so no graph includes them."""
        stacked = torch.from_numpy(np.stack(list(tensors.values())))
        if self._cuda:
            stacked = stacked.pin_memory()
        for place, tensor in zip(tensors, stacked.to(self._device, non_blocking=self._cuda), strict=True):
            images[place] = tensor
        return images

    def _compute(self, images: Tensor) -> Outputs:
        """Run the network, and copy the best classes to the host."""
        features, logits = self._network(images)
        probabilities = (logits if self._temperature == 1 else logits / self._temperature).softmax(1)
        scores, class_ids = probabilities.topk(self._k, 1)
        finite = features.isfinite().all(1) & logits.isfinite().all(1)
        best = ((self._scores, scores), (self._class_ids, class_ids))
        energies = logits.logsumexp(1) - logits.mean(1)
        for buffer, values in (*best, (self._finite, finite), (self._energies, energies)):
            buffer[: len(images)].copy_(values, non_blocking=self._cuda)
        return Outputs(features, logits, probabilities)

    def _rows(self, outputs: Outputs, wants: Sequence[Want], undecodable: Sequence[int]) -> Rows:
        """Wait for the batch, and copy its rows out of the buffers, which the next batch overwrites."""
        count = len(wants)
        k = min(max((want.k for want in wants), default=0), self._classes)
        best = (self._scores[:count, :k], self._class_ids[:count, :k])
        if k > self._k:
            best = outputs.probabilities[:count].topk(k, 1)
        scores, class_ids = (self._to_host(values) for values in best)
        whole = {
            name: (places, self._to_host(values[:count]))
            for name, values in outputs._asdict().items()
            if (places := [place for place, want in enumerate(wants) if getattr(want, name)])
        }
        if self._finished:
            self._finished.record()
            self._finished.synchronize()  # blocks, where a stream's own wait spins
        return Rows(
            class_ids.numpy().copy(),
            scores.numpy().copy(),
            self._finite[:count].numpy().copy(),
            self._energies[:count].numpy().copy(),
            undecodable=undecodable,
            **{name: {place: rows[place].numpy().copy() for place in places} for name, (places, rows) in whole.items()},
        )

    def _to_host(self, values: Tensor) -> Tensor:
        return values.to("cpu", non_blocking=self._cuda)  # into pinned memory on CUDA
