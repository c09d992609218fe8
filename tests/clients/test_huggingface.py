"""``huggingface_hub.InferenceClient``, and what it sends."""

from typing import Any

import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from tests.clients.conftest import LABELS, MODEL, PHOTO
from tests.conftest import CAT, Server


@pytest.mark.parametrize("path", ["", "/", f"/models/{MODEL}"])
def test_images_are_classified(embedded_server: Server, counts: Any, path: str) -> None:
    client = InferenceClient(model=embedded_server.url + path)
    with counts(embedded_server, "huggingface", 2):
        by_path = client.image_classification(str(CAT))
        by_bytes = client.image_classification(PHOTO)
    assert [entry.label for entry in by_path[:4]] == LABELS
    assert by_path == by_bytes
    assert len(by_path) == 5
    assert 0 < by_path[4].score < by_path[0].score < 1


def test_parameters_are_taken(embedded_server: Server) -> None:
    client = InferenceClient(model=embedded_server.url)

    def scores(**parameters: Any) -> list[float]:
        entries = client.image_classification(PHOTO, **parameters)
        assert [entry.label for entry in entries[:2]] == LABELS[:2]
        return [entry.score for entry in entries]

    assert len(scores(top_k=2)) == 2
    assert len(scores(top_k=5000)) == 1000
    logits = scores(function_to_apply="none")
    sigmoid = scores(function_to_apply="sigmoid", top_k=3)
    assert logits[0] > 1
    assert sigmoid[0] > 0.99
    assert scores(function_to_apply="softmax")[0] < 0.6


def test_a_refusal_has_the_reason(embedded_server: Server) -> None:
    client = InferenceClient(model=embedded_server.url)
    with pytest.raises(HfHubHTTPError, match="415"):
        client.image_classification(b"text")
    with pytest.raises(HfHubHTTPError, match="top_k"):
        client.image_classification(PHOTO, top_k=0)
    with pytest.raises(HfHubHTTPError, match="404"):
        InferenceClient(model=f"{embedded_server.url}/models/google/another").image_classification(PHOTO)
