"""Open Inference v2 as the manuals and sample clients of other servers write it."""

import base64
import json
import struct
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
import requests
from PIL import Image

from tests.api.conftest import InProcess
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
MODEL = "efficientnet_lite0"


def png() -> bytes:
    """Another picture: the upper left quarter of the photograph."""
    file = BytesIO()
    with Image.open(CAT) as image:
        image.crop((0, 0, image.width // 2, image.height // 2)).save(file, "PNG")
    return file.getvalue()


OTHER = png()
LONGEST = max(len(PHOTO), len(OTHER))


def url(server: InProcess, path: str = "infer") -> str:
    return f"{server.url}/v2/models/{MODEL}/{path}"


def scores(server: InProcess, file: bytes) -> list[float]:
    """The scores of a file that is sent alone."""
    answer = httpx2.post(url(server), content=file, headers={"Content-Type": "application/octet-stream"})
    values: list[float] = answer.json()["outputs"][0]["data"]
    return values


def check(server: InProcess, answer: Any, *files: bytes) -> None:
    """The answer has the scores that each of the files has alone."""
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert (body["model_name"], body["model_version"]) == (MODEL, "1")
    [output] = body["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("scores", "FP32", [len(files), 1000])
    rows = np.reshape(output["data"], (len(files), 1000))
    np.testing.assert_allclose(rows, [scores(server, file) for file in files], atol=2e-3)


def tensor(datatype: str = "BYTES", shape: Any = (1,), **members: Any) -> dict[str, Any]:
    return {"name": "0", "datatype": datatype, "shape": shape, **members}


def asked(datatype: str = "BYTES", shape: Any = (1,), **members: Any) -> dict[str, Any]:
    return {"inputs": [tensor(datatype, shape, **members)]}


def binary(server: InProcess, document: dict[str, Any], tail: bytes) -> httpx2.Response:
    head = json.dumps(document).encode()
    return httpx2.post(url(server), content=head + tail, headers={"Inference-Header-Content-Length": str(len(head))})


def element(file: bytes) -> bytes:
    return struct.pack("<I", len(file)) + file


def padded(*files: bytes) -> bytes:
    return b"".join(file.ljust(LONGEST, b"\0") for file in files)


def without_name(**members: Any) -> dict[str, Any]:
    return {"shape": [1], "datatype": "BYTES", "data": [BASE64], **members}


NULLS = {"id": None, "parameters": None, "outputs": None, "model_name": MODEL, "model_version": None}
FORMS: dict[str, dict[str, Any]] = {
    "KServe, tobytes.py": {"inputs": [{"data": BASE64, "datatype": "BYTES", "name": "4b7c7d4a", "shape": -1}]},
    "KServe, several with that shape": asked(shape=-1, data=[BASE64]),
    "MLServer, a string": asked(data=BASE64),
    "MLServer, base64": asked(data=[BASE64], parameters={"content_type": "base64"}),
    "MLServer and KServe, all members": NULLS | {"inputs": [tensor(data=[BASE64], parameters=None)]},
    "Triton, parameters": asked(data=[BASE64], parameters={})
    | {"parameters": {"sequence_id": 0, "priority": 0, "timeout": 0, "my_custom_parameter": 42}},
    "Triton, a batch dimension": asked(shape=[1, 1], data=[[BASE64]]),
    "Triton, flat data of two dimensions": asked(shape=[1, 1], data=[BASE64]),
    "TensorFlow Serving's b64": asked(data=[{"b64": BASE64}]),
    "no id, no outputs": asked(data=[BASE64]),
    "empty outputs": asked(data=[BASE64]) | {"outputs": []},
    "an output without parameters": asked(data=[BASE64]) | {"outputs": [{"name": "scores"}]},
    "an output with empty parameters": asked(data=[BASE64]) | {"outputs": [{"name": "scores", "parameters": {}}]},
    "an output with null parameters": asked(data=[BASE64]) | {"outputs": [{"name": "scores", "parameters": None}]},
    "an output without a name": asked(data=[BASE64]) | {"outputs": [{}]},
    "an output whose name is null": asked(data=[BASE64]) | {"outputs": [{"name": None}]},
    "an input without a name": {"inputs": [without_name()]},
    "an input whose name is null": {"inputs": [without_name(name=None)]},
    "UINT8": asked("UINT8", [len(PHOTO)], data=list(PHOTO)),
    "UINT8 with a batch dimension": asked("UINT8", [1, len(PHOTO)], data=list(PHOTO)),
    "UINT8, nested": asked("UINT8", [1, len(PHOTO)], data=[list(PHOTO)]),
    "UINT8 of any length": asked("UINT8", -1, data=list(PHOTO)),
}


@pytest.mark.parametrize("document", FORMS.values(), ids=FORMS)
def test_json(app_server: InProcess, document: dict[str, Any]) -> None:
    check(app_server, httpx2.post(url(app_server), json=document), PHOTO)


def test_json_of_any_content_type(app_server: InProcess) -> None:
    body = json.dumps(asked(data=[BASE64])).encode()
    for kind in ("application/octet-stream", "Application/Octet-Stream; a=b", "application/x-www-form-urlencoded"):
        check(app_server, httpx2.post(url(app_server), content=body, headers={"Content-Type": kind}), PHOTO)
    check(app_server, httpx2.post(url(app_server), content=b" \n" + body), PHOTO)


def test_an_image_alone_with_a_parameter_of_its_type(app_server: InProcess) -> None:
    headers = {"Content-Type": "application/octet-stream; charset=binary"}
    check(app_server, httpx2.post(url(app_server), content=OTHER, headers=headers), OTHER)


SIZED = {"binary_data_size": len(PHOTO)}
BINARY: dict[str, tuple[dict[str, Any], bytes]] = {
    "Triton": (asked(parameters={"binary_data_size": len(PHOTO) + 4}), element(PHOTO)),
    "Triton, a batch dimension": (asked(shape=[1, 1], parameters={"binary_data_size": len(PHOTO) + 4}), element(PHOTO)),
    "OpenVINO, no size": (asked(), element(PHOTO)),
    "OpenVINO, no size, null members": (asked(parameters=None, data=None), element(PHOTO)),
    "OpenVINO 2022, the file itself": (asked(parameters=SIZED), PHOTO),
    "OpenVINO 2022, the file itself, a string": (asked(parameters={"binary_data_size": str(len(PHOTO))}), PHOTO),
    "the file itself, no size": (asked(), PHOTO),
    "no name": ({"inputs": [{"shape": [1], "datatype": "BYTES"}]}, element(PHOTO)),
    "a number that ends in .0": (asked(parameters={"binary_data_size": float(len(PHOTO))}), PHOTO),
    "UINT8": (asked("UINT8", [len(PHOTO)], parameters=SIZED), PHOTO),
    "UINT8, no size": (asked("UINT8", [len(PHOTO)]), PHOTO),
    "DALI": (asked("UINT8", [1, len(PHOTO)], parameters=SIZED), PHOTO),
}


@pytest.mark.parametrize(("document", "tail"), BINARY.values(), ids=BINARY)
def test_binary(app_server: InProcess, document: dict[str, Any], tail: bytes) -> None:
    check(app_server, binary(app_server, document, tail), PHOTO)


BATCHES: dict[str, tuple[dict[str, Any], bytes]] = {
    "Triton": (asked(shape=[2, 1]), element(OTHER) + element(PHOTO)),
    "DALI": (asked("UINT8", [2, LONGEST]), padded(OTHER, PHOTO)),
}


@pytest.mark.parametrize(("document", "tail"), BATCHES.values(), ids=BATCHES)
def test_binary_batches(app_server: InProcess, document: dict[str, Any], tail: bytes) -> None:
    check(app_server, binary(app_server, document, tail), OTHER, PHOTO)


@pytest.mark.parametrize("files", [[PHOTO], [OTHER, PHOTO], [PHOTO, OTHER, PHOTO]])
def test_openvino_s_sample_of_2022(app_server: InProcess, files: list[bytes]) -> None:
    """``http_infer_binary_resnet.py`` sends the sizes as a string, and nothing before a file."""
    sizes = ",".join(str(len(file)) for file in files)
    image = {"name": "0", "shape": [len(files)], "datatype": "BYTES", "parameters": {"binary_data_size": sizes}}
    head = json.dumps({"inputs": [image]}).encode()
    answer = requests.post(
        url(app_server), head + b"".join(files), headers={"Inference-Header-Content-Length": str(len(head))}, timeout=60
    )
    check(app_server, answer, *files)


def test_several_strings_and_rows_in_json(app_server: InProcess) -> None:
    data = [base64.b64encode(file).decode() for file in (OTHER, PHOTO)]
    for shape in (-1, [2], [2, 1]):
        check(app_server, httpx2.post(url(app_server), json=asked(shape=shape, data=data)), OTHER, PHOTO)
    rows = [list(file.ljust(LONGEST, b"\0")) for file in (OTHER, PHOTO)]
    check(app_server, httpx2.post(url(app_server), json=asked("UINT8", [2, LONGEST], data=rows)), OTHER, PHOTO)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_file_of_any_kind_with_and_without_its_length(app_server: InProcess, kind: str) -> None:
    file = BytesIO()
    with Image.open(CAT) as image:
        image.resize((200, 200)).convert("RGB").save(file, kind)
    content = file.getvalue()
    check(app_server, binary(app_server, asked(), content), content)
    check(app_server, binary(app_server, asked(), element(content)), content)
    check(app_server, binary(app_server, asked("UINT8", [len(content)]), content), content)


@pytest.mark.parametrize("version", ["0", "1", "2", "-1", "latest", "1.0.0", "v%201"])
def test_any_version_is_that_which_is_served(app_server: InProcess, version: str) -> None:
    path = f"versions/{version}"
    check(app_server, httpx2.post(url(app_server, f"{path}/infer"), json=asked(data=[BASE64])), PHOTO)
    assert httpx2.get(url(app_server, f"{path}/ready")).json() == {"name": MODEL, "ready": True}
    metadata = httpx2.get(f"{app_server.url}/v2/models/{MODEL}")
    assert httpx2.get(url(app_server, path)).json() == metadata.json()
    assert httpx2.get(f"{app_server.url}/v2/models/another/{path}/ready").status_code == 404
    assert httpx2.post(f"{app_server.url}/v2/models/another/{path}/infer", content=PHOTO).status_code == 404


def test_an_image_without_a_batch_dimension(app_server: InProcess) -> None:
    image = np.linspace(-1, 1, 3 * 224 * 224, dtype="<f4")
    batch = binary(app_server, asked("FP32", [1, 3, 224, 224]), image.tobytes())
    alone = binary(app_server, asked("FP32", [3, 224, 224]), image.tobytes())
    assert batch.status_code == alone.status_code == 200
    assert alone.json() == batch.json()
    assert alone.json()["outputs"][0]["shape"] == [1, 1000]


def test_classification_without_a_name(app_server: InProcess) -> None:
    outputs = [{"parameters": {"classification": 2}}, {"name": "logits", "parameters": {"binary_data": False}}]
    found, logits = httpx2.post(url(app_server), json=asked(data=[BASE64]) | {"outputs": outputs}).json()["outputs"]
    assert [entry.split(":")[1:] for entry in found["data"]] == [["285", "Egyptian cat"], ["282", "tiger cat"]]
    assert (found["name"], logits["name"], int(np.argmax(logits["data"]))) == ("scores", "logits", 285)


PIXELS = [1, 224, 224, 3]
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "pixels": (asked("UINT8", PIXELS, data=[0]), 400, "UINT8, the bytes of image files, got [1, 224, 224, 3]; send"),
    "a scalar": (asked("UINT8", [], data=[0]), 400, "shape must be [bytes] or [images, bytes] for UINT8"),
    "NHWC": (asked("FP32", PIXELS, data=[0]), 400, "shape must be [n, 3, 224, 224] for FP32, got [1, 224, 224, 3]"),
    "half precision": (asked("FP16", [1, 3, 224, 224], data=[0]), 400, "datatype must be BYTES or UINT8 for image"),
    "STRING": (asked("STRING", data=[BASE64]), 400, "datatype must be BYTES or UINT8 for image files, or FP32"),
    "no datatype": ({"inputs": [{"shape": [1], "data": [BASE64]}]}, 400, "datatype must be BYTES or UINT8"),
    "no shape": ({"inputs": [{"datatype": "BYTES", "data": [BASE64]}]}, 400, "shape must be a list"),
    "two inputs": ({"inputs": [tensor(data=[BASE64])] * 2}, 400, "one input, which may contain several images"),
    "another output": (asked(data=[BASE64]) | {"outputs": [{"name": "output0"}]}, 400, "must be scores or logits"),
    "two outputs without names": (asked(data=[BASE64]) | {"outputs": [{}, {}]}, 400, "outputs has duplicates"),
    "bytes that are no image": (asked("UINT8", [3], data=[1, 2, 3]), 415, "image[0]: "),
    "too few bytes": (asked("UINT8", [4], data=[1, 2, 3]), 400, "data must have 4 numbers, got 3 values"),
    "a byte of 256": (asked("UINT8", [2], data=[1, 256]), 400, "whole numbers between 0 and 255 for UINT8"),
    "a byte of -1": (asked("UINT8", [2], data=[-1, 2]), 400, "whole numbers between 0 and 255 for UINT8"),
    "a huge byte": (asked("UINT8", [1], data=[2**63]), 400, "whole numbers between 0 and 255 for UINT8"),
    "a fraction": (asked("UINT8", [2], data=[1.5, 2]), 400, "whole numbers between 0 and 255 for UINT8"),
    "a boolean": (asked("UINT8", [1], data=[True]), 400, "whole numbers between 0 and 255 for UINT8"),
    "base64 as UINT8": (asked("UINT8", [1], data=[BASE64]), 400, "whole numbers between 0 and 255 for UINT8"),
    "too many rows": (asked("UINT8", [33, 1], data=[0] * 33), 413, "33 images; a request may have at most 32"),
    "more strings than the shape": (asked(shape=[1], data=[BASE64] * 2), 400, "requires 1 images, got 2"),
    "shared memory": (asked(parameters={"shared_memory_region": "a"}), 400, "either data, or binary_data_size"),
    "b64 of nothing": (asked(data=[{"b64": BASE64, "a": 1}]), 400, "must be a base64 string"),
}


@pytest.mark.parametrize(("document", "status", "detail"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_has_a_reason(
    app_server: InProcess, document: dict[str, Any], status: int, detail: str
) -> None:
    answer = httpx2.post(url(app_server), json=document)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    assert detail in answer.json()["error"]


@pytest.mark.parametrize(
    ("sizes", "tail", "detail"),
    [
        ("5,6", PHOTO, "binary_data_size must be"),
        (f"{len(PHOTO)},", PHOTO, "binary_data_size must be"),
        (f"-1,{len(PHOTO) + 1}", PHOTO, "binary_data_size must be"),
        ("," * 10**5, PHOTO, "binary_data_size must be"),
        ("1" * 10**5, PHOTO, "binary_data_size must be"),
        (f"{len(PHOTO)},{len(PHOTO)}", PHOTO * 2, "requires 1 images, got 2"),
        (f"{len(PHOTO)},0", PHOTO, "requires 1 images, got 2"),
    ],
)
def test_sizes_must_be_those_of_the_files(app_server: InProcess, sizes: str, tail: bytes, detail: str) -> None:
    answer = binary(app_server, asked(parameters={"binary_data_size": sizes}), tail)
    assert answer.status_code == 400
    assert detail in answer.json()["error"]
    assert len(answer.content) < 250


def test_bytes_must_be_as_many_as_the_shape_has(app_server: InProcess) -> None:
    answer = binary(app_server, asked("UINT8", [2, 10]), b"\0" * 19)
    assert (answer.status_code, answer.json()["error"]) == (400, "shape [2, 10] requires 20 bytes as UINT8, got 19")
