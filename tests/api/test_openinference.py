"""Open Inference v2's binary and JSON tensors, as no polite client sends them."""

import base64
import json
import struct
import time
from typing import Any

import httpx2
import numpy as np
import pytest

from tests.api.conftest import InProcess
from tests.conftest import CAT

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
ELEMENT = struct.pack("<I", len(PHOTO)) + PHOTO
ZEROS = bytes(4 * 3 * 224 * 224)


def infer(server: InProcess, document: Any, tail: bytes = b"", length: object = None) -> httpx2.Response:
    """JSON with tensors behind it; ``length`` is what the header says where that is not true."""
    head = json.dumps(document).encode()
    headers = {"Inference-Header-Content-Length": str(len(head) if length is None else length)} if tail else {}
    return httpx2.post(f"{server.url}/v2/models/efficientnet_lite0/infer", content=head + tail, headers=headers)


def asked(datatype: str = "BYTES", shape: Any = (1,), size: Any = None, **members: Any) -> dict[str, Any]:
    parameters = {} if size is None else {"parameters": {"binary_data_size": size}}
    return {"inputs": [{"name": "image", "datatype": datatype, "shape": shape, **parameters, **members}]}


def refused(answer: httpx2.Response, status: int = 400) -> str:
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"]
    return str(answer.json()["error"])


@pytest.mark.parametrize("length", ["-1", "+5", "1.5", "0x10", "", "x", "1e3", "9" * 40, "10000000", "\u00b2"])
def test_a_header_that_is_no_length_is_refused(app_server: InProcess, length: str) -> None:
    url = f"{app_server.url}/v2/models/efficientnet_lite0/infer"
    headers = [(b"Inference-Header-Content-Length", length.encode("latin-1"))]
    assert "must be the length of the JSON" in refused(httpx2.post(url, content=PHOTO, headers=headers))


def test_bytes_that_say_so_are_an_image(app_server: InProcess) -> None:
    url = f"{app_server.url}/v2/models/efficientnet_lite0/infer"
    answer = httpx2.post(url, content=PHOTO, headers={"Content-Type": "application/octet-stream"})
    assert answer.json()["outputs"][0]["shape"] == [1, 1000]
    assert "not JSON" in refused(httpx2.post(url, content=PHOTO))


def test_a_count_may_be_written_as_a_number_of_any_kind(app_server: InProcess) -> None:
    outputs = [{"name": "scores", "parameters": {"classification": 2.0}}]
    answer = infer(app_server, asked(data=[BASE64]) | {"outputs": outputs})
    assert answer.json()["outputs"][0]["shape"] == [1, 2]


@pytest.mark.parametrize("size", [len(ELEMENT) - 1, len(ELEMENT) + 1, 0, -1, "5", 2**63, 1.5, True, [], {}])
def test_a_size_must_be_that_of_what_follows(app_server: InProcess, size: Any) -> None:
    assert "binary_data_size" in refused(infer(app_server, asked(size=size), ELEMENT))


@pytest.mark.parametrize("tail", [b"", ELEMENT])
def test_data_in_the_json_and_after_it_is_refused(app_server: InProcess, tail: bytes) -> None:
    answer = infer(app_server, asked(size=len(ELEMENT), data=[BASE64]), tail)
    assert "either data, or binary_data_size" in refused(answer)


def test_a_name_of_an_output_is_a_string(app_server: InProcess) -> None:
    answer = infer(app_server, {**asked(data=[BASE64]), "outputs": [{"name": 5}]})
    assert refused(answer) == "the name of an output must be scores or logits, got 5"


@pytest.mark.parametrize("value", [None, True, "1.5"])
def test_what_is_no_number_is_not_taken_for_one(app_server: InProcess, value: Any) -> None:
    data = [0.5] * (3 * 224 * 224 - 1) + [value]
    detail = refused(infer(app_server, asked("FP32", data=data, shape=[1, 3, 224, 224])))
    assert detail == "data must be numbers; null, booleans and strings are not numbers"


