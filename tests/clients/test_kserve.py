"""KServe's SDK, in an environment of its own: its REST client in both versions of the protocol."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.clients.conftest import LABELS, MODEL
from tests.conftest import CAT, Server, environment

pytestmark = pytest.mark.slow


def test_its_client_gets_what_it_asks_for(embedded_server: Server, counts: Any, kserve_python: str) -> None:
    command = [kserve_python, Path(__file__).with_name("kserve_client.py"), embedded_server.url, MODEL, CAT]
    with counts(embedded_server, "kserve-v1", 2), counts(embedded_server, "v2", 5):
        ran = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert [row[:4] for row in found["v1"]] == [LABELS, LABELS]
    assert "instances[0]" in found["v1 refused"]
    assert [found[f"{what} ready"] for what in ("v1", "v2", "v2 model", "another")] == [True, True, True, False]
    assert found["v2 live"] is True
    expected = ["42", ["scores", [1, 1000], 285], ["logits", [1, 1000], 285]]
    assert found["v2 json"] == found["v2 binary"] == expected
