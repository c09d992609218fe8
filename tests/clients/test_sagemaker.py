"""SageMaker's contract: started with ``serve``, it finds its model, answers pings soon, and ends when it is told to."""

import os
import shutil
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import pytest

from tests import tiny
from tests.clients.conftest import BASE64, PHOTO
from tests.conftest import Server

PING_S, START_S, ANSWER_S, END_S = 2, 240, 60, 30


def ping(address: str) -> int | None:
    """Its status, or None where nothing listens yet."""
    try:
        return httpx2.get(f"{address}/ping", timeout=PING_S).status_code
    except httpx2.ConnectError:
        return None


@pytest.mark.slow
def test_a_container_from_start_to_end(tmp_path: Path, counts: Any) -> None:
    model = tmp_path / "opt" / "ml" / "model"
    shutil.copytree(tiny.model()[1], model, copy_function=os.link)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    folders = f"{tmp_path / 'none'},{model},/models/default"
    server = Server("--port", str(port), env={"TOPK_MODEL_FOLDERS": folders})
    try:
        address, end, pause = f"http://127.0.0.1:{port}", time.monotonic() + START_S, threading.Event()
        seen = {ping(address)}
        while 200 not in seen and time.monotonic() < end and server.process.poll() is None:
            pause.wait(0.05)
            seen.add(ping(address))
        assert seen <= {None, 503, 200}
        assert 200 in seen
        headers = {"X-Amzn-SageMaker-Custom-Attributes": "any", "Accept": "application/json"}
        with counts(server, "sagemaker", 2):
            image = {"Content-Type": "application/x-image", **headers}
            one = httpx2.post(f"{address}/invocations", content=PHOTO, headers=image, timeout=ANSWER_S)
            body = {"instances": [{"b64": BASE64}] * 2}
            rows = httpx2.post(f"{address}/invocations", json=body, headers=headers, timeout=ANSWER_S)
        assert one.json()["model"] == "model"
        assert rows.json() == {"predictions": [one.json()["predictions"]] * 2}
        refused = httpx2.post(f"{address}/invocations", content=b"text", headers=headers, timeout=ANSWER_S)
        assert (refused.status_code, refused.json()["code"]) == (415, "unsupported_media_type")
        server.process.terminate()
        assert server.process.wait(END_S) == 0
    finally:
        assert server.stop() == 0
