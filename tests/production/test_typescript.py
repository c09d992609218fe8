"""TypeScript's types of the OpenAPI document, by pinned releases, and the client of docs/clients.md that has them."""

import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.clients.document import BLOCKS, TEXT, code_for, overloaded_at_first
from tests.conftest import REPOSITORY, Server

pytestmark = pytest.mark.slow

GENERATOR = "openapi-typescript@7.13.0"
PACKAGES = [GENERATOR, "typescript@5.9.3", "@types/node@20.19.0"]


def run(*command: str, cwd: Path, seconds: float = 120) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.skipif(not shutil.which("npm"), reason="no Node.js with npm is installed")
def test_the_types_compile_and_their_client_runs(keyed_server: Server, tmp_path: Path) -> None:
    assert f"npx {GENERATOR} " in TEXT
    [(code, shown)] = [(code, shown) for language, code, shown in BLOCKS if language == "ts"]
    (tmp_path / "openapi.json").write_bytes(httpx2.get(f"{keyed_server.url}/openapi.json").content)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES, cwd=tmp_path)
    run("npx", "--no", "openapi-typescript", "openapi.json", "--output", "topk.ts", cwd=tmp_path)
    with overloaded_at_first(keyed_server) as address:
        (tmp_path / "client.ts").write_text(code_for(code, address))
        strict = ("--strict", "--noUncheckedIndexedAccess", "--target", "es2022", "--module", "nodenext")
        run("npx", "--no", "--", "tsc", *strict, "topk.ts", "client.ts", cwd=tmp_path)
        assert run("node", str(tmp_path / "client.js"), cwd=REPOSITORY) == shown