@pytest.mark.parametrize(
    ("tail", "detail"),
    [
        (ELEMENT[:-1], "is truncated within an element of"),
        (ELEMENT + b"\0\0\0", "truncated within a length"),
        (ELEMENT + ELEMENT, "requires 1 images, got 2"),
        (struct.pack("<I", 2**32 - 1), "is truncated within an element of"),
        (struct.pack("<I", 0), "image[0]: the image is empty"),
        (struct.pack("<I", 0) * 10_000, "images; a request may have at most 32"),
    ],
)
def test_elements_must_be_whole(app_server: InProcess, tail: bytes, detail: str) -> None:
    answer = infer(app_server, asked(size=len(tail)), tail)
    assert detail in refused(answer, 413 if "at most" in detail else 400)


@pytest.mark.parametrize("length", [0, 5, len(json.dumps(asked(size=len(ELEMENT)))) - 1])
def test_a_header_that_cuts_the_json_is_refused(app_server: InProcess, length: int) -> None:
    answer = infer(app_server, asked(size=len(ELEMENT)), ELEMENT, length)
    refused(answer, 400 if length else 415)


@pytest.mark.parametrize(
    "document",
    [
        [],
        "text",
        5,
        None,
        {},
        {"inputs": None},
        {"inputs": []},
        {"inputs": [5]},
        {"inputs": asked(data=[BASE64])["inputs"] * 2},
        asked(data=5),
        asked(data={"image": BASE64}),
        asked(data=[]),
        asked(data=None),
        asked(data=[None]),
        asked(data=[[BASE64], BASE64], shape=[2]),
        asked(),
        asked(data=[BASE64], size=len(BASE64)),
        asked(data=[BASE64], shape=None),
        asked(data=[BASE64], shape=1),
        asked(data=[BASE64], shape=[0]),
        asked(data=[BASE64], shape=[-1]),
        asked(data=[BASE64], shape=[True]),
        asked(data=[BASE64], shape=["1"]),
        asked(data=[BASE64], shape=[1, 2]),
        asked(data=[BASE64], name=5),
        asked(data=[BASE64], parameters=5),
        asked("UINT8", data=[256]),
        asked("INT64", data=[1]),
        asked(None, data=[1]),
        asked("FP32", data=[1.0], shape=[1, 3, 224, 224]),
        asked("FP32", data=[1.0], shape=[]),
        asked("FP32", data=[1.0], shape=[1]),
        asked("FP32", data="text", shape=[1, 3, 224, 224]),
        asked("FP32", data=[[1.0], [1.0, 2.0]], shape=[1, 3, 224, 224]),
        asked("FP32", shape=[1, 3, 224, 224]),
        {**asked(data=[BASE64]), "id": 42},
        {**asked(data=[BASE64]), "parameters": []},
        {**asked(data=[BASE64]), "outputs": {"name": "scores"}},
        {**asked(data=[BASE64]), "outputs": [5]},
        {**asked(data=[BASE64]), "outputs": [{"name": ""}]},
        {**asked(data=[BASE64]), "outputs": [{"name": "features"}]},
        {**asked(data=[BASE64]), "outputs": [{"name": "scores", "parameters": 5}]},
        *[
            {**asked(data=[BASE64]), "outputs": [{"name": "scores", "parameters": {"classification": k}}]}
            for k in (0, -1, 1.5, "5", True, None)
        ],
    ],
)
def test_a_document_must_be_as_the_specification_has_it(app_server: InProcess, document: Any) -> None:
    assert len(refused(infer(app_server, document))) > 10


@pytest.mark.parametrize("values", [[float("nan")], [float("inf")], [-1e39], [1e5], [None], [[1.0]], ["x"]])
def test_preprocessed_values_must_be_numbers_of_an_image(app_server: InProcess, values: list[Any]) -> None:
    data = json.loads(json.dumps([0.0] * (3 * 224 * 224 - 1))) + values
    body = json.dumps(asked("FP32", data=data, shape=[1, 3, 224, 224])).replace("NaN", "null").encode()
    url = f"{app_server.url}/v2/models/efficientnet_lite0/infer"
    refused(httpx2.post(url, content=body.replace(b"Infinity", b"1e999")))


@pytest.mark.parametrize("tail", [ZEROS[:-1], ZEROS[:-4], ZEROS + bytes(4), b"\0"])
def test_preprocessed_bytes_must_be_so_many(app_server: InProcess, tail: bytes) -> None:
    answer = infer(app_server, asked("FP32", [1, 3, 224, 224], len(tail)), tail)
    assert "bytes as FP32" in refused(answer)


