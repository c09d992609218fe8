"""The container image, built by buildah and run by runc: non-root, no network, no capability, a read-only root.

By default the slim variant around a model folder, which needs no torch to build. ``make test-image`` also builds what
exports its model on the way, the cpu and cuda variants among it: minutes and gigabytes.
"""

import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pillow_heif
import pytest
from PIL import Image

import app
from tests.conftest import CAT, REPOSITORY, environment
from tests.production.container import Container, pip_settings

MISSING = [tool for tool in ("buildah", "debootstrap", "runc") if not shutil.which(tool)]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="root alone builds an image here"),
]
BUILDS = [("slim", "folder")]
if os.environ.get("TEST_IMAGES") == "all":
    BUILDS += [(variant, "efficientnet_lite0") for variant in ("slim", "cpu", "cuda")]
LISTS = {"slim": ["serving.txt"], "cpu": ["constraints.txt"], "cuda": ["constraints.txt", "cuda.txt"]}
ASK = """
import sys, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8080/v1/predict", sys.stdin.buffer.read()).read().decode())
"""
PACKAGES = """
import importlib.metadata as m, re
print(*(re.sub("[-_.]+", "-", d.name).lower() + "==" + d.version for d in m.distributions()), sep="\\n")
"""


@dataclass(frozen=True)
class Built:
    """An image: its variant, its configuration, and its files where they are mounted."""

    variant: str
    config: dict[str, Any]
    root: Path


def run(*command: str | Path) -> str:
    ran = subprocess.run([*map(str, command)], cwd=REPOSITORY, env=environment(), stdout=subprocess.PIPE, text=True)
    assert ran.returncode == 0, f"{command} said: {ran.stdout[-4000:]}"
    return ran.stdout.strip()


def build(*options: str) -> None:
    """``make image``, again where buildah could not seal its own copy of itself, which happens by chance."""
    for _ in range(3):
        ran = subprocess.run(
            ["make", "image", *options],
            cwd=REPOSITORY,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if ran.returncode == 0 or "sealing memfd copy" not in ran.stdout:
            break
    assert ran.returncode == 0, ran.stdout[-8000:]


@pytest.fixture(scope="module")
def base() -> Iterator[str]:
    """A base image from Debian's packages: no image registry is asked."""
    run("deploy/debian-base.sh", "topk-test-base")
    yield "localhost/topk-test-base"
    run("buildah", "rmi", "topk-test-base")


@pytest.fixture(scope="module", params=BUILDS, ids="-".join)
def image(base: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    """Built by ``make image``."""
    variant, model = request.param
    made = tmp_path_factory.mktemp("image")
    if model == "folder":
        model = made / "efficientnet_lite0"
        run(sys.executable, "-m", "app", "export", model.name, "--out", model, "--openvino-only")
    name = f"topk-test:{variant}"
    options = {"IMAGE": name, "VARIANT": variant, "MODEL": model, "BASE_IMAGE": base, "BUILDER": "buildah"}
    options["BUILD_FLAGS"] = " ".join(pip_settings(made))
    if "TORCH_INDEX" in os.environ:
        options["TORCH_INDEX"] = os.environ["TORCH_INDEX"]
    build(*(f"{key}={value}" for key, value in options.items()))
    container = run("buildah", "from", name)
    try:
        config = json.loads(run("buildah", "inspect", "--type", "image", name))["Docker"]["config"]
        yield Built(variant, config, Path(run("buildah", "mount", container)))
    finally:
        run("buildah", "rm", container)
        run("buildah", "rmi", "--force", name)


@pytest.fixture(scope="module")
def start(image: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Container]]:
    """Starts the image with arguments and variables."""
    started = []

    def start(*arguments: str, **env: str) -> Container:
        bundle = tmp_path_factory.mktemp("bundle")
        started.append(Container(image.root, image.config, bundle, *arguments, **env))
        return started[-1]

    yield start
    for container in started:
        container.close()


@pytest.fixture(scope="module")
def service(start: Callable[..., Container]) -> Container:
    """As it starts by default, ready."""
    container = start()
    container.wait_until_ready()
    return container


def ask(container: Container, content: bytes) -> dict[str, Any]:
    ran = container.execute("python3", "-c", ASK, content=content)
    assert ran.returncode == 0, ran.stderr.decode()
    answer: dict[str, Any] = json.loads(ran.stdout)
    return answer


def test_a_photograph_is_answered(service: Container) -> None:
    answer = ask(service, CAT.read_bytes())
    assert answer["model"] == "efficientnet_lite0"
    assert {found["class_id"] for found in answer["predictions"][:3]} == {281, 282, 285}


def test_heic_is_decoded(service: Container) -> None:
    heic = io.BytesIO()
    pillow_heif.from_pillow(Image.open(CAT)).save(heic, quality=90)
    assert {found["class_id"] for found in ask(service, heic.getvalue())["predictions"][:3]} == {281, 282, 285}


def test_it_has_no_rights_and_no_network(service: Container) -> None:
    status = service.status()
    assert status["Uid"].split() == ["10001"] * 4
    assert status["Gid"].split() == ["10001"] * 4
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert status["NoNewPrivs"] == "1"
    interfaces = service.execute("cat", "/proc/net/dev").stdout.decode().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in interfaces] == ["lo"]


