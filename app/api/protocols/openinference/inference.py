"""Requests and responses of an inference: JSON, binary tensors, and the classification extension."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import orjson
from starlette.responses import Response

from app.api.answers import as_json
from app.api.documents import Body, loads
from app.api.excerpts import shown
from app.api.forms import Upload
from app.api.options import PredictOptions
from app.api.predicting import Predicting
from app.api.protocols.members import members, whole_number
from app.api.protocols.openinference.extras import Values, extras, options
from app.api.protocols.openinference.schemas import ID_CHARACTERS, OUTPUTS
from app.api.protocols.openinference.tensors import LENGTH, images_of
from app.api.protocols.protocol import VERSION
from app.api.uploads import Uploads
from app.classifier import Classifier, Result
from app.engine import Want
from app.errors import Internal, InvalidParameter, MalformedRequest

Tensor = list[str] | Values
_DATATYPES = {"float32": "FP32", "int64": "INT64", "bool": "BOOL"}
BINARY_HEADER = "Inference-Header-Content-Length"
_PREFIX = 64  # bytes that are enough to recognise JSON
_JSON_NUMBERS = 2**20  # parsing as many holds the interpreter for a tenth of a second


@dataclass(frozen=True, slots=True)
class Output:
    """A requested output: ``scores`` or ``logits``, whole or as the ``k`` best classes."""

    name: str = "scores"
    k: int | None = None
    binary: bool = False

    def tensor(
        self, classifier: Classifier, results: list[Result]
    ) -> tuple[list[int], list[str] | npt.NDArray[np.float32]]:
        """The shape, and the values row by row: float32, or ``score:index:label``."""
        if self.k is None:
            rows = [_whole(result, self.name) for result in results]
            return [len(rows), len(rows[0])], np.concatenate(rows)
        texts = [text for result in results for text in _classes(classifier, result, self.name, self.k)]
        return [len(results), len(texts) // len(results)], texts


@dataclass(frozen=True, slots=True)
class Inference:
    """A request's images and the requested outputs."""

    images: list[Upload]
    place: str = "image"
    id: str | None = None
    outputs: list[Output] = field(default_factory=lambda: [Output()])
    options: PredictOptions | None = None
    binary: bool = False

    @property
    def sets(self) -> bool:
        return self.options is not None and self.options.coverage is not None

    def want(self, classifier: Classifier) -> Want:
        k = max((output.k or 1 for output in self.outputs), default=1)
        extra = Predicting(classifier, self.options).want if self.options else Want()
        return Want(
            k=min(k, len(classifier.model.labels)),
            logits=any(output.name == "logits" for output in self.outputs),
            probabilities=self.sets or any(output.name == "scores" and output.k is None for output in self.outputs),
            explain=extra.explain,
        )

    def answer(self, classifier: Classifier, results: list[Result]) -> Response:
        described, tails = [], []
        for name, binary, shape, values in self._tensors(classifier, results):
            datatype = "BYTES" if isinstance(values, list) else _DATATYPES[values.dtype.name]
            entry: dict[str, object] = {"name": name, "datatype": datatype, "shape": shape}
            if binary:
                tails.append(_packed(values))
                entry["parameters"] = {"binary_data_size": len(tails[-1])}
            else:
                entry["data"] = values
            described.append(entry)
        body: dict[str, object] = {"model_name": classifier.model.name, "model_version": VERSION}
        body |= {} if self.id is None else {"id": self.id}
        if not tails:
            return as_json(body | {"outputs": described})
        head = orjson.dumps(body | {"outputs": described}, option=orjson.OPT_SERIALIZE_NUMPY)
        return Response(
            b"".join([head, *tails]),
            headers={BINARY_HEADER: str(len(head))},
            media_type="application/octet-stream",
        )

    def _tensors(self, classifier: Classifier, results: list[Result]) -> Iterator[tuple[str, bool, list[int], Tensor]]:
        """Name, whether it is binary, shape and values of each output: the requested ones, then the further ones."""
        for output in self.outputs:
            yield (output.name, output.binary, *output.tensor(classifier, results))
        if self.options:
            for extra in extras(classifier, Predicting(classifier, self.options), results):
                yield extra.name, self.binary, extra.shape, extra.values


