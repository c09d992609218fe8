"""The README's tables against the code, and its commands run as they stand."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
import torchvision

from app import errors
from app.main import create_app
from app.settings import PROTOCOLS, Settings
from tests.commands.train.conftest import coarse, make
from tests.conftest import CAT, REPOSITORY, SHARED, Server, environment

README = (REPOSITORY / "README.md").read_text()
BIN = Path(sys.executable).parent


def commands(prefix: str) -> list[str]:
    """Lines of the README's shell blocks that begin with this word."""
    blocks = re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(prefix)]


def rows(first_header: str) -> dict[str, list[str]]:
    """A table's rows by their first cell."""
    table = README[README.index(f"| {first_header} |") :].split("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]
    return {row[0]: row[1:] for row in cells}


def shell(command: str) -> subprocess.CompletedProcess[str]:
    env = environment() | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", command], cwd=REPOSITORY, env=env, capture_output=True, text=True, timeout=120)


def defaults(field: Any) -> str:
    default = field.default
    if default in (None, ()) or default == "":
        return ""
    if isinstance(default, tuple):
        return f"`{','.join(map(str, default))}`"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


def test_the_settings_table_is_the_settings() -> None:
    documented = rows("setting")
    assert documented == {
        f"`TOPK_{name.upper()}`": [defaults(field), field.description] for name, field in Settings.model_fields.items()
    }


def test_the_api_table_names_every_route() -> None:
    documented = set(re.findall(r"`(?:GET |POST )?(/[^\s`]*)`", " ".join(rows("request"))))
    others = {name: re.findall(r"`(?:GET |POST )?(/[^\s`]*)`", row[0]) for name, row in rows("protocol").items()}
    assert [name.strip("`") for name in others] == list(PROTOCOLS)
    paths = create_app(Settings(_env_file=None)).openapi()["paths"]
    served = {re.sub("(/versions)?/{version}", "", path) for path in paths} | {"/", "/docs", "/openapi.json"}
    assert documented.union(*others.values()) == served


def test_the_error_table_is_the_error_tree() -> None:
    def tree(error: type[errors.TopkError]) -> Iterator[type[errors.TopkError]]:
        yield error
        for below in error.__subclasses__():
            yield from tree(below)

    assert {code.strip("`"): int(row[0]) for code, row in rows("code").items()} == {
        error.code: error.status for error in tree(errors.TopkError)
    }


def test_the_metrics_table_names_what_is_exported(embedded_server: Server) -> None:
    exported = httpx2.get(f"{embedded_server.url}/metrics").text
    documented = re.findall(r"`(topk_\w+)`", " ".join(rows("metric")))
    for name in documented:
        assert f"# TYPE {name}" in exported
    assert set(re.findall(r"# TYPE (topk_\w+)", exported)) == set(documented)


def test_the_first_curl_answers_what_the_readme_shows(embedded_server: Server) -> None:
    shown = json.loads(re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[0])
    got = json.loads(shell(commands("curl")[0].replace("localhost:8000", embedded_server.url)).stdout)
    assert (got["model"], got["weights"]) == (shown["model"], shown["weights"])
    scores = {prediction["class_id"]: prediction["score"] for prediction in got["predictions"]}
    for prediction in shown["predictions"][:4]:
        assert scores[prediction["class_id"]] == pytest.approx(prediction["score"], abs=0.03)
    assert got["predictions"][0].keys() == shown["predictions"][0].keys()


def test_the_wordnet_answer_is_what_the_readme_shows(embedded_server: Server) -> None:
    shown = json.loads(re.findall(r"^```json\n(.*?)^```", README, re.MULTILINE | re.DOTALL)[1])
    [command] = [command for command in commands("curl") if "taxonomy=true" in command]
    got = json.loads(shell(command.replace("localhost:8000", embedded_server.url)).stdout)
    assert got.keys() == shown.keys()
    for place, expected in zip(got["taxonomy"][:-1], shown["taxonomy"][:-1], strict=True):  # the cats are a near-tie
        assert place == expected | {"score": pytest.approx(expected["score"], abs=0.02)}


def test_the_tree_is_what_the_readme_shows() -> None:
    [shown] = re.findall(r"^```\n(entity.*?)^```", README, re.MULTILINE | re.DOTALL)
    [command] = [command for command in commands("topk predict") if "--taxonomy" in command]
    assert shell(f"{command} --precision float32").stdout.partition("\nentity")[2].strip() == shown[6:].strip()


@pytest.mark.parametrize("command", commands("curl") + commands("echo"))
def test_every_curl_works_as_typed(embedded_server: Server, command: str) -> None:
    ran = shell(command.replace("localhost:8000", embedded_server.url))
    assert ran.returncode == 0, ran.stderr
    assert "code" not in json.loads(ran.stdout)


@pytest.mark.parametrize("command", [c for c in commands("topk") if c.split()[1] in ("predict", "models")])
def test_every_topk_command_works_as_typed(command: str) -> None:
    ran = shell(command)
    assert ran.returncode == 0, ran.stderr
    assert ("cat" in ran.stdout) or ("resnet50" in ran.stdout)


@pytest.mark.parametrize("command", commands("topk bench"))
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


EVALUATIONS = commands("topk evaluate")


@pytest.mark.parametrize("command", [command for command in EVALUATIONS if "photographs" in command])
def test_every_evaluation_works_as_typed(embedded_server: Server, photographs: Path, command: str) -> None:
    """Only with its photographs and its report elsewhere."""
    page = photographs.parent / "evaluation.html"
    command = command.replace("localhost:8000", embedded_server.url).replace("evaluation.html", str(page))
    ran = shell(command.replace("photographs", str(photographs)))
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout)["n"] == 1 if "--json" in command else "1 image of 1 class" in ran.stdout
    assert page.exists() == ("--report" in command)