def test_a_tensor_that_is_not_finite_fails_its_own_request_alone(app_server: InProcess) -> None:
    rows = np.zeros((2, 3, 224, 224), "<f4")
    rows[1, 0, 0, 0] = np.nan
    answer = infer(app_server, asked("FP32", list(rows.shape), rows.nbytes), rows.tobytes())
    assert refused(answer).startswith("image[1]: preprocessed values must be finite")
    assert infer(app_server, asked("FP32", [1, 3, 224, 224], len(ZEROS)), ZEROS).status_code == 200


def test_values_are_flat_or_nested(app_server: InProcess) -> None:
    flat = infer(app_server, asked(data=[BASE64, BASE64], shape=[2])).json()
    nested = infer(app_server, asked(data=[[BASE64], [BASE64]], shape=[2, 1])).json()
    assert flat == nested
    assert flat["outputs"][0]["shape"] == [2, 1000]
    zeros = np.zeros((1, 3, 224, 224)).tolist()
    assert infer(app_server, asked("FP32", data=zeros, shape=[1, 3, 224, 224])).status_code == 200


def test_a_whole_request_can_be_answered_in_binary(app_server: InProcess) -> None:
    outputs = [{"name": "logits", "parameters": {"binary_data": False}}, {"name": "scores"}]
    document = {**asked(data=[BASE64]), "outputs": outputs, "parameters": {"binary_data_output": True}, "id": "a"}
    answer = infer(app_server, document)
    assert answer.headers["content-type"] == "application/octet-stream"
    length = int(answer.headers["inference-header-content-length"])
    head = json.loads(answer.content[:length])
    logits, scores = head["outputs"]
    assert (head["id"], len(logits["data"]), scores["parameters"]) == ("a", 1000, {"binary_data_size": 4000})
    assert np.frombuffer(answer.content[length:], "<f4").argmax() == np.argmax(logits["data"]) == 285


def test_more_classes_than_there_are_means_all(app_server: InProcess) -> None:
    outputs = [{"name": "scores", "parameters": {"classification": 5000}}]
    [output] = infer(app_server, {**asked(data=[BASE64]), "outputs": outputs}).json()["outputs"]
    assert (output["datatype"], output["shape"], len(output["data"])) == ("BYTES", [1, 1000], 1000)


MANY = 100_000
HUGE = 2**63


@pytest.mark.parametrize("datatype", ["BYTES", "FP32", "UINT8"])
@pytest.mark.parametrize(
    "shape",
    [
        [HUGE] * MANY,
        [HUGE] * 300,
        [HUGE] * 8,
        [2**31] * 8,
        [1] * 9,
        [1] * MANY,
        [1e300],
        [10**300],
        [[1]],
    ],
    ids=["many and huge", "three hundred", "huge", "2**31", "nine", "many", "a float", "beyond 64 bits", "nested"],
)
def test_a_shape_is_judged_before_it_is_multiplied_or_shown(app_server: InProcess, datatype: str, shape: Any) -> None:
    detail = refused(infer(app_server, asked(datatype, shape, data=[BASE64])))
    assert "shape must be" in detail
    assert len(detail) < 100


def test_a_shape_of_the_largest_numbers_is_shown(app_server: InProcess) -> None:
    assert "images; a request may have at most 32" in refused(
        infer(app_server, asked(shape=[2**31 - 1] * 8, data=[BASE64])), 413
    )
    assert refused(infer(app_server, asked("FP32", [1] + [2**31 - 1] * 7, data=[1]))).count(str(2**31 - 1)) == 7


def test_a_huge_shape_costs_no_more_to_refuse_than_as_much_of_anything(app_server: InProcess) -> None:
    """A shape of 100 000 huge numbers took 70 seconds."""

    def seconds(document: Any) -> float:
        started = time.process_time()
        refused(infer(app_server, document))
        return time.process_time() - started

    calm = min(seconds(asked(shape=[0], note="1" * 20 * MANY, data=[BASE64])) for _ in range(3))
    assert min(seconds(asked(shape=[HUGE] * 9_000, data=[BASE64])) for _ in range(3)) < 10 * calm + 0.1
    assert min(seconds(asked(shape=[HUGE] * MANY, data=[BASE64])) for _ in range(3)) < 10 * calm + 0.1


