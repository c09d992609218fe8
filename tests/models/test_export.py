"""``topk export`` as a command, int8 with real photographs among it."""

import json
import re
import subprocess
import sys
from pathlib import Path
from unicodedata import normalize

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import load_file, save_file

from app.imagenet.labels import Label
from app.images import Preprocessing
from app.models.quantize import Judgement, read, speedup
from tests import tiny
from tests.commands import runner
from tests.commands.train.conftest import make
from tests.conftest import CAT, PHOTOGRAPHS, REPOSITORY, RESNET50, Server, environment
from tests.models.seeded import seeded

Answers = list[dict[str, object]]
FASTER = re.compile(r"(\d+\.\d) times as fast as (float32|bfloat16) on this machine")


def topk(*arguments: object, timeout: float = 280) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app", *map(str, arguments)],
        cwd=REPOSITORY,
        env=environment() | {"COLUMNS": "400"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    save_file(seeded(torchvision.models.resnet18).state_dict(), path)
    return path


def predictions(*options: object) -> Answers:
    ran = topk("predict", CAT, "--json", *options)
    assert ran.returncode == 0, ran.stderr
    answer: Answers = json.loads(ran.stdout)["predictions"]
    return answer


@pytest.fixture(scope="module")
def expected(weights: Path) -> Answers:
    """What the model itself answers."""
    return predictions("--model", "resnet18", "--weights", weights)


@pytest.mark.slow
def test_an_exported_folder_answers_as_the_model_does(weights: Path, expected: Answers, tmp_path: Path) -> None:
    ran = topk("export", "resnet18", "--weights", weights, "--out", tmp_path / "mine")
    assert ran.returncode == 0, ran.stderr
    assert f"topk serve --model {tmp_path / 'mine'}" in ran.stdout
    assert predictions("--model", tmp_path / "mine") == expected


@pytest.mark.slow
def test_a_folder_for_openvino_only_has_no_weights_for_torch(weights: Path, expected: Answers, tmp_path: Path) -> None:
    ran = topk("export", "resnet18", "--weights", weights, "--out", tmp_path / "mine", "--openvino-only")
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in (tmp_path / "mine").iterdir()) == ["model.json", "openvino.bin", "openvino.xml"]
    assert predictions("--model", tmp_path / "mine") == expected
    ran = topk("predict", CAT, "--model", tmp_path / "mine", "--engine", "torch")
    assert "only the engine openvino can serve it" in ran.stderr


@pytest.mark.parametrize("options", [["--precision", "int8"], ["--calibrate", "docs"]])
def test_int8_and_photographs_go_together(weights: Path, tmp_path: Path, options: list[str]) -> None:
    ran = runner.topk("export", "resnet18", "--weights", weights, "--out", tmp_path / "mine", *options, columns=400)
    assert ran.returncode == 1
    assert "must be given together" in ran.stderr
    assert not (tmp_path / "mine").exists()


@pytest.mark.slow
def test_a_few_photographs_are_too_few(weights: Path, tmp_path: Path) -> None:
    command = ["export", "resnet18", "--weights", weights, "--out", tmp_path / "mine"]
    ran = topk(*command, "--precision", "int8", "--calibrate", CAT.parent)
    assert ran.returncode == 1
    assert "calibration needs at least 20" in ran.stderr


