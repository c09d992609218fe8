"""docs/clients.md: its requests run as they stand, and print what it shows. TypeScript: tests/production."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients.document import BLOCKS, TEXT, code_for, overloaded_at_first
from tests.conftest import REPOSITORY, Server, environment

NODE = shutil.which("node")
RUNNABLE = [block for block in BLOCKS if block[0] in ("sh", "python", "js")]


@pytest.mark.slow
@pytest.mark.parametrize(("language", "code", "shown"), RUNNABLE, ids=[language for language, _, _ in RUNNABLE])
def test_a_client_runs(keyed_server: Server, tmp_path: Path, language: str, code: str, shown: str) -> None:
    if language == "js" and not NODE:
        pytest.skip("no Node.js is installed")
    script = tmp_path / f"client.{ {'js': 'mjs'}.get(language, language) }"
    program = {"sh": "bash", "python": sys.executable, "js": str(NODE)}[language]
    with overloaded_at_first(keyed_server) as address:
        script.write_text(code_for(code, address))
        command = [program, str(script)]
        ran = subprocess.run(command, cwd=REPOSITORY, env=environment(), capture_output=True, text=True, timeout=60)
        assert (ran.stdout, ran.returncode) == (shown, 0), ran.stderr


def test_every_language_is_there() -> None:
    assert [language for language, _, _ in BLOCKS] == ["sh", "python", "python", "js", "tsx", "ts", "swift", "kotlin"]
    for language in ("Swift", "Kotlin"):
        assert f"## {language}\n\nNot run by a test." in TEXT
