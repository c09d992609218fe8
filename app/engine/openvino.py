"""The OpenVINO engine for CPUs, without torch. ``forward`` runs on the threads of the streams, one more than cores.

The network is compiled twice. ``narrow`` has single-threaded streams for several waiting images. ``wide`` uses all
cores for a single image. Measured on 2 cores with resnet50 in bfloat16: narrow streams reach 121 img/s at any batch
size, and a single image takes 9 ms instead of 17 ms. The additional stream computes while another stream waits for the
interpreter or for its next batch: 98-103 img/s through HTTP, compared with 93-99 img/s without it.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import numpy as np

from app import machine, models
from app.engine import activation
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
from app.errors import Inexplicable, ModelError
from app.models.model import Model
from app.models.openvino import auto_precision, ov

_BUCKETS = (1, 2, 4, 8)
_MAPS = "maps"  # the name of an output
_TOLERANCE = {"float32": 1e-3, "bfloat16": 0.05, "float16": 0.01, "int8": 0.1}  # of what the maps explain
_CAPABILITY = {"bfloat16": "BF16", "float16": "FP16"}
_TYPES = {"float32": ov.Type.f32, "bfloat16": ov.Type.bf16, "float16": ov.Type.f16, "int8": ov.Type.f32}


class OpenVinoEngine:
    """Computes in float32, bfloat16 or float16, or in int8 if the model was exported in int8."""

    name = "openvino"
    device = "cpu"
    compilation = "compiled"
    pads = False
    decodes_jpegs = False

    def __init__(self, model: Model, precision: str) -> None:
        self._model = model
        self._core = ov.Core()
        self._capabilities: list[str] = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = self._precision(precision)
        self._temperature = model.temperature(self.precision)
        self.spreads = machine.cores() > 1
        self.streams = machine.cores() + 1
        self.buckets: tuple[int, ...] = _BUCKETS
        preprocessing = model.preprocessing
        self._mean = np.array(preprocessing.mean, np.float32) * 255
        self._std = np.array(preprocessing.std, np.float32) * 255
        self.inexplicable: str | None = no_maps(self._model)  # until ``load`` has read the network

    @property
    def device_name(self) -> str:
        return machine.processor()

    @property
    def dim(self) -> int:
        dim: int = self._narrow.output("features").partial_shape[1].get_length()
        return dim

    def memory(self) -> dict[str, int]:
        return {}

    def load(self) -> None:
        try:
            network = self._network()
            explicable = activation.has_maps(network, self._model.preprocessing.crop)
            self.inexplicable = None if explicable else no_maps(self._model)
            self._narrow = self._compile(network, self.streams, threads=self.streams)
            self._wide = self._compile(network, 1, threads=machine.cores()) if self.spreads else self._narrow
            self._requests = {alone: SimpleQueue[ov.InferRequest]() for alone in (True, False)}
            self._requests[True].put(self._wide.create_infer_request())  # a lone batch needs only one
            for _ in range(self.streams):
                self._requests[False].put(self._narrow.create_infer_request())
            # Run once before the streams start. Threads that pass their first arrays to the bindings at the same time
            # can deadlock: one holds the interpreter lock, the other the lock of an initialisation.
            rows = self.forward([np.zeros(self._shape, np.uint8)], [Want(features=True, logits=True)])
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise ModelError(f"OpenVINO cannot run {self._model.name} on this machine: {reason}") from error
        check_outputs(self._model, len(rows.logits[0]), len(rows.features[0]))

    def forward(self, images: Sequence[Jpeg | Pixels], wants: Sequence[Want], alone: bool = False) -> Rows:
        with self._request(alone) as request:
            with device_errors():
                outputs = request.infer([self._pixels(images)], share_inputs=True)
            return self._rows(outputs, wants)

    def explaining(self) -> "OpenVinoExplainer":
        return OpenVinoExplainer(self._model, self.precision)

    def _rows(self, outputs: Any, wants: Sequence[Want]) -> Rows:
        """The outputs of a batch by image."""
        features, logits = outputs["features"], outputs["logits"]
        probabilities, energies = _softmax(logits, self._temperature)
        class_ids = np.argsort(-probabilities, axis=1, kind="stable")[:, : max(want.k for want in wants)]
        return Rows(
            class_ids,
            np.take_along_axis(probabilities, class_ids, 1),
            np.isfinite(features).all(1) & np.isfinite(logits).all(1),
            energies,
            features={i: features[i] for i, want in enumerate(wants) if want.features},
            logits={i: logits[i] for i, want in enumerate(wants) if want.logits},
            probabilities={i: probabilities[i] for i, want in enumerate(wants) if want.probabilities},
        )

    def _network(self) -> ov.Model:
        if self._model.openvino:
            return self._core.read_model(self._model.openvino)
        models.require_torch(f"converting {self._model.name}")
        from app.models.convert import to_openvino

        return to_openvino(self._model)

    def _compile(self, network: ov.Model, streams: int, threads: int) -> ov.CompiledModel:
        return self._core.compile_model(
            network,
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": _TYPES[self.precision],
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": threads,
                "ENABLE_CPU_PINNING": False,  # the cores that other processes use are unknown
            },
        )

    def _precision(self, requested: str) -> str:
        exported = self._model.precision
        if exported == "int8" and requested in ("auto", "int8"):
            return "int8"
        if requested == "int8":
            raise ModelError(
                f"{self._model.name} is not an int8 model; create one from your own photographs with"
                " `topk export MODEL --out FOLDER --precision int8 --calibrate DIR`"
            )
        if exported == "int8":
            raise ModelError(f"{self._model.name} is exported in {exported}; it cannot be served in {requested}")
        precision = exported if requested == "auto" else requested
        if precision == "auto":
            return auto_precision()
        if precision != "float32" and _CAPABILITY[precision] not in self._capabilities:
            raise ModelError(f"this CPU does not support {precision} natively; use `--engine torch`, which emulates it")
        return precision

    @contextmanager
    def _request(self, alone: bool) -> Iterator[ov.InferRequest]:
        """Borrow an inference request for one batch. Its buffers are reused."""
        request = self._requests[alone].get()
        try:
            yield request
        finally:
            self._requests[alone].put(request)

    def _pixels(self, images: Sequence[Jpeg | Pixels]) -> Floats:
        """Return float32 pixels of shape [n, crop, crop, 3] in 0..255, which the network normalises.

        Preprocessed tensors are denormalised.
        """
        pixels: Floats = np.empty((len(images), *self._shape), np.float32)
        for i, image in enumerate(images):
            assert not isinstance(image, Jpeg)
            pixels[i] = image if image.dtype == np.uint8 else image.transpose(1, 2, 0) * self._std + self._mean
        return pixels

    @property
    def _shape(self) -> tuple[int, int, int]:
        crop = self._model.preprocessing.crop
        return crop, crop, 3


class OpenVinoExplainer(OpenVinoEngine):
    """The same network in one stream of one thread, with the input of its final pooling as a further output."""

    def __init__(self, model: Model, precision: str) -> None:
        super().__init__(model, precision)
        self.spreads = False
        self.streams = 1
        self.buckets = (1,)

    def load(self) -> None:
        super().load()
        self._check_maps()

    def _check_maps(self) -> None:
        """Raise Inexplicable if the maps do not explain the logits of two different crops."""
        crops = np.zeros((2, *self._shape), np.uint8)
        crops[1] = np.random.default_rng(0).integers(0, 256, self._shape)
        with self._request(alone=False) as request:
            outputs = request.infer([self._pixels(list(crops))], share_inputs=True)
            deviation = activation.deviation(self._maps(outputs), outputs["features"], outputs["logits"], self._weights)
        if not deviation <= _TOLERANCE[self.precision]:
            raise Inexplicable(
                f"the class activation maps of {self._model.name} deviate from its logits by {deviation:.1%}"
            )

    def _network(self) -> ov.Model:
        network = super()._network()
        activation.fix_size(network, self._model.preprocessing.crop)
        if (tail := activation.tail(network)) is None:
            raise Inexplicable(no_maps(self._model))
        self._weights = activation.weights(tail)  # [classes, dim]
        self._channels_last = tail.channels_last
        [output] = network.add_outputs([tail.maps])
        output.get_tensor().add_names({_MAPS})
        return network

    def _rows(self, outputs: Any, wants: Sequence[Want]) -> Rows:
        rows = super()._rows(outputs, wants)
        maps = self._maps(outputs)
        classes = explained_classes(wants, rows.class_ids)
        activations = {i: np.tensordot(self._weights[class_id], maps[i], 1) for i, class_id in classes.items()}
        return dataclasses.replace(rows, activations=activations)

    def _maps(self, outputs: Any) -> Floats:
        """The input of the final pooling, [n, dim, rows, columns]."""
        maps: Floats = outputs[_MAPS]
        return maps.transpose(0, 3, 1, 2) if self._channels_last else maps


def _softmax(logits: Floats, temperature: float) -> tuple[Floats, Floats]:
    """The softmax of the logits [n, classes] at a temperature, and the energies [n]: see ``Rows``."""
    best = logits.max(axis=1, keepdims=True)
    exponentials = np.exp(logits - best)
    sums = exponentials.sum(axis=1, keepdims=True)
    energies: Floats = (best + np.log(sums))[:, 0] - logits.mean(axis=1)
    if temperature != 1:
        exponentials = np.exp((logits - best) / np.float32(temperature))
        sums = exponentials.sum(axis=1, keepdims=True)
    return exponentials / sums, energies
