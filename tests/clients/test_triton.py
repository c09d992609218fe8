"""NVIDIA's ``tritonclient``: JSON and binary tensors, files and preprocessed images, classification."""

from collections.abc import Iterator
from io import BytesIO
from typing import Any

import httpx2
import numpy as np
import pytest
import tritonclient.http as triton
from PIL import Image
from tritonclient.utils import InferenceServerException

from tests.clients.conftest import BASE64, LABELS, MODEL, PHOTO
from tests.conftest import CAT, Server


@pytest.fixture
def client(embedded_server: Server) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(embedded_server.url.removeprefix("http://")) as client:
        yield client


def files(*contents: bytes | str, binary: bool = True) -> triton.InferInput:
    image = triton.InferInput("image", [len(contents)], "BYTES")
    return image.set_data_from_numpy(np.array(contents, np.object_), binary_data=binary)


def as_bytes(*contents: bytes, dimensions: int = 2, binary: bool = True) -> triton.InferInput:
    """Files as NVIDIA DALI's examples send them: shorter ones are padded with zeros."""
    longest = max(map(len, contents))
    rows = np.array([np.frombuffer(content.ljust(longest, b"\0"), np.uint8) for content in contents])
    rows = rows[0] if dimensions == 1 else rows
    return triton.InferInput("INPUT", list(rows.shape), "UINT8").set_data_from_numpy(rows, binary_data=binary)


def tensor(images: Any, binary: bool = True) -> triton.InferInput:
    return triton.InferInput("input", list(images.shape), "FP32").set_data_from_numpy(images, binary_data=binary)


def preprocessed() -> Any:
    """docs/cat.jpg as the embedded model's preset makes it, near enough."""
    with Image.open(CAT) as image:
        width, height = image.size
        side = min(width, height) * 224 // 256
        left, above = (width - side) // 2, (height - side) // 2
        crop = image.resize((224, 224), Image.Resampling.BICUBIC, (left, above, left + side, above + side))
    return ((np.asarray(crop, np.float32) / 255 - 0.5) / 0.5).transpose(2, 0, 1)[None]


def test_health_and_metadata(client: triton.InferenceServerClient, counts: Any, embedded_server: Server) -> None:
    with counts(embedded_server, "v2", 5):
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready(MODEL, "1")
        assert client.get_server_metadata()["extensions"] == ["binary_tensor_data", "classification"]
        metadata = client.get_model_metadata(MODEL)
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in metadata["outputs"]] == ["scores", "logits"]
    assert not client.is_model_ready("another")


@pytest.mark.parametrize("binary_out", [True, False])
@pytest.mark.parametrize("binary_in", [True, False])
def test_files(
    client: triton.InferenceServerClient, counts: Any, embedded_server: Server, binary_in: bool, binary_out: bool
) -> None:
    image = PHOTO if binary_in else BASE64
    wanted = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("scores", "logits")]
    with counts(embedded_server, "v2"):
        result = client.infer(MODEL, [files(image, image, binary=binary_in)], outputs=wanted, request_id="42")
    assert result.get_response()["id"] == "42"
    scores, logits = result.as_numpy("scores"), result.as_numpy("logits")
    assert scores.shape == logits.shape == (2, 1000)
    assert scores.dtype == np.float32
    assert scores[0].argmax() == 285
    odds = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(scores, odds / odds.sum(1, keepdims=True), atol=2e-3)


@pytest.mark.parametrize("binary", [True, False])
def test_files_as_bytes(client: triton.InferenceServerClient, binary: bool) -> None:
    expected = client.infer(MODEL, [files(PHOTO)]).as_numpy("scores")
    for dimensions in (1, 2):
        scores = client.infer(MODEL, [as_bytes(PHOTO, dimensions=dimensions, binary=binary)]).as_numpy("scores")
        np.testing.assert_allclose(scores, expected, atol=2e-3)
    with Image.open(CAT) as image:
        image.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(flipped := BytesIO(), "WEBP")
    both = client.infer(MODEL, [as_bytes(flipped.getvalue(), PHOTO, binary=binary)]).as_numpy("scores")
    alone = client.infer(MODEL, [files(flipped.getvalue())]).as_numpy("scores")
    np.testing.assert_allclose(both, np.concatenate([alone, expected]), atol=2e-3)


