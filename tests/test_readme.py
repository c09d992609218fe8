"""README and docs: their commands run as they stand, and print what they show.

Blocks that begin with ``# needs`` need what a clone does not have; tests/docs checks their options. docs/clients.md and
docs/protocols.md are run by tests/clients.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import torchvision

from app.api.auth import Keys
from app.settings import Settings
from tests.commands.train.conftest import coarse, make
from tests.conftest import CAT, REPOSITORY, RESNET50, SHARED, Server, environment
from tests.docs import pages

BIN = Path(sys.executable).parent


def commands(prefix: str, *of: str, needing: bool = False) -> list[str]:
    """The distinct commands that begin with this, of these pages or all, in blocks with or without ``# needs``."""
    found = [command for command in pages.commands(*of) if not command.page.endswith(("clients.md", "protocols.md"))]
    lines = [command.line for command in found if bool(command.needs) == needing and command.line.startswith(prefix)]
    return list(dict.fromkeys(line.partition("  #")[0].rstrip() for line in lines))


SLOW = ("topk predict", "topk models", "--clients 1,4,16,64", "--find-capacity", "topk evaluate")


def timed(found: list[str]) -> list[Any]:
    """These commands as a test's parameters, those that take long marked as slow."""
    return [pytest.param(line, marks=[pytest.mark.slow] * any(word in line for word in SLOW)) for line in found]


def shell(command: str) -> subprocess.CompletedProcess[str]:
    env = environment() | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", command], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)


def test_the_metrics_table_has_every_metric(embedded_server: Server) -> None:
    exported = httpx2.get(f"{embedded_server.url}/metrics").text
    documented = re.findall(r"`(topk_\w+)`", " ".join(pages.rows("docs/metrics.md", "metric")))
    for name in documented:
        assert f"# TYPE {name}" in exported
    assert set(re.findall(r"# TYPE (topk_\w+)", exported)) == set(documented)


def test_the_first_curl_answers_what_the_readme_shows(embedded_server: Server) -> None:
    shown = json.loads(pages.blocks("README.md", "json")[0].text)
    [command] = commands("curl", "README.md")
    got = json.loads(shell(command.replace("localhost:8000", embedded_server.url)).stdout)
    assert (got["model"], got["weights"]) == (shown["model"], shown["weights"])
    scores = {prediction["class_id"]: prediction["score"] for prediction in got["predictions"]}
    for prediction in shown["predictions"][:4]:
        assert scores[prediction["class_id"]] == pytest.approx(prediction["score"], abs=0.03)
    assert got["predictions"][0].keys() == shown["predictions"][0].keys()


def test_the_wordnet_answer_is_what_the_page_shows(embedded_server: Server) -> None:
    shown = json.loads(pages.blocks("docs/wordnet.md", "json")[0].text)
    [command] = [command for command in commands("curl", "docs/wordnet.md") if "taxonomy=true" in command]
    got = json.loads(shell(command.replace("localhost:8000", embedded_server.url)).stdout)
    assert got.keys() == shown.keys()
    for place, expected in zip(got["taxonomy"][:-1], shown["taxonomy"][:-1], strict=True):  # the cats are a near-tie
        assert place == expected | {"score": pytest.approx(expected["score"], abs=0.02)}


@pytest.mark.slow
def test_the_tree_is_what_the_page_shows() -> None:
    shown = pages.shown("docs/wordnet.md", "text", "entity")
    [command] = commands("topk predict", "docs/wordnet.md")
    assert shell(f"{command} --precision float32").stdout.partition("\nentity")[2].strip() == shown[6:].strip()


@pytest.mark.parametrize("command", commands("curl") + commands("echo"))
def test_every_curl_works_as_typed(embedded_server: Server, command: str) -> None:
    ran = shell(command.replace("localhost:8000", embedded_server.url))
    assert ran.returncode == 0, ran.stderr
    assert "code" not in json.loads(ran.stdout)


@pytest.mark.parametrize("command", timed(commands("topk predict") + commands("topk models") + commands("topk --help")))
def test_every_topk_command_works_as_typed(command: str) -> None:
    ran = shell(command)
    assert ran.returncode == 0, ran.stderr
    assert any(word in ran.stdout for word in ("cat", "resnet50", "resnet10t", "Usage"))


