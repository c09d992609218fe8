"""TypeScript's types of the OpenAPI document, and the TypeScript and React samples of docs/clients.md, compiled."""

import shutil
import subprocess
from pathlib import Path

import httpx2
import pytest

from tests.clients.document import BLOCKS, TEXT, code_for, overloaded_at_first
from tests.conftest import REPOSITORY, Server

pytestmark = pytest.mark.slow

PACKAGES = ["openapi-typescript@7.13.0", "typescript@5.9.3", "@types/node@20.19.0"]
REACT = ["react@19.2.0", "@types/react@19.2.2"]
STRICT = ("--strict", "--noUncheckedIndexedAccess", "--target", "es2022", "--module", "nodenext")


def run(*command: str, cwd: Path, seconds: float = 120) -> str:
    ran = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=seconds)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


@pytest.mark.skipif(not shutil.which("npm"), reason="no Node.js with npm is installed")
def test_the_types_compile_and_their_client_runs(keyed_server: Server, tmp_path: Path) -> None:
    assert f"npm install {' '.join(PACKAGES)}\n" in TEXT
    assert f"npx tsc {' '.join(STRICT)} topk.ts client.ts\n" in TEXT
    [(code, shown)] = [(code, shown) for language, code, shown in BLOCKS if language == "ts"]
    (tmp_path / "openapi.json").write_bytes(httpx2.get(f"{keyed_server.url}/openapi.json").content)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", *PACKAGES, cwd=tmp_path)
    run("npx", "--no", "openapi-typescript", "openapi.json", "--output", "topk.ts", cwd=tmp_path)
    with overloaded_at_first(keyed_server) as address:
        (tmp_path / "client.ts").write_text(code_for(code, address))
        run("npx", "--no", "--", "tsc", *STRICT, "topk.ts", "client.ts", cwd=tmp_path)
        assert run("node", str(tmp_path / "client.js"), cwd=REPOSITORY) == shown


@pytest.mark.skipif(not shutil.which("npm"), reason="no Node.js with npm is installed")
def test_the_react_component_compiles(tmp_path: Path) -> None:
    [code] = [code for language, code, _ in BLOCKS if language == "tsx"]
    (tmp_path / "classifier.tsx").write_text(code)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    packages = [*(name for name in PACKAGES if name.startswith("typescript@")), *REACT]
    run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts", *packages, cwd=tmp_path)
    options = ("--lib", "es2022,dom,dom.iterable", "--jsx", "react-jsx", "--noEmit")
    run("npx", "--no", "--", "tsc", *STRICT, *options, "classifier.tsx", cwd=tmp_path)
