"""deploy/install.py: where torch comes from, with pip's own client and index servers on real sockets."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pip
import pytest

from deploy import install
from tests.conftest import REPOSITORY
from tests.deploy.wheels import wheel

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no CUDA builds")

PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "topk"
version = "1.0"
dependencies = ["torch>=2.10", "torchvision>=0.25", "torch-other>=1", "pillow>=1"]
"""

# Builds the project's wheel, as hatchling would.
BACKEND = """
import sys
sys.path.insert(0, {repository!r})
from pathlib import Path
from tests.deploy.wheels import wheel

def build_editable(folder, config_settings=None, metadata_directory=None):
    return wheel(Path(folder), "topk", "1.0", "torch>=2.10", "torchvision>=0.25", "torch-other>=1", "pillow>=1").name
"""


class Index(ThreadingHTTPServer):
    """Serves the wheels in a folder as a package index. ``requested`` are the paths that were requested."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.requested = folder, list[str]()
        folder.mkdir()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/simple"


class _Handler(BaseHTTPRequestHandler):
    server: Index

    def do_GET(self) -> None:
        self.server.requested.append(self.path)
        name = self.path.rstrip("/").rsplit("/", 1)[-1]
        found = sorted(path for path in self.server.folder.iterdir() if self._matches(path, name))
        if not found:
            self.send_error(404)
            return
        wanted = self.path.endswith(".whl")
        links = "".join(f'<a href="/files/{quote(path.name)}">{path.name}</a>' for path in found)
        body = found[0].read_bytes() if wanted else links.encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream" if wanted else "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    @staticmethod
    def _matches(path: Path, name: str) -> bool:
        return quote(path.name) == name or path.name.split("-")[0].replace("_", "-") == name

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def pypi(tmp_path: Path) -> Iterator[Index]:
    """The index that pip is configured for."""
    with Index(tmp_path / "pypi") as index:
        for name in ("torch", "torchvision", "torch-other", "pillow"):
            wheel(index.folder, name, "99.0")
        yield index
        index.shutdown()


@pytest.fixture
def pytorch(tmp_path: Path) -> Iterator[Index]:
    """PyTorch's index of CPU builds, which also has an old release of a dependency."""
    with Index(tmp_path / "pytorch") as index:
        wheel(index.folder, "torch", "99.0+cpu", "pillow")
        wheel(index.folder, "torchvision", "99.0+cpu", "torch==99.0+cpu")
        wheel(index.folder, "pillow", "0.5")
        yield index
        index.shutdown()


@pytest.fixture
def closed() -> str:
    """A URL on a port where nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}/simple"


def installed(tmp_path: Path, index: str, pypi: Index) -> tuple[dict[str, str], str]:
    """The releases that the script installs into a new environment, and its output."""
    project, environment = tmp_path / "project", tmp_path / "venv"
    (project / "deploy" / "image").mkdir(parents=True)
    (project / "pyproject.toml").write_text(PROJECT)
    (project / "backend.py").write_text(BACKEND.format(repository=str(REPOSITORY)))
    (project / "deploy" / "install.py").write_text((REPOSITORY / "deploy" / "install.py").read_text())
    (project / "deploy" / "image" / "install").write_text(f"index={index} ;;\n")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (tmp_path / "pip-alone").mkdir()
    (tmp_path / "pip-alone" / "pip").symlink_to(Path(pip.__file__).parent)
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(tmp_path / "pip-alone"),
        "PIP_CONFIG_FILE": os.devnull,
        "PIP_INDEX_URL": pypi.url,
        "PIP_NO_CACHE_DIR": "1",
    }
    python = environment / "bin" / "python"
    code = "import sys; sys.path.insert(0, 'deploy'); import install; install.NVIDIA = (); sys.exit(install.main())"
    ran = subprocess.run([python, "-c", code], cwd=project, env=env, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    listed = subprocess.run(
        [python, "-m", "pip", "freeze", "--exclude-editable"], env=env, capture_output=True, text=True, check=True
    ).stdout
    return dict(line.split("==") for line in listed.splitlines() if "==" in line), ran.stdout


@pytest.mark.slow
def test_without_a_gpu_torch_comes_from_the_index_of_cpu_builds(tmp_path: Path, pypi: Index, pytorch: Index) -> None:
    releases, output = installed(tmp_path, pytorch.url, pypi)
    cpu = dict.fromkeys(("torch", "torchvision"), "99.0+cpu")
    assert releases == cpu | dict.fromkeys(("torch-other", "pillow"), "99.0")
    assert f"no NVIDIA GPU was found: installing torch for CPUs from {pytorch.url}" in output
    assert "Successfully installed" in output
    assert "installed topk 1.0, torch 99.0+cpu, torchvision 99.0+cpu and 2 more packages: 0.0 GB in" in output


@pytest.mark.slow
def test_where_that_index_is_dead_torch_comes_from_pip_s_own(tmp_path: Path, pypi: Index, closed: str) -> None:
    releases, output = installed(tmp_path, closed, pypi)
    assert releases == dict.fromkeys(("torch", "torchvision", "torch-other", "pillow"), "99.0")
    assert f"{closed} does not respond: installing torch from pip's own index" in output
    assert "installed topk 1.0, torch 99.0, torchvision 99.0 and 2 more packages" in output


@pytest.mark.slow
def test_an_index_without_a_build_for_this_python_is_no_dead_end(tmp_path: Path, pypi: Index, pytorch: Index) -> None:
    next(pytorch.folder.glob("torchvision*")).unlink()
    releases, output = installed(tmp_path, pytorch.url, pypi)
    assert releases["torch"] == "99.0"
    assert f"torch cannot be installed from {pytorch.url} (exit code 1)" in output


def test_with_a_gpu_the_index_of_cpu_builds_is_not_asked(
    tmp_path: Path, pytorch: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvidiactl").touch()
    monkeypatch.setattr(install, "NVIDIA", (str(tmp_path / "none"), str(tmp_path / "nvidiactl")))
    monkeypatch.setattr(install, "cpu_index", lambda: pytorch.url)
    assert install.torch_index() is None
    assert pytorch.requested == []


def test_an_index_that_accepts_and_stays_silent_does_not_respond(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert not install.responds(f"http://127.0.0.1:{silent.getsockname()[1]}/simple")


def test_the_index_is_that_of_the_image() -> None:
    assert install.cpu_index().endswith("/whl/cpu")
    assert len(install.torch_requirements()) == 2


@pytest.mark.parametrize(("target", "extra"), [(".serve", ""), (".test", " test"), (".test-all", " test-all")])
def test_make_installs_by_this_script_alone(target: str, extra: str) -> None:
    ran = subprocess.run(
        ["make", "-n", "-B", f"none/{target}", "VENV=none"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert f"none/bin/python deploy/install.py{extra}\n" in ran.stdout
    assert "pip install" not in ran.stdout