def test_files_with_a_batch_dimension_and_any_version(client: triton.InferenceServerClient) -> None:
    image = triton.InferInput("image", [1, 1], "BYTES").set_data_from_numpy(np.array([[PHOTO]], np.object_))
    result = client.infer(MODEL, [image], model_version="0", parameters={"custom": 42}, priority=1, timeout=1000)
    assert result.as_numpy("scores").argmax() == 285
    assert client.is_model_ready(MODEL, "7")
    assert client.get_model_metadata(MODEL, "0")["versions"] == ["1"]


def test_scores_come_where_nothing_is_asked_for(client: triton.InferenceServerClient) -> None:
    result = client.infer(MODEL, [files(PHOTO)], model_version="1")
    assert result.as_numpy("scores").sum() == pytest.approx(1, abs=1e-3)
    assert result.as_numpy("logits") is None


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("name", ["scores", "logits"])
def test_classification(client: triton.InferenceServerClient, name: str, binary: bool) -> None:
    wanted = [triton.InferRequestedOutput(name, binary_data=binary, class_count=4)]
    classes = client.infer(MODEL, [files(PHOTO, PHOTO)], outputs=wanted).as_numpy(name)
    assert classes.shape == (2, 4)
    texts = [[str(text, "utf-8") if binary else text for text in row] for row in classes]
    assert [[text.split(":")[2] for text in row] for row in texts] == [LABELS, LABELS]
    assert [text.split(":")[1] for text in texts[0]] == ["285", "282", "281", "287"]
    values = [float(text.split(":")[0]) for text in texts[0]]
    assert values == sorted(values, reverse=True)
    assert (max(values) <= 1) == (name == "scores")


@pytest.mark.parametrize("binary", [True, False])
def test_preprocessed_images(client: triton.InferenceServerClient, binary: bool) -> None:
    images = np.concatenate([preprocessed(), np.zeros((1, 3, 224, 224), np.float32)])
    scores = client.infer(MODEL, [tensor(images, binary)]).as_numpy("scores")
    file = client.infer(MODEL, [files(PHOTO)]).as_numpy("scores")
    np.testing.assert_allclose(scores[0], file[0], atol=0.05)
    assert scores[1].argmax() != scores[0].argmax()


def test_an_image_alone(embedded_server: Server, counts: Any) -> None:
    """Triton's raw extension, which its Python client does not have; its C++ client sends this."""
    with counts(embedded_server, "v2"):
        answer = httpx2.post(
            f"{embedded_server.url}/v2/models/{MODEL}/infer",
            content=PHOTO,
            headers={"Inference-Header-Content-Length": "0", "Content-Type": "application/octet-stream"},
        ).json()
    assert np.argmax(answer["outputs"][0]["data"]) == 285


@pytest.mark.parametrize(
    ("model", "image", "status", "detail"),
    [
        ("another", files(PHOTO), 404, "model another is not served"),
        (MODEL, files(PHOTO, b"text"), 415, r"image\[1\]: .*JPEG"),
        (MODEL, files(PHOTO, PHOTO[:2000]), 422, r"image\[1\]"),
        (MODEL, files(BASE64, "?", binary=False), 400, r"image\[1\]: the image is not valid base64"),
        (MODEL, tensor(np.full((1, 3, 224, 224), np.nan, np.float32)), 400, r"image\[0\]: preprocessed values"),
        (MODEL, tensor(np.full((1, 3, 224, 224), 1e30, np.float32)), 400, r"image\[0\]: preprocessed values"),
        (MODEL, tensor(np.zeros((1, 3, 8, 8), np.float32)), 400, r"must be \[n, 3, 224, 224\]"),
        (MODEL, tensor(np.zeros((33, 3, 1, 1), np.float32)), 413, "33 images; a request may have at most 32"),
    ],
)
def test_a_refusal_has_the_reason(
    client: triton.InferenceServerClient, model: str, image: Any, status: int, detail: str
) -> None:
    with pytest.raises(InferenceServerException, match=detail) as refused:
        client.infer(model, [image])
    assert refused.value.status() == str(status)