@pytest.mark.parametrize(
    "changes",
    [
        {"size": "x" * 10**6},
        {"size": HUGE},
        {"size": [HUGE] * 1000},
        {"datatype": "x" * 10**6},
        {"datatype": [HUGE] * 1000},
    ],
)
def test_an_error_does_not_show_all_that_was_sent(app_server: InProcess, changes: dict[str, Any]) -> None:
    given = {"size": len(ELEMENT)} | changes
    assert len(refused(infer(app_server, asked(**given), ELEMENT))) < 200


@pytest.mark.parametrize(
    ("outputs", "detail"),
    [
        ([{"name": "scores"}] * 6000, "outputs must have at most 4 elements, got 6000"),
        ([{"name": "scores"}, {"name": "logits"}] * 3, "outputs must have at most 4 elements, got 6"),
        ([{"name": "scores"}] * 2, "outputs has duplicates"),
        ([{"name": "scores", "parameters": {"binary_data": binary}} for binary in (True, False)], "has duplicates"),
        ([{"name": "logits", "parameters": {"classification": k}} for k in (1, 2)], "has duplicates"),
        ([{"name": "x" * 10**6}], "the name of an output must be scores or logits, got 'xxx"),
        ([{"name": {"a": [HUGE] * 1000}}], "scores or logits, got an object"),
        ([{"name": "scores", "parameters": {"classification": HUGE}}], "a whole number between 1 and 2147483647"),
        ([{"name": "scores", "parameters": {"classification": 1e300}}], "a whole number between 1 and 2147483647"),
    ],
)
def test_outputs_are_few_and_different(app_server: InProcess, outputs: list[Any], detail: str) -> None:
    answer = infer(app_server, {**asked(data=[BASE64]), "outputs": outputs})
    assert detail in refused(answer)
    assert len(answer.content) < 200


def test_all_four_outputs_of_a_whole_batch_are_answered(app_server: InProcess) -> None:
    outputs = [
        {"name": name, "parameters": parameters}
        for name in ("scores", "logits")
        for parameters in ({}, {"classification": 1000})
    ]
    answer = infer(app_server, {**asked(data=[BASE64] * 4, shape=[4]), "outputs": outputs}).json()
    assert [output["shape"] for output in answer["outputs"]] == [[4, 1000]] * 4
    alone = infer(app_server, {**asked(data=[BASE64]), "outputs": outputs[1:2]}).json()["outputs"][0]["data"]
    assert answer["outputs"][1]["data"][0].split(":")[1] == alone[0].split(":")[1]


def test_an_id_is_short(app_server: InProcess) -> None:
    assert infer(app_server, {**asked(data=[BASE64]), "id": "x" * 1024}).json()["id"] == "x" * 1024
    assert "at most 1024" in refused(infer(app_server, {**asked(data=[BASE64]), "id": "x" * 1025}))


def test_more_numbers_than_json_is_for_are_refused_unread(app_server: InProcess) -> None:
    """About a million, which are seven images; as binary data as many as a request may have are taken."""
    document = json.dumps(asked("FP32", [7, 3, 224, 224], data=[0])).replace("[0]", "[" + "0," * 1_200_000 + "0]")
    url = f"{app_server.url}/v2/models/efficientnet_lite0/infer"
    detail = refused(httpx2.post(url, content=document.encode()))
    assert "send fewer images, or tensors as binary data" in detail
    rows = np.zeros((7, 3, 224, 224), "<f4")
    assert infer(app_server, asked("FP32", list(rows.shape), rows.nbytes), rows.tobytes()).status_code == 200


def test_values_are_nested_no_deeper_than_shapes_are(app_server: InProcess) -> None:
    data: Any = [BASE64]
    for _ in range(8):
        data = [data]
    assert "nested at most 8 levels deep" in refused(infer(app_server, asked(data=data)))
    assert infer(app_server, asked(data=data[0])).status_code == 200


@pytest.mark.parametrize("wrong", [True, None, "1", [1.0]])
@pytest.mark.parametrize("place", [0, 65_535, 65_536, 3 * 224 * 224 - 1])
def test_a_wrong_value_is_found_wherever_it_is(app_server: InProcess, wrong: Any, place: int) -> None:
    data: list[Any] = [0.5] * (3 * 224 * 224)
    data[place] = wrong
    assert "data must be numbers" in refused(infer(app_server, asked("FP32", [1, 3, 224, 224], data=data)))