@pytest.mark.slow
@pytest.mark.shared
def test_the_evaluation_of_resnet50_is_what_the_readme_shows() -> None:
    """To half a point of accuracy, and a point elsewhere; the reference is the float32 of torch."""
    [command] = [command for command in EVALUATIONS if "../shared" in command]
    ran = shell(command.replace("../shared", str(SHARED)))
    assert ran.returncode == 0, ran.stderr
    [shown] = re.findall(r"^```\n(resnet50 \(.*?)^```", README, re.MULTILINE | re.DOTALL)
    for name, bounds, expected in (("top-1", 0.5, 85.0), ("top-5", 0.5, 97.5)):
        for text in (shown, ran.stdout):
            [found] = re.findall(rf"^ {name} +([\d.]+) % .* ([\d.]+) % *$", text, re.MULTILINE)
            assert [float(one) for one in found] == pytest.approx([expected, expected], abs=bounds)
    for kind in ("animal", "mammal", "dog", "bird"):
        expected, got = (re.findall(rf"^ +{kind} .*?([\d.]+) % *$", text, re.MULTILINE) for text in (shown, ran.stdout))
        assert [float(one) for one in got] == pytest.approx([float(one) for one in expected], abs=5)


@pytest.mark.slow
@pytest.mark.shared
def test_training_says_what_the_readme_shows(tmp_path: Path) -> None:
    command = commands("topk train")[0].replace("../shared", str(SHARED))
    coarse(tmp_path / "photographs")
    ran = shell(
        command.replace("photographs", str(tmp_path / "photographs")).replace("my-model", f"{tmp_path}/my-model")
    )
    assert ran.returncode == 0, ran.stderr
    [shown] = re.findall(r"^```\n(learned from .*?)^```", README, re.MULTILINE | re.DOTALL)
    for pattern in (r"^learned from .*$", r"^ *(top-\d)", r"^(linear head: C = \d+)", r"^(12 images of 4 classes)"):
        assert re.findall(pattern, ran.stdout, re.MULTILINE) == re.findall(pattern, shown, re.MULTILINE)
    [accuracy] = re.findall(r"^ *top-1 +([\d.]+) %", ran.stdout, re.MULTILINE)
    assert float(accuracy) >= 90


@pytest.mark.slow
def test_a_trained_model_is_served_as_the_readme_says(resnet18_weights: Path, tmp_path: Path) -> None:
    """The whole network for an epoch, on made pictures, from seeded weights."""
    [train] = [command for command in commands("topk train") if "--fine-tune" in command]
    [serve] = [command for command in commands("topk serve") if "my-model" in command]
    photographs, model = make(tmp_path / "photographs"), tmp_path / "my-model"
    train = re.sub(r"--weights \S+", f"--weights {resnet18_weights} --epochs 1", train)
    train = train.replace("training.html", f"{tmp_path}/training.html").replace("my-tuned-model", str(model))
    ran = shell(train.replace("photographs", str(photographs)))
    assert ran.returncode == 0, ran.stderr
    assert "fine-tuned for 1 epoch" in ran.stdout
    assert "Epoch by epoch" in (tmp_path / "training.html").read_text()
    with Serving(serve.replace("my-model", str(model)), tmp_path) as address:
        content = (photographs / "disc" / "0.png").read_bytes()
        answer = httpx2.post(f"{address}/v1/predict", content=content).json()
    assert answer["model"] == "my-model"
    assert {(p["label"], p["wnid"]) for p in answer["predictions"]} == {("disc", None), ("square", None)}


@pytest.mark.slow
def test_an_exported_model_is_served_as_the_readme_says(tmp_path: Path) -> None:
    [export] = commands("topk export")
    [serve] = [command for command in commands("topk serve") if "my-resnet50" in command]
    weights = str(seeded_weights("resnet50", tmp_path / "resnet50.pth"))
    folder = tmp_path / "my-resnet50"
    export = re.sub(r"--weights \S+", f"--weights {weights}", export)
    ran = shell(export.replace("my-resnet50", str(folder)))
    assert ran.returncode == 0, ran.stderr
    with Serving(serve.replace("my-resnet50", str(folder)), tmp_path) as address:
        assert httpx2.get(f"{address}/v1/info").json()["model"] == "my-resnet50"


SERVED = [command for command in commands("topk serve") if "my-" not in command]
PLAIN = re.findall(r"^    (make serve)\b", README, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("command", [*PLAIN, *commands("make serve"), *SERVED])
def test_every_way_to_serve_works(command: str, tmp_path: Path) -> None:
    """With a port of its own, and seeded weights where the command's own are not to be had."""
    command = re.sub(r"PORT=\d+|--port \d+", "", command)
    if found := re.search(r"WEIGHTS=(\S+)", command):
        command = command.replace(found[1], str(seeded_weights("resnet50", tmp_path / "resnet50.pth")))
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
        said = []
        for line in self.process.stderr:
            said.append(line)
            if line.startswith("{") and (entry := json.loads(line))["event"] == "ready":
                return str(entry["address"])
        raise AssertionError("".join(said))

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