@pytest.mark.parametrize("command", timed(commands("topk bench")))
def test_every_bench_command_works_as_typed(embedded_server: Server, command: str, tmp_path: Path) -> None:
    """Only shorter, and with its report elsewhere."""
    command = command.replace("localhost:8000", embedded_server.url).replace("bench.html", str(tmp_path / "bench.html"))
    ran = shell(f"{command} --seconds 0.3 --warmup 0")
    assert ran.returncode == 0, ran.stderr
    assert "goodput" in ran.stdout
    assert (tmp_path / "bench.html").exists() == ("--report" in command)


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """A labelled cat, as a folder of folders and as a CSV."""
    folder = tmp_path / "photographs"
    (folder / "tabby").mkdir(parents=True)
    shutil.copy(CAT, folder / "tabby")
    (folder / "labels.csv").write_text("file,label\ntabby/cat.jpg,Egyptian cat\n")
    return folder


REFERENCE, *EVALUATIONS = commands("topk evaluate", "docs/evaluate.md", needing=True)


@pytest.mark.parametrize("command", timed(EVALUATIONS))
def test_every_evaluation_works_as_typed(embedded_server: Server, photographs: Path, command: str) -> None:
    """Only with its photographs and its report elsewhere."""
    page = photographs.parent / "evaluation.html"
    command = command.replace("localhost:8000", embedded_server.url).replace("evaluation.html", str(page))
    ran = shell(command.replace("PHOTOGRAPHS", str(photographs)))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["n"] == 1 if "--json" in command else "1 image of 1 class" in ran.stdout
    assert page.exists() == ("--report" in command)


@pytest.mark.slow
@pytest.mark.shared
def test_the_evaluation_of_resnet50_is_what_the_page_shows() -> None:
    """To half a point of accuracy, and a point elsewhere; the reference is the float32 of torch."""
    ran = shell(f"{REFERENCE.replace('PHOTOGRAPHS', str(SHARED / 'images' / 'imagenet'))} --weights {RESNET50}")
    assert ran.returncode == 0, ran.stderr
    shown = pages.shown("docs/evaluate.md", "text", "resnet50 (")
    for name, bounds, expected in (("top-1", 0.5, 85.0), ("top-5", 0.5, 97.5)):
        for text in (shown, ran.stdout):
            [found] = re.findall(rf"^ {name} +([\d.]+) % .* ([\d.]+) % *$", text, re.MULTILINE)
            assert [float(one) for one in found] == pytest.approx([expected, expected], abs=bounds)
    for kind in ("animal", "mammal", "dog", "bird"):
        expected, got = (re.findall(rf"^ +{kind} .*?([\d.]+) % *$", text, re.MULTILINE) for text in (shown, ran.stdout))
        assert [float(one) for one in got] == pytest.approx([float(one) for one in expected], abs=5)


TRAINING, TUNING = commands("topk train", "docs/train.md", needing=True)


@pytest.mark.slow
@pytest.mark.shared
def test_training_prints_what_the_page_shows(tmp_path: Path) -> None:
    photographs = coarse(tmp_path / "photographs")
    command = TRAINING.replace("PHOTOGRAPHS", str(photographs)).replace("my-model", f"{tmp_path}/my-model")
    ran = shell(f"{command} --weights {SHARED / 'weights' / 'resnet18.safetensors'}")
    assert ran.returncode == 0, ran.stderr
    shown = pages.shown("docs/train.md", "text", "trained on")
    for pattern in (r"^trained on .*$", r"^ *(top-\d)", r"^(linear head: C = \d+)", r"^(12 images of 4 classes)"):
        assert re.findall(pattern, ran.stdout, re.MULTILINE) == re.findall(pattern, shown, re.MULTILINE)
    [accuracy] = re.findall(r"^ *top-1 +([\d.]+) %", ran.stdout, re.MULTILINE)
    assert float(accuracy) >= 90


