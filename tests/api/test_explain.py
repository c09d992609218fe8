"""``explain`` over HTTP, with the tiny model."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from app import images
from app.images.geometry import crop_box
from app.images.heatmap import COLOUR
from tests import tiny
from tests.api.conftest import InProcess, served
from tests.api.wire import multipart
from tests.conftest import CAT, Server
from tests.engine.test_activation_tail import coarse
from tests.hostile import encode
from tests.images.test_pillow import sharp as picture

PHOTO = CAT.read_bytes()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    server = Server(*tiny.model(), "--precision", "float32")
    server.wait_for("ready")
    yield server
    assert server.stop() == 0


def ask(server: Server | InProcess, query: str = "explain=true", **form: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/v1/predict?{query}", timeout=60, **(form or {"content": PHOTO}))


def explained(answer: httpx2.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()["explanation"]
    assert list(found) == ["class_id", "grid", "box"]
    return found


def drawn(explanation: dict[str, Any]) -> npt.NDArray[np.uint8]:
    """The pixels of the PNG of an explanation: [rows, columns, 4]."""
    assert list(explanation) == ["class_id", "grid", "box", "png"]
    content = base64.b64decode(explanation["png"], validate=True)
    with Image.open(io.BytesIO(content)) as image:
        assert (image.format, image.mode) == ("PNG", "RGBA")
        return np.asarray(image)


def refused(answer: httpx2.Response) -> str:
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_parameter"), answer.text
    return str(answer.json()["detail"])


def test_true_is_the_best_class_and_1_is_class_1(server: Server) -> None:
    best = ask(server, "top_k=1").json()["predictions"][0]["class_id"]
    assert explained(ask(server, "explain=true"))["class_id"] == best
    assert explained(ask(server, "explain=TRUE"))["class_id"] == best
    assert explained(ask(server, "explain=1"))["class_id"] == 1
    assert explained(ask(server, "explain=0"))["class_id"] == 0


@pytest.mark.parametrize(("value", "class_id"), [(1, 1), (1.0, 1), ("1", 1), ("n02124075", 285), ("N02124075", 285)])
def test_a_class_in_a_document(server: Server, value: object, class_id: int) -> None:
    document = {"image": base64.b64encode(PHOTO).decode(), "explain": value}
    assert explained(ask(server, "", json=document))["class_id"] == class_id


def test_booleans_in_a_document(server: Server) -> None:
    photo = base64.b64encode(PHOTO).decode()
    plain, best = (ask(server, "", json={"image": photo, "explain": value}) for value in (False, True))
    assert "explanation" not in plain.json()
    assert explained(best)["class_id"] == best.json()["predictions"][0]["class_id"]


def test_different_classes_are_a_contradiction(server: Server) -> None:
    twice = [ask(server, f"explain=1&explain={other}") for other in ("1", "2", "true")]
    assert [answer.status_code for answer in twice] == [200, 400, 400]
    assert "explain is given twice, as '1' and '2'" in refused(twice[1])


@pytest.mark.parametrize("value", ["false", "FALSE", ""])
def test_false_is_none(server: Server, value: str) -> None:
    answer = ask(server, "", files={"file": PHOTO}, data={"explain": value})
    assert "explanation" not in answer.json()


@pytest.mark.parametrize("value", ["1000", "999999999", "-1", "1.5", "yes", "n00000000", "n0212407", "9" * 40, "²"])
def test_what_is_no_class_is_refused(server: Server, value: str) -> None:
    detail = refused(ask(server, f"explain={value}"))
    assert detail.startswith("explain must be true, false, a class id")


def test_the_mean_of_the_grid_is_the_logit(server: Server) -> None:
    url = f"{server.url}/v2/models/tiny/infer"
    image = {"name": "image", "datatype": "FP32", "shape": [1, 3, 224, 224], "data": [0.1] * 150528}
    body = {"inputs": [image], "outputs": [{"name": "logits"}], "parameters": {"explain": 7}}
    outputs = {o["name"]: o for o in httpx2.post(url, json=body, timeout=60).json()["outputs"]}
    assert np.mean(outputs["explanation"]["data"]) == pytest.approx(outputs["logits"]["data"][7], rel=1e-3)
    assert outputs["explanation_box"]["data"] == [0, 0, 224, 224]


def test_the_predictions_are_those_without_an_explanation(server: Server) -> None:
    plain, found = (ask(server, query).json()["predictions"] for query in ("top_k=20", "top_k=20&explain=5"))
    assert [one["class_id"] for one in found] == [one["class_id"] for one in plain]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in plain], abs=1e-5)


FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF"] + (["HEIF"] if images.heif_installed() else [])


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", [(400, 300), (300, 402)])
def test_the_box_is_the_crop_in_the_picture(server: Server, format: str, size: tuple[int, int]) -> None:
    box = explained(ask(server, content=encode(picture(size), format)))["box"]
    assert box == pytest.approx(crop_box(*size, tiny.PREPROCESSING), abs=0.06)
    assert 0 <= box[0] < box[2] <= size[0]
    assert 0 <= box[1] < box[3] <= size[1]


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "AVIF"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_box_is_in_the_upright_picture(server: Server, format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = (300, 402) if orientation in (6, 8) else (402, 300)
    data = encode(picture(stored), format, exif=exif.tobytes())
    assert explained(ask(server, content=data))["box"] == pytest.approx(
        crop_box(402, 300, tiny.PREPROCESSING), abs=0.06
    )


def test_a_large_jpeg_has_a_box_in_its_own_pixels(server: Server) -> None:
    data = encode(picture((400, 300)).resize((4000, 3000)), "JPEG")
    assert explained(ask(server, content=data))["box"] == pytest.approx(crop_box(4000, 3000, tiny.PREPROCESSING), abs=1)


def test_a_batch_is_explained_and_a_bad_image_fails_alone(server: Server) -> None:
    kind, body = multipart(("file", "a.jpg", PHOTO), ("file", "b.txt", b"no image"), ("file", "c.jpg", PHOTO))
    url = f"{server.url}/v1/predict/batch?explain=n02124075"
    first, second, third = httpx2.post(url, content=body, headers={"Content-Type": kind}, timeout=60).json()["results"]
    assert list(second) == ["filename", "error"]
    assert first["explanation"] == third["explanation"]
    assert first["explanation"]["class_id"] == 285


@pytest.mark.parametrize("class_id", [1, 7, 285])  # nothing supports class 1
def test_the_png_has_one_pixel_for_each_number_of_the_grid(server: Server, class_id: int) -> None:
    found = ask(server, f"explain={class_id}&explain_png=true").json()["explanation"]
    grid, pixels = np.array(found["grid"]), drawn(found)
    assert pixels.shape == (*grid.shape, 4)
    assert (pixels[..., :3] == COLOUR).all()
    alpha = pixels[..., 3]
    assert ((alpha > 0) == (grid > 0)).all()
    assert alpha.max() == alpha.flat[grid.argmax()] == (179 if (grid > 0).any() else 0)


@pytest.mark.parametrize("query", ["explain=7", "explain=7&explain_png=false"])
def test_a_png_is_absent_unless_requested(server: Server, query: str) -> None:
    plain, with_png = explained(ask(server, query)), ask(server, "explain=7&explain_png=true").json()["explanation"]
    assert {name: with_png[name] for name in plain} == plain


def test_a_png_in_a_form_and_in_a_document(server: Server) -> None:
    wanted = drawn(ask(server, "explain=7&explain_png=true").json()["explanation"])
    form = ask(server, "explain_png=TRUE", files={"file": PHOTO}, data={"explain": "7", "explain_png": "true"})
    document = {"image": base64.b64encode(PHOTO).decode(), "explain": 7, "explain_png": True}
    for answer in (form, ask(server, "", json=document)):
        assert (drawn(answer.json()["explanation"]) == wanted).all()


def test_a_png_of_each_image_of_a_batch(server: Server) -> None:
    kind, body = multipart(("file", "a.jpg", PHOTO), ("file", "b.txt", b"no image"), ("file", "c.jpg", PHOTO))
    url = f"{server.url}/v1/predict/batch?explain=7&explain_png=true"
    first, second, third = httpx2.post(url, content=body, headers={"Content-Type": kind}, timeout=60).json()["results"]
    assert list(second) == ["filename", "error"]
    assert (drawn(first["explanation"]) == drawn(third["explanation"])).all()


def test_a_png_requires_an_explanation(server: Server) -> None:
    batch = f"{server.url}/v1/predict/batch?explain_png=true"
    for answer in (
        ask(server, "explain_png=true"),
        ask(server, "explain_png=true&explain=false"),
        ask(server, "", files={"file": PHOTO}, data={"explain_png": "true"}),
        ask(server, "", json={"image": base64.b64encode(PHOTO).decode(), "explain_png": True}),
        httpx2.post(batch, files={"file": PHOTO}, timeout=60),
    ):
        assert refused(answer).startswith("explain_png requires explain")
    assert "explain_png must be true or false" in refused(ask(server, "explain=true&explain_png=perhaps"))
    assert "explanation" not in ask(server, "explain_png=false").json()


def test_info_says_that_explain_works(server: Server) -> None:
    assert httpx2.get(f"{server.url}/v1/info").json()["explain"] is True


def test_the_operator_can_turn_it_off() -> None:
    with served(explain=False) as off:
        assert "TOPK_EXPLAIN=true" in refused(ask(off))
        assert httpx2.get(f"{off.url}/v1/info").json()["explain"] is False


def test_a_network_of_another_form_is_refused_with_the_reason(tmp_path: Path) -> None:
    tiny.write(tmp_path, tiny.network(hidden=True))
    kind, body = multipart(("file", "a.jpg", PHOTO))
    with served(model=str(tmp_path)) as other:
        assert "does not end in global pooling and one linear layer" in refused(ask(other))
        url = f"{other.url}/v1/predict/batch?explain=true"
        assert "global pooling" in refused(httpx2.post(url, content=body, headers={"Content-Type": kind}))
        assert httpx2.get(f"{other.url}/v1/info").json()["explain"] is False


def test_a_network_whose_maps_do_not_explain_it_is_refused_with_the_reason(tmp_path: Path) -> None:
    """That is known only when the first explanation is requested."""
    tiny.write(tmp_path, coarse())
    with served(model=str(tmp_path), precision="float32") as other:
        details = [refused(ask(other)) for _ in range(2)]
        assert all(detail.startswith("explain is not available: the class activation maps") for detail in details)
        assert "deviate from its logits" in details[0]
        assert other.outcome("rejected") == 1  # the second request is refused before its image is decoded
        assert ask(other, "").status_code == 200


def test_explanations_are_refused_as_overloaded_while_predictions_are_admitted() -> None:
    with served() as server:
        explained(ask(server))
        server.app.state.service.classifier.served.explanations.costs.restore({1: 1e6})  # seconds
        answer = ask(server)
        assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
        assert server.outcome("shed") == 1
        assert ask(server, "").status_code == 200
