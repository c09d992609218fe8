"""The lists in deploy/ pin all that the image installs; ``make constraints`` writes them."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from deploy.resolve import CUDA_EXTRA, EXTRAS, NOT_FOR_SERVING
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
REQUIRED = [
    *PROJECT["dependencies"],
    *(requirement for extra in EXTRAS for requirement in PROJECT["optional-dependencies"][extra]),
]
LISTS = ["constraints.txt", "serving.txt", "cuda.txt"]


def pins(name: str) -> dict[str, str]:
    lines = (REPOSITORY / "deploy" / name).read_text().splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("name", LISTS)
def test_it_holds_names_and_versions_only(name: str) -> None:
    comment, *lines = (REPOSITORY / "deploy" / name).read_text().splitlines()
    assert "make constraints" in comment
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", line)] == []
    assert not [line for line in lines if re.match(r"nvidia-|cuda-|triton==", line)]


@pytest.mark.parametrize("requirement", REQUIRED)
def test_what_topk_needs_is_pinned_to_a_version_that_it_takes(requirement: str) -> None:
    wanted = Requirement(requirement)
    name = canonicalize_name(wanted.name)
    assert wanted.specifier.contains(pins("constraints.txt")[name])
    assert (name in pins("serving.txt")) == (name not in NOT_FOR_SERVING)


def test_what_serves_is_a_part_of_it_without_torch() -> None:
    assert pins("serving.txt").items() < pins("constraints.txt").items()
    assert not {"torch", "torchvision", "timm", "sympy"} & pins("serving.txt").keys()


def test_what_a_gpu_needs_is_pinned_apart() -> None:
    wanted = [Requirement(requirement) for requirement in PROJECT["optional-dependencies"][CUDA_EXTRA]]
    pinned = pins("constraints.txt") | pins("cuda.txt")
    assert all(requirement.specifier.contains(pinned[canonicalize_name(requirement.name)]) for requirement in wanted)
    assert "torchcodec" in pins("cuda.txt")
    assert not pins("cuda.txt").keys() & pins("constraints.txt").keys()


@pytest.mark.parametrize("file", ["Dockerfile", ".dockerignore"])
def test_the_build_gets_every_list(file: str) -> None:
    assert set(re.findall(r"\bdeploy/(\w+\.txt)", (REPOSITORY / file).read_text())) == set(LISTS)