@pytest.mark.slow
def test_a_trained_model_is_served_as_documented(resnet18_weights: Path, tmp_path: Path) -> None:
    """The whole network for an epoch, on made pictures, from seeded weights."""
    [serve] = commands("topk serve", "docs/train.md", needing=True)
    photographs, model = make(tmp_path / "photographs"), tmp_path / "my-model"
    train = TUNING.replace("training.html", f"{tmp_path}/training.html").replace("my-tuned-model", str(model))
    ran = shell(f"{train.replace('PHOTOGRAPHS', str(photographs))} --weights {resnet18_weights} --epochs 1")
    assert ran.returncode == 0, ran.stderr
    assert "fine-tuned for 1 epoch" in ran.stdout
    assert "Accuracy and log loss by epoch" in (tmp_path / "training.html").read_text()
    with Serving(serve.replace("my-model", str(model)), tmp_path) as address:
        content = (photographs / "disc" / "0.png").read_bytes()
        answer = httpx2.post(f"{address}/v1/predict", content=content).json()
    assert answer["model"] == "my-model"
    assert {(p["label"], p["wnid"]) for p in answer["predictions"]} == {("disc", None), ("square", None)}


@pytest.mark.slow
def test_the_tutorial_leads_from_photographs_to_an_answer(tmp_path: Path) -> None:
    """Its folders of made pictures, in a folder of its own, with the model that needs no download."""
    photographs, test = make(tmp_path / "photographs"), make(tmp_path / "test", count=2)
    picture = photographs / "disc" / "0.png"
    train, evaluate, serve, call = (
        commands(prefix, "docs/tutorial.md", needing=True)[0]
        for prefix in ("topk train", "topk evaluate", "topk serve", "curl")
    )
    assert [train.split()[2], evaluate.split()[2]] == [photographs.name, test.name]
    for command in (train.replace("resnet18", "efficientnet_lite0"), evaluate):
        ran = shell(f"cd {tmp_path} && {command}")
        assert ran.returncode == 0, ran.stderr
    assert {"training.html", "evaluation.html"} <= {path.name for path in tmp_path.iterdir()}
    with Serving(serve.replace("my-model", f"{tmp_path}/my-model"), tmp_path) as address:
        got = json.loads(shell(call.replace("PHOTO.jpg", str(picture)).replace("localhost:8000", address)).stdout)
    shown = json.loads(pages.shown("docs/tutorial.md", "json", "{"))
    assert got.keys() == shown.keys()
    assert (got["model"], got["weights"]) == (shown["model"], shown["weights"])
    assert got["predictions"][0].keys() == shown["predictions"][0].keys()


@pytest.mark.slow
def test_an_exported_model_is_served_as_documented(tmp_path: Path) -> None:
    [export] = commands("topk export", "docs/models.md")
    [serve] = commands("topk serve --model my-", "docs/models.md")
    folder = tmp_path / "my-efficientnet"
    ran = shell(export.replace("my-efficientnet", str(folder)))
    assert ran.returncode == 0, ran.stderr
    with Serving(serve.replace("my-efficientnet", str(folder)), tmp_path) as address:
        assert httpx2.get(f"{address}/v1/info").json()["model"] == "my-efficientnet"


def test_keys_are_rotated_as_documented(tmp_path: Path) -> None:
    first, second = (
        line.replace("topk-keys", str(tmp_path / "topk-keys")) for line in commands("(umask", "docs/operations.md")
    )
    file = tmp_path / "topk-keys"
    assert shell(first).returncode == 0
    [old] = file.read_text().split()
    assert file.stat().st_mode & 0o077 == 0
    keys = Keys(Settings(_env_file=None, api_keys_file=file), clock=iter(range(0, 1000, 10)).__next__)
    assert shell(second).returncode == 0
    assert file.read_text().split()[0] == old
    assert file.stat().st_mode & 0o077 == 0
    assert len({keys.check(key) for key in file.read_text().split()}) == 2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("nginx", path="/usr/sbin:/usr/bin:/bin"), reason="nginx is not installed")