@pytest.mark.slow
def test_a_model_that_answers_otherwise_is_written_only_by_force(weights: Path, tmp_path: Path) -> None:
    """Classes that hardly differ, so that int8 orders them anew."""
    state = load_file(weights)
    spread = torch.randn(state["fc.weight"].shape, generator=torch.Generator().manual_seed(0))
    state["fc.weight"] = state["fc.weight"][:1] + 1e-4 * spread
    state["fc.bias"] = torch.zeros(1000)
    save_file(state, tmp_path / "close.safetensors")
    weights = tmp_path / "close.safetensors"
    noise = tmp_path / "noise"
    noise.mkdir()
    for seed in range(30):
        pixels = np.random.default_rng(seed).integers(seed * 4, seed * 4 + 130, (240, 240, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(noise / f"{seed}.png")
    command = ["export", "resnet18", "--weights", weights, "--precision", "int8", "--calibrate", noise]
    refused = topk(*command, "--out", tmp_path / "mine")
    assert refused.returncode == 1, refused.stdout
    assert "int8 changes too many predictions" in refused.stderr
    assert FASTER.search(refused.stderr)
    assert not (tmp_path / "mine").exists()
    forced = topk(*command, "--out", tmp_path / "mine", "--force")
    assert forced.returncode == 0, forced.stderr
    [(ratio, _)] = FASTER.findall(forced.stdout)
    assert float(ratio) > 0
    assert json.loads((tmp_path / "mine" / "model.json").read_text())["precision"] == "int8"


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.timeout(1200)
def test_int8_of_real_weights_keeps_the_accuracy_rule(tmp_path: Path) -> None:
    folder = PHOTOGRAPHS[0].parents[1]
    command = ["export", "resnet50", "--weights", RESNET50, "--precision", "int8", "--calibrate", folder]
    ran = topk(*command, "--out", tmp_path / "int8", timeout=900)
    assert ran.returncode == 0, ran.stderr
    assert "same prediction as float32 for 9" in ran.stdout
    assert FASTER.search(ran.stdout)
    server = Server("--model", str(tmp_path / "int8"))
    try:
        import httpx2

        with httpx2.Client(base_url=server.url, timeout=60) as client:
            assert client.get("/v1/info").json()["precision"] == "int8"
            first = [client.post("/v1/predict", content=path.read_bytes()).json() for path in PHOTOGRAPHS]
        right = np.mean([a["predictions"][0]["wnid"] == p.parent.name for a, p in zip(first, PHOTOGRAPHS, strict=True)])
        assert right >= 0.83
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_the_speed_is_a_ratio_measured_here() -> None:
    pixels = np.zeros((2, tiny.PREPROCESSING.crop, tiny.PREPROCESSING.crop, 3), np.float32)
    assert speedup(tiny.network(), tiny.network(), "float32", pixels) > 0


def test_a_judgement_names_the_precision_that_int8_is_compared_with() -> None:
    judgement = Judgement(200, 0.985, (0.81, 0.82), None, speedup=2.04, precision="float32")
    assert str(judgement) == (
        "same prediction as float32 for 98.5% of 200 photographs, top-1 81.0% instead of 82.0%,"
        " 2.0 times as fast as float32 on this machine"
    )


def test_photographs_in_folders_of_own_classes_have_labels_too(tmp_path: Path) -> None:
    shapes = make(tmp_path, count=10)
    labels = (Label("square"), Label("disc"))
    preprocessing = Preprocessing(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found = read(shapes, preprocessing, labels, 10**6, lambda _: None)
    assert found.classes is not None
    assert found.classes.tolist() == [1] * 10 + [0] * 10
    assert read(shapes, preprocessing, labels[:1], 10**6, lambda _: None).classes is None


def test_photographs_behind_links_have_the_class_of_the_link_in_either_form(tmp_path: Path) -> None:
    shapes = make(tmp_path / "store", count=10)
    photographs = tmp_path / "photographs"
    for name, target in {normalize("NFD", "Carré"): "square", "Rond": "disc"}.items():
        (photographs / name).mkdir(parents=True)
        (photographs / name / "2024").symlink_to(shapes / target)
    (photographs / "@eaDir").mkdir()
    labels = (Label(normalize("NFC", "Carré")), Label("Rond"))
    preprocessing = Preprocessing(64, 64, "bilinear", (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    found = read(photographs, preprocessing, labels, 10**6, lambda _: None)
    assert found.classes is not None
    assert found.classes.tolist() == [0] * 10 + [1] * 10
    assert found.skipped.system == {"@eaDir": 1}