def read(content: Body, header_length: str | None, binary: bool, uploads: Uploads, crop: int) -> Inference:
    """Read a body: JSON, JSON followed by binary tensors, or an image alone. Raises TopkError.

    ``binary``: without ``header_length``, the body is an image unless it begins as a JSON object does.
    """
    length = _header_length(header_length, len(content))
    is_image = binary and header_length is None and content[:_PREFIX].lstrip()[:1] != b"{"
    if length == 0 or is_image:
        return Inference([uploads.image(bytes(content))])
    tensor = 3 * crop * crop
    numbers = min(uploads.most_images * tensor, max(_JSON_NUMBERS, tensor))
    document = loads(
        content if length == len(content) else content[:length],
        numbers,
        "send an image alone with Content-Type: application/octet-stream",
        "send fewer images, or tensors as binary data",
    )
    if not isinstance(document, dict):
        raise MalformedRequest('the JSON must be {"inputs": [{"name", "shape", "datatype", "data"}]}')
    given = document.get("id")
    if given is not None and not (isinstance(given, str) and len(given) <= ID_CHARACTERS):
        raise MalformedRequest(f"id must be a string of at most {ID_CHARACTERS} characters")
    parameters = members(document.get("parameters"), "parameters")
    as_binary = parameters.get("binary_data_output") is True
    outputs = _outputs(document.get("outputs"), as_binary)
    images = images_of(document.get("inputs"), memoryview(content)[length:], uploads, crop)
    return Inference(images, id=given, outputs=outputs, options=options(parameters), binary=as_binary)


def _header_length(given: str | None, most: int) -> int:
    if given is None:
        return most
    if not (given.isascii() and given.isdigit() and len(given) < 12 and int(given) <= most):
        raise MalformedRequest(
            f"{BINARY_HEADER} must be the length of the JSON, at most the {most} bytes of the body, got {shown(given)}"
        )
    return int(given)


def _outputs(given: object, binary: bool) -> list[Output]:
    if given is None or given == []:
        return [Output(binary=binary)]
    if not isinstance(given, list) or not all(isinstance(output, dict) for output in given):
        raise MalformedRequest("outputs must be a list of objects")
    if len(given) > OUTPUTS:
        raise InvalidParameter(f"outputs must have at most {OUTPUTS} elements, got {len(given)}")
    outputs = [_output(output, binary) for output in given]
    if len({(output.name, output.k is None) for output in outputs}) < len(outputs):
        raise InvalidParameter(
            "outputs has duplicates; request each output at most once whole, and once with classification"
        )
    return outputs


def _output(given: dict[str, object], binary: bool) -> Output:
    name = given.get("name")
    name = "scores" if name is None else name
    if not isinstance(name, str) or name not in ("scores", "logits"):
        raise InvalidParameter(f"the name of an output must be scores or logits, got {shown(name)}")
    parameters = members(given.get("parameters"), "the parameters of an output")
    k = whole_number(parameters["classification"], "classification") if "classification" in parameters else None
    return Output(name, k, parameters.get("binary_data", binary) is True)


def _whole(result: Result, name: str) -> npt.NDArray[np.float32]:
    row = result.row.logits if name == "logits" else result.row.probabilities
    if row is None:
        raise Internal(f"the device returned no {name}")
    return row


def _classes(classifier: Classifier, result: Result, name: str, k: int) -> list[str]:
    ids = result.row.class_ids[:k]
    values = _whole(result, name)[ids] if name == "logits" else result.row.scores[:k]
    labels = classifier.model.labels
    return [f"{value:f}:{i}:{labels[i].label}" for i, value in zip(ids.tolist(), values.tolist(), strict=True)]


def _packed(values: Tensor) -> bytes:
    """A tensor as binary data."""
    if not isinstance(values, list):
        return values.astype(values.dtype.newbyteorder("<")).tobytes()
    elements = [value.encode() for value in values]
    return b"".join(LENGTH.pack(len(element)) + element for element in elements)
