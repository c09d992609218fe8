"""Through HTTP with real weights on real photographs: are the answers right?"""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from tests.conftest import PHOTOGRAPHS, RESNET50, Server

pytestmark = pytest.mark.shared

Answers = list[list[dict[str, Any]]]
RAW = {"Content-Type": "application/octet-stream"}


def patient(at_once: int = 1) -> requests.Session:
    """A client that asks again where it is refused or answered too late: a busy machine may do either."""
    client = requests.Session()
    again = Retry(30, status_forcelist=[503, 504], allowed_methods=None, respect_retry_after_header=True)
    client.mount("http://", HTTPAdapter(pool_maxsize=at_once, max_retries=again))
    return client


def ask(client: requests.Session, server: Server, photograph: bytes, **query: int) -> list[dict[str, Any]]:
    answer = client.post(f"{server.url}/v1/predict", params=query, data=photograph, headers=RAW, timeout=120)
    assert answer.status_code == 200, answer.text
    predictions: list[dict[str, Any]] = answer.json()["predictions"]
    return predictions


def classify(server: Server, paths: list[Path], at_once: int, **query: int) -> Answers:
    with patient(at_once) as client, ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(lambda path: ask(client, server, path.read_bytes(), **query), paths))


def classify_at_once(server: Server, paths: list[Path]) -> Answers:
    """All of them in one instant: a client and an open connection each, and a barrier before the photographs go."""
    together = threading.Barrier(len(paths))

    def one(path: Path) -> list[dict[str, Any]]:
        photograph = path.read_bytes()
        with patient() as client:
            client.get(f"{server.url}/livez", timeout=120)
            together.wait(60)
            return ask(client, server, photograph, top_k=1000)

    with ThreadPoolExecutor(len(paths)) as pool:
        return list(pool.map(one, paths))


def accuracy(answers: Answers) -> tuple[float, float]:
    """Top-1 and top-5 in per cent."""
    wnids = [path.parent.name for path in PHOTOGRAPHS]
    top1 = np.mean([answer[0]["wnid"] == wnid for answer, wnid in zip(answers, wnids, strict=True)])
    top5 = np.mean([wnid in [p["wnid"] for p in answer] for answer, wnid in zip(answers, wnids, strict=True)])
    return 100 * float(top1), 100 * float(top5)


@pytest.fixture(scope="module")
def reference() -> np.ndarray[Any, Any]:
    """Softmax of a plain torchvision loop: its own preset, the float32 eager model, one image at a time."""
    import safetensors.torch
    import torch
    import torchvision
    from PIL import Image

    network = torchvision.models.resnet50()
    network.load_state_dict(safetensors.torch.load_file(RESNET50))
    network.eval()
    preset = torchvision.models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    with torch.inference_mode():
        rows = [network(preset(Image.open(path).convert("RGB"))[None]).softmax(1)[0] for path in PHOTOGRAPHS]
    return torch.stack(rows).numpy()


@pytest.fixture(scope="module")
def reference_server() -> Iterator[Server]:
    server = Server(
        *("--model", "resnet50", "--weights", str(RESNET50)),
        *("--engine", "torch", "--precision", "float32", "--no-fast-decode"),
        *("--request-timeout-ms", "120000"),  # no image runs twice, on a slow machine either
    )
    yield server
    assert server.stop() == 0


def test_the_reference_settings_equal_a_plain_torchvision_loop(
    reference_server: Server, reference: np.ndarray[Any, Any]
) -> None:
    answers = classify(reference_server, PHOTOGRAPHS, 4)
    assert accuracy(answers)[0] >= 84.5
    assert accuracy(answers)[1] >= 97
    for answer, row in zip(answers, reference, strict=True):
        assert answer[0]["class_id"] == int(row.argmax())
        assert [p["score"] for p in answer] == pytest.approx([row[p["class_id"]] for p in answer], abs=1e-4)


def test_the_default_settings_keep_the_accuracy_rule(resnet_server: Server, reference: np.ndarray[Any, Any]) -> None:
    answers = classify(resnet_server, PHOTOGRAPHS, 8)
    top1, top5 = accuracy(answers)
    assert top1 >= 84.5
    assert top5 >= 97
    agreement = np.mean([a[0]["class_id"] == row.argmax() for a, row in zip(answers, reference, strict=True)])
    assert agreement >= 0.99


def test_64_clients_at_once_get_the_answers_each_would_get_alone(reference_server: Server) -> None:
    paths = PHOTOGRAPHS[:64]
    alone = classify(reference_server, paths, 1, top_k=1000)
    batches, images = (reference_server.metric(f"topk_batch_size_{what}") for what in ("count", "sum"))
    ceiling = httpx2.get(f"{reference_server.url}/v1/info").json()["batching"]["ceiling"]
    together = classify_at_once(reference_server, paths)
    assert reference_server.metric("topk_batch_size_sum") - images == 64
    if ceiling > 1:  # a busy machine may have measured that batches do not pay
        assert reference_server.metric("topk_batch_size_count") - batches < 64
    for one, other in zip(alone, together, strict=True):
        assert one[0]["class_id"] == other[0]["class_id"]
        scores = {p["class_id"]: p["score"] for p in other}
        assert [p["score"] for p in one] == pytest.approx([scores[p["class_id"]] for p in one], abs=1e-3)