def test_it_writes_nothing(service: Container) -> None:
    assert b"Read-only file system" in service.execute("touch", "/models/mine").stderr
    assert service.execute("ls", "-A", "/tmp").stdout == b""


def test_it_is_healthy_on_the_port_in_use(image: Built, service: Container, start: Callable[..., Container]) -> None:
    kind, *check = image.config["Healthcheck"]["Test"]
    assert kind == "CMD"
    assert service.execute(*check).returncode == 0
    assert service.execute(*check, PORT="1").returncode != 0
    elsewhere = start(TOPK_PORT="9001")
    elsewhere.wait_until_ready()
    assert elsewhere.execute(*check).returncode == 0


def test_serve_is_an_argument_and_sigterm_ends_it_with_code_0(start: Callable[..., Container]) -> None:
    container = start("serve", TOPK_DRAIN_DELAY_MS="0")
    assert container.wait_until_ready()["model"] == "efficientnet_lite0"
    assert container.signal("TERM") == 0


def test_its_configuration(image: Built) -> None:
    config = image.config
    assert (config["Entrypoint"], config["Cmd"]) == (["topk"], ["serve"])
    assert (config["User"], config["StopSignal"]) == ("10001:10001", "SIGTERM")
    assert list(config["ExposedPorts"]) == ["8080/tcp"]
    assert {"PORT=8080", "TOPK_MODEL_FOLDERS=/opt/ml/model,/models/default"} <= set(config["Env"])
    assert config["Labels"]["org.opencontainers.image.version"] == app.__version__
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_it_holds_what_was_pinned_and_no_tools(image: Built, service: Container) -> None:
    installed = set(service.execute("/opt/topk/bin/python", "-c", PACKAGES).stdout.decode().split())
    pins = "".join((REPOSITORY / "deploy" / name).read_text() for name in LISTS[image.variant])
    expected = {line for line in pins.splitlines() if not line.startswith("#")} | {f"topk=={app.__version__}"}
    if image.variant == "slim":
        assert installed == expected
    else:  # torch requires more than is pinned, and its version may end in +cpu
        assert expected <= {release.partition("+")[0] for release in installed}
    names = {"cc", "gcc", "g++", "clang", "ld", "as", "make", "pip", "pip3", "curl"}
    folders = [
        image.root / folder for folder in ("opt/topk/bin", "usr/local/bin", "usr/bin", "usr/local/sbin", "usr/sbin")
    ]
    assert [path for folder in folders if folder.is_dir() for path in folder.iterdir() if path.name in names] == []
    assert not [path for path in ("etc/pip.conf", "src", "root/.cache", "given") if (image.root / path).exists()]


def test_another_model_than_the_slim_one_is_refused_in_a_sentence(
    image: Built, start: Callable[..., Container]
) -> None:
    if image.variant != "slim":
        pytest.skip("it has torch")
    for processes in ("0", "1"):
        code, log = start("serve", TOPK_MODEL="resnet50", TOPK_WORKERS=processes).finish()
        assert code == 1
        assert "the model resnet50 needs PyTorch, which is not installed; without it, topk serves model folders" in log
        assert "Traceback" not in log


def test_the_cuda_one_has_what_a_gpu_needs_and_runs_torch_without_triton(
    image: Built, start: Callable[..., Container]
) -> None:
    if image.variant != "cuda":
        pytest.skip("it is for CPUs")
    assert "NVIDIA_DRIVER_CAPABILITIES=compute,utility,video" in image.config["Env"]
    container = start("serve", TOPK_ENGINE="torch")
    container.wait_until_ready()
    assert {found["class_id"] for found in ask(container, CAT.read_bytes())["predictions"][:3]} == {281, 282, 285}
    code = "import torch, torchcodec.decoders, importlib.util as u; print(torch.version.cuda, u.find_spec('triton'))"
    cuda, triton = container.execute("/opt/topk/bin/python", "-c", code).stdout.decode().split()
    assert (cuda.partition(".")[0].isdigit(), triton) == (True, "None")
