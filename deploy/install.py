"""Installs topk into the environment of the Python that runs it: ``python deploy/install.py [EXTRA]``.

PyPI's torch for Linux contains CUDA, which takes several gigabytes. On a machine without an NVIDIA GPU, torch and
torchvision come from PyTorch's index of CPU builds instead, if that responds in time. Everything else comes from the
index that pip is configured for.
"""

import contextlib
import importlib.metadata
import os
import re
import subprocess
import sys
import threading
import tomllib
import urllib.request
from pathlib import Path

PROJECT = Path(__file__).parents[1]
NVIDIA = ("/dev/nvidiactl", "/dev/nvidia0", "/dev/dxg")  # the last one is WSL's
TIMEOUT_S = 3.0


def main(extra: str = "") -> int:
    """Install topk with ``extra``, and print what was installed and its size. Return pip's exit code."""
    index = torch_index()
    if index and (code := pip("--index-url", index, *torch_requirements())):
        print(f"torch cannot be installed from {index} (exit code {code}); trying pip's own index", flush=True)
    if code := pip("--editable", f".[{extra}]" if extra else "."):
        return code
    print(summary())
    return 0


def torch_index() -> str | None:
    """The index of CPU builds if they are to be installed, else None. Prints the decision."""
    if sys.platform != "linux":  # PyPI's builds for other systems do not contain CUDA
        return None
    if any(os.path.exists(device) for device in NVIDIA):
        print("an NVIDIA GPU was found: installing torch with CUDA", flush=True)
        return None
    index = cpu_index()
    if not responds(index):
        print(f"{index} does not respond: installing torch from pip's own index", flush=True)
        return None
    print(f"no NVIDIA GPU was found: installing torch for CPUs from {index}", flush=True)
    return index


def cpu_index() -> str:
    """The URL of PyTorch's index of CPU builds, which ``image/install`` names."""
    found = re.search(r"index=(https?://\S+)", (PROJECT / "deploy" / "image" / "install").read_text())
    assert found
    return found[1]


def responds(index: str) -> bool:
    """Whether the index lists torch within ``TIMEOUT_S``, name resolution included."""
    listed = threading.Event()

    def request() -> None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{index}/torch/", timeout=TIMEOUT_S):  # noqa: S310
            listed.set()

    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    return listed.is_set()


def torch_requirements() -> list[str]:
    """The project's requirements of torch and torchvision."""
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    return [requirement for requirement in project["dependencies"] if re.match(r"torch(vision)?\b(?!-)", requirement)]


def pip(*arguments: str) -> int:
    """Run ``pip install`` in the project's folder, with its own progress. Return the exit code."""
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    return subprocess.run(command, cwd=PROJECT).returncode  # noqa: S603


def summary() -> str:
    """What the environment contains, and its size on disk."""
    versions = {name: importlib.metadata.version(name) for name in ("topk", "torch", "torchvision")}
    packages = len(list(importlib.metadata.distributions()))
    size = sum(
        os.lstat(os.path.join(folder, file)).st_size for folder, _, files in os.walk(sys.prefix) for file in files
    )
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"installed {listed} and {packages - len(versions)} more packages: {size / 1e9:.1f} GB in {sys.prefix}"


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
