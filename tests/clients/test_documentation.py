"""docs/protocols.md: its requests run as they stand, and answered as it shows."""

import json
import re
import subprocess
import sys
from typing import Any

import pytest

from app.settings import PROTOCOLS
from tests.clients.conftest import ENDPOINT
from tests.conftest import REPOSITORY, Server, environment

TEXT = (REPOSITORY / "docs" / "protocols.md").read_text()
FOUND = re.findall(r"^```(sh|python)\n(.*?)^```(?:\n```(?:json|text)\n(.*?)^```)?", TEXT, re.MULTILINE | re.DOTALL)
BLOCKS = [block for block in FOUND if "topk serve" not in block[1]]  # the server is started once, by a fixture


def alike(shown: Any) -> Any:
    """What equals it, but for its last digits."""
    match shown:
        case dict():
            return {name: alike(value) for name, value in shown.items()}
        case list():
            return [alike(value) for value in shown]
        case float():
            return pytest.approx(shown, abs=0.01)
    return shown


def split(answer: Any) -> Any:
    """The numbers within ``score:index:label``, told apart."""
    match answer:
        case dict():
            return {name: split(value) for name, value in answer.items()}
        case list():
            return [split(value) for value in answer]
        case str() if re.match(r"\d+\.\d+:", answer):
            score, rest = answer.split(":", 1)
            return [float(score), rest]
    return answer


@pytest.mark.slow
@pytest.mark.parametrize(("language", "code", "shown"), BLOCKS)
def test_a_request_is_answered_as_shown(vertex_container: Server, language: str, code: str, shown: str) -> None:
    for written, there in (
        ("localhost:8000/vertex", f"{vertex_container.url}{ENDPOINT}:predict"),
        ("http://localhost:8000", vertex_container.url),
        ("localhost:8000", vertex_container.url.removeprefix("http://")),
    ):
        code = code.replace(written, there)
    command = ["bash", "-c", code] if language == "sh" else [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    if language == "python":
        assert ran.stdout == shown
    elif shown:
        assert split(json.loads(ran.stdout)) == alike(split(json.loads(shown)))
    else:
        assert "error" not in json.loads(ran.stdout)


def test_every_protocol_is_shown() -> None:
    shown = re.findall(r"^#+ [^\n]+\n\n`([\w-]+)`[.,]", TEXT, re.MULTILINE)
    assert shown == list(PROTOCOLS)
    assert len(BLOCKS) >= 13
