"""Clients that are written for other servers, at a real server of ours, over real sockets."""

import base64
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import httpx2
import pytest

from tests.conftest import CAT, Server

PHOTO = CAT.read_bytes()
BASE64 = base64.b64encode(PHOTO).decode()
MODEL = "efficientnet_lite0"
ENDPOINT = "/v1/endpoints/1234/deployedModels/5678"
LABELS = ["Egyptian cat", "tiger cat", "tabby", "lynx"]
"""What the embedded model sees in docs/cat.jpg, in any precision; the fifth is far below."""


def answered(server: Server, protocol: str) -> float:
    """Requests in this protocol that were answered with 200 so far."""
    wanted = (f'protocol="{protocol}"', 'status="200"')
    lines = httpx2.get(f"{server.url}/metrics").text.splitlines()
    samples = [line for line in lines if line.startswith("topk_requests_total{") and all(w in line for w in wanted)]
    return sum(float(line.rpartition(" ")[2]) for line in samples)


@contextmanager
def _counts(server: Server, protocol: str, requests: int = 1) -> Iterator[None]:
    before = answered(server, protocol)
    yield
    pause = threading.Event()
    for _ in range(2000):
        if answered(server, protocol) >= before + requests:
            break
        pause.wait(0.01)
    assert answered(server, protocol) == before + requests


@pytest.fixture
def counts() -> Callable[..., AbstractContextManager[None]]:
    """What is asked inside is so many answers of this protocol in the metrics."""
    return _counts


@pytest.fixture(scope="session")
def vertex_container() -> Iterator[Server]:
    """The embedded model as Vertex AI starts it, in float32: the last of its answers is then the same everywhere."""
    env = {
        "AIP_MODE": "PREDICTION",
        "AIP_STORAGE_URI": "",
        "AIP_HEALTH_ROUTE": ENDPOINT,
        "AIP_PREDICT_ROUTE": f"{ENDPOINT}:predict",
        "TOPK_PRECISION": "float32",
    }
    server = Server("--model", MODEL, env=env)
    yield server
    assert server.stop() == 0
