"""A model folder: what is written is served with the same answers, and damage is told in plain words."""

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import load_file, save_file

from app import models
from app.engine import Want
from app.engine.openvino import OpenVinoEngine
from app.engine.torch import TorchEngine
from app.errors import ModelError
from app.models import cache, folder, zoo
from app.models.model import Model
from app.settings import Settings
from tests.models.seeded import seeded

CROPS = [np.random.default_rng(seed).integers(0, 256, (224, 224, 3), np.uint8) for seed in range(3)]
WANTS = [Want(k=5, features=True, logits=True)] * 3


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "mine.safetensors"
    save_file(seeded(torchvision.models.resnet18).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def model(weights: Path) -> Model:
    return zoo.from_file("resnet18", None, weights)


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("folders") / "my resnet"
    folder.write(model, path)
    return path


@pytest.fixture
def copy(written: Path, tmp_path: Path) -> Iterator[Path]:
    target = tmp_path / "copy"
    shutil.copytree(written, target)
    yield target
    shutil.rmtree(target)


def test_what_is_read_is_what_was_written(model: Model, written: Path) -> None:
    read = folder.load(written)
    assert read.name == "my-resnet"
    for field in ("architecture", "weights", "digest", "preprocessing", "labels", "precision"):
        assert getattr(read, field) == getattr(model, field)


def test_openvino_and_torch_answer_the_same_from_a_folder(model: Model, written: Path) -> None:
    read = folder.load(written)
    engines = [OpenVinoEngine(read, "float32"), TorchEngine(read, "cpu", "float32"), TorchEngine(model, "cpu", "auto")]
    rows = []
    for engine in engines[:2]:
        engine.load()
        rows.append(engine.forward(CROPS, WANTS))
    for ours, reference in zip(*rows, strict=True):
        assert np.allclose(ours.logits, reference.logits, atol=1e-3)
        assert np.allclose(ours.features, reference.features, atol=1e-3)
        assert ours.class_ids.tolist() == reference.class_ids.tolist()


def test_the_safetensors_are_torchvision_s_own_names(written: Path) -> None:
    torchvision.models.resnet18().load_state_dict(load_file(written / "model.safetensors"))


def test_a_folder_is_served_without_torch(written: Path) -> None:
    code = (
        "import sys, numpy as np\nfrom pathlib import Path\n"
        "from app.models import folder\nfrom app.engine import Want\n"
        "from app.engine.openvino import OpenVinoEngine\n"
        f"engine = OpenVinoEngine(folder.load(Path({str(written)!r})), 'float32'); engine.load()\n"
        "engine.forward([np.zeros((224, 224, 3), np.uint8)], [Want(k=1)])\n"
        "print(sorted({'torch', 'torchvision'} & sys.modules.keys()))"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


@pytest.mark.parametrize("name", ["openvino.bin", "openvino.xml"])
def test_a_damaged_network_is_told(copy: Path, name: str) -> None:
    (copy / name).write_bytes((copy / name).read_bytes()[:-1])
    with pytest.raises(ModelError, match=rf"{name} is damaged"):
        folder.load(copy)


def test_damaged_weights_are_told_when_they_are_built(copy: Path) -> None:
    (copy / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ModelError, match=r"model.safetensors is damaged"):
        folder.load(copy).build()


def test_a_missing_network_is_told(copy: Path) -> None:
    (copy / "openvino.bin").unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        folder.load(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"format": 99}, "has format 99"), ({"architecture": None}, "is no description"), ({"odd": 1}, "is no desc")],
)
def test_a_description_of_another_kind_is_told(copy: Path, change: dict[str, object], message: str) -> None:
    document = json.loads((copy / "model.json").read_text()) | change
    (copy / "model.json").write_text(json.dumps(document))
    with pytest.raises(ModelError, match=message):
        folder.load(copy)


def test_a_folder_with_something_in_it_is_not_written_over(model: Model, copy: Path) -> None:
    with pytest.raises(ModelError, match="is not empty"):
        folder.write(model, copy)


def test_without_its_weights_a_folder_cannot_be_built(model: Model, tmp_path: Path) -> None:
    folder.write(model, tmp_path / "lean", weights=False)
    read = folder.load(tmp_path / "lean")
    assert not (tmp_path / "lean" / "model.safetensors").exists()
    with pytest.raises(ModelError, match="served by OpenVINO alone"):
        read.build()


def test_an_int8_folder_is_served_in_int8_alone(written: Path) -> None:
    read = replace(folder.load(written), precision="int8")
    assert OpenVinoEngine(read, "auto").precision == "int8"
    with pytest.raises(ModelError, match="cannot be served in float32"):
        OpenVinoEngine(read, "float32")
    with pytest.raises(ModelError, match="on a CPU"):
        TorchEngine(read, "cpu", "auto")


# --- the cache of converted models ---


def test_a_model_is_converted_once(weights: Path, tmp_path: Path) -> None:
    first = cache.converted("resnet18", weights, tmp_path)
    assert first.openvino
    written_at = first.openvino.stat().st_mtime_ns
    second = cache.converted("resnet18", weights, tmp_path)
    assert (second.openvino, second.name, second.weights) == (first.openvino, "resnet18", "mine")
    assert first.openvino.stat().st_mtime_ns == written_at
    assert [path.name for path in tmp_path.iterdir()] == [first.openvino.parent.name]


def test_a_damaged_entry_is_converted_again(weights: Path, tmp_path: Path) -> None:
    first = cache.converted("resnet18", weights, tmp_path)
    assert first.openvino
    first.openvino.with_suffix(".bin").write_bytes(b"damaged")
    again = cache.converted("resnet18", weights, tmp_path)
    engine = OpenVinoEngine(again, "float32")
    engine.load()
    assert len(engine.forward(CROPS, WANTS)) == 3


def test_what_the_conversion_says_is_what_the_caller_is_told(weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not fit resnet34"):
        cache.converted("resnet34", weights, tmp_path)
    with pytest.raises(ModelError, match="cannot be read"):
        cache.converted("resnet18", tmp_path / "none.pth", tmp_path)
    with pytest.raises(ModelError, match="no model 'resnet19'"):
        cache.converted("resnet19", weights, tmp_path)


def test_a_cache_that_cannot_be_written_is_told(weights: Path) -> None:
    with pytest.raises(ModelError, match="cannot be kept"):
        cache.converted("resnet18", weights, weights / "below")


def test_a_folder_brings_its_own_weights(written: Path, weights: Path) -> None:
    with pytest.raises(ModelError, match="brings its own weights"):
        models.resolve(Settings(_env_file=None, model=str(written), weights=weights))
    with pytest.raises(ModelError, match="is no model folder"):
        models.resolve(Settings(_env_file=None, model=str(written.parent)))


def test_a_loop_that_depends_on_the_data_does_not_convert(model: Model) -> None:
    class Endless(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = torch.nn.Linear(3, 1000)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            features = images.mean((2, 3))
            while features.sum() < 100:
                features = features + 1
            return self.head(features)

    from app.errors import NotConvertible
    from app.models.convert import to_openvino

    with pytest.raises(NotConvertible, match="does not convert"):
        to_openvino(replace(model, build=Endless))