def test_nginx_accepts_the_tls_example(tmp_path: Path) -> None:
    """With a certificate of its own, and a port that nobody else has."""
    certificate = f"-keyout {tmp_path}/key -out {tmp_path}/certificate"
    assert shell(f"openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost {certificate}").returncode == 0
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    server = pages.shown("docs/operations.md", "nginx", "server").replace("listen 443", f"listen 127.0.0.1:{port}")
    server = re.sub(r"/etc/\S*fullchain.pem", f"{tmp_path}/certificate", server)
    server = re.sub(r"/etc/\S*privkey.pem", f"{tmp_path}/key", server)
    paths = "".join(f"{kind}_temp_path {tmp_path};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    http = f"{paths} access_log off; {server}"
    (tmp_path / "nginx.conf").write_text(f"pid {tmp_path}/pid; error_log stderr; events {{}} http {{ {http} }}")
    ran = shell(f"PATH=$PATH:/usr/sbin nginx -t -c {tmp_path}/nginx.conf")
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        *commands("make serve", "README.md"),
        *commands("make serve", "README.md", needing=True),
        *commands("topk serve", "README.md"),
    ],
)
def test_every_way_to_serve_in_the_readme_works(command: str, tmp_path: Path) -> None:
    """With a port of its own, and seeded weights where the command's own are not to be had."""
    command = re.sub(r"PORT=\d+|--port \d+", "", command)
    if "WEIGHTS.safetensors" in command:
        command = command.replace("WEIGHTS.safetensors", str(seeded_weights("resnet50", tmp_path / "resnet50.pth")))
    if found := re.search(r"MODEL=(\w+):(\w+)", command):
        url = torchvision.models.get_model_weights(found[1])[found[2]].url
        seeded_weights(found[1], tmp_path / "torch" / "hub" / "checkpoints" / url.rsplit("/", 1)[-1])
    make = f" VENV={sys.prefix}" if command.startswith("make") else ""
    with Serving(f"{command}{make}", tmp_path) as address:
        assert httpx2.get(f"{address}/readyz").status_code == 200


def seeded_weights(architecture: str, path: Path) -> Path:
    torch.manual_seed(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(torchvision.models.get_model(architecture).state_dict(), path)
    return path


class Serving:
    """A command that serves, until the block ends; entered when it is ready."""

    def __init__(self, command: str, folder: Path) -> None:
        env = environment() | {
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "TOPK_PORT": "0",
            "TOPK_HOST": "127.0.0.1",
            "TOPK_DRAIN_DELAY_MS": "0",
            "TORCH_HOME": str(folder / "torch"),
            "HTTPS_PROXY": "http://127.0.0.1:9",  # no network: nothing is downloaded, wherever this runs
        }
        self.process = subprocess.Popen(
            ["bash", "-c", command], cwd=REPOSITORY, env=env, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def __enter__(self) -> str:
        assert self.process.stderr
        read = []
        for line in self.process.stderr:
            read.append(line)
            if line.startswith("{") and (entry := json.loads(line))["event"] == "ready":
                return str(entry["address"])
        raise AssertionError("".join(read))

    def __exit__(self, *_: object) -> None:
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.communicate(timeout=60)


def test_ci_runs_the_lint_and_all_tests() -> None:
    pytest_command = r"-m pytest --numprocesses [0-9]+ --dist loadfile --no-loadscope-reorder"
    fast, everything = (shell(f"make -n {target} VENV={sys.prefix}").stdout for target in ("test", "test-all"))
    assert re.search(rf"{pytest_command} *$", fast, re.MULTILINE)
    assert re.search(rf"{pytest_command} -m '' *$", everything, re.MULTILINE)
    ci = (REPOSITORY / ".ci" / "run").read_text()
    for target in ("lint", "test-all"):
        assert re.search(rf"^make {target}$", ci, re.MULTILINE)


def test_an_old_python_is_refused_in_plain_words(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for name in ("python3.11", "python3.12", "python3.13"):
        shutil.copy(old, tmp_path / name)
    ran = subprocess.run(
        ["make", "serve", f"VENV={tmp_path / 'venv'}"],
        cwd=REPOSITORY,
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
    )
    assert ran.returncode != 0
    assert "Python 3.11 or newer" in ran.stderr


@pytest.mark.slow
def test_a_wheel_holds_the_page_and_the_labels(tmp_path: Path) -> None:
    ran = shell(f"python -m pip wheel --quiet --no-deps --wheel-dir {tmp_path} .")
    assert ran.returncode == 0, ran.stderr
    names = shell(f"python -m zipfile --list {next(tmp_path.glob('*.whl'))}").stdout
    for name in (
        "app/web/index.html",
        "app/imagenet/imagenet1k.csv",
        "app/commands/bench/report.html",
        "entry_points.txt",
    ):
        assert name in names
    for name in ("app/commands/reports/page.css", "app/commands/evaluate/report.html"):
        assert name in names
    for name in (
        "app/imagenet/wordnet.csv",
        "app/imagenet/wordnet.LICENSE",
        "dist-info/licenses/app/imagenet/wordnet.LICENSE",
    ):
        assert name in names
