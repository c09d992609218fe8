"""torchvision's architectures by name, with official weights and with the user's."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torchvision.models

from app.errors import ModelError
from app.images import Preprocessing
from app.models import zoo
from app.models.model import Model
from tests.conftest import RESNET50, slow
from tests.models.seeded import images, seeded

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
V1 = Preprocessing(256, 224, "bilinear", MEAN, STD)
V2 = Preprocessing(232, 224, "bilinear", MEAN, STD)

# How the official files name what is named otherwise today (torchvision's densenet.py and vision_transformer.py).
OLD_NAMES = {
    "densenet121": [(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2")],
    "vit_b_32": [(r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2.")],
}


@pytest.fixture
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache folder of torch's; what is put there is large, and goes at once."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def some_file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.safetensors"
    path.write_bytes(b"weights")
    return path


def random_network(architecture: str, **options: Any) -> torch.nn.Module:
    return seeded(lambda: torchvision.models.get_model(architecture, **options))


def old_names(architecture: str, state: dict[str, Any]) -> dict[str, Any]:
    """The state dict as the releases that made the official files would have written it."""
    if architecture not in OLD_NAMES:
        return state
    old = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    for pattern, replacement in OLD_NAMES[architecture]:
        old = {re.sub(pattern, replacement, name): tensor for name, tensor in old.items()}
    assert old.keys() != state.keys()
    return old


def put(folder: Path, architecture: str, entry: str, state: dict[str, Any]) -> Path:
    """A state dict where torchvision looks for the official weights."""
    url = torchvision.models.get_model_weights(architecture)[entry].url
    torch.save(state, folder / url.rsplit("/", 1)[-1])
    return folder / url.rsplit("/", 1)[-1]


@torch.inference_mode()
def logits(model: Model) -> torch.Tensor:
    result: torch.Tensor = model.build().eval()(images(model.preprocessing.crop, 1))
    return result


@torch.inference_mode()
def reference_logits(network: torch.nn.Module, crop: int) -> torch.Tensor:
    result: torch.Tensor = network.eval()(images(crop, 1))
    return result


@pytest.mark.parametrize("architecture", zoo.architectures())
def test_the_preprocessing_is_torchvision_s_preset(architecture: str) -> None:
    for entry in torchvision.models.get_model_weights(architecture):
        if "FEATURES" in entry.name:
            continue
        ours, preset = zoo.preprocessing(architecture, entry.name), entry.transforms()
        assert [ours.resize] == preset.resize_size
        assert [ours.crop] == preset.crop_size
        assert ours.interpolation == preset.interpolation.value
        assert (list(ours.mean), list(ours.std)) == (list(preset.mean), list(preset.std))
        assert preset.antialias
        assert ours.resize >= ours.crop


@pytest.mark.parametrize(("entry", "expected"), [(None, V1), ("IMAGENET1K_V1", V1), ("IMAGENET1K_V2", V2)])
def test_a_file_s_preprocessing_is_that_of_the_entry_named_else_of_the_first(
    entry: str | None, expected: Preprocessing, some_file: Path
) -> None:
    assert zoo.from_file("resnet50", entry, some_file).preprocessing == expected


def test_a_file_is_named_by_its_stem_and_known_by_its_digest(some_file: Path) -> None:
    model = zoo.from_file("resnet50", "IMAGENET1K_V2", some_file)
    assert (model.name, model.architecture, model.weights) == ("resnet50", "resnet50", "mine")
    assert model.digest == hashlib.sha256(b"weights").hexdigest()
    assert len(model.labels) == 1000
    assert model.warning is None


def test_without_a_file_and_an_entry_the_default_weights_are_taken(checkpoints: Path) -> None:
    path = put(checkpoints, "resnet50", "IMAGENET1K_V2", {})
    model = zoo.official("resnet50", None)
    assert (model.weights, model.preprocessing) == ("IMAGENET1K_V2", V2)
    assert model.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_an_entry_means_that_entry(checkpoints: Path) -> None:
    put(checkpoints, "resnet50", "IMAGENET1K_V1", {})
    model = zoo.official("resnet50", "IMAGENET1K_V1")
    assert (model.weights, model.preprocessing) == ("IMAGENET1K_V1", V1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "entry"),
    [
        ("googlenet", "IMAGENET1K_V1"),
        ("inception_v3", "IMAGENET1K_V1"),
        ("densenet121", "IMAGENET1K_V1"),
        ("mnasnet0_5", "IMAGENET1K_V1"),
        ("resnet18", "IMAGENET1K_V1"),
        ("squeezenet1_1", "IMAGENET1K_V1"),
        ("vit_b_32", "IMAGENET1K_V1"),
        ("vit_b_16", "IMAGENET1K_SWAG_E2E_V1"),
    ],
)
def test_official_weights_compute_what_torchvision_s_own_builder_computes(
    architecture: str, entry: str, checkpoints: Path
) -> None:
    image_size = {"image_size": 384} if "SWAG" in entry else {}
    init_weights = {"init_weights": False} if architecture in ("googlenet", "inception_v3") else {}
    network = random_network(architecture, **image_size, **init_weights)
    put(checkpoints, architecture, entry, old_names(architecture, network.state_dict()))
    model = zoo.official(architecture, entry)
    expected = reference_logits(torchvision.models.get_model(architecture, weights=entry), model.preprocessing.crop)
    assert torch.equal(logits(model), expected)
    assert expected.std() > 0


@pytest.mark.parametrize("architecture", ["googlenet", slow("inception_v3")])
@pytest.mark.parametrize("auxiliary_heads", [True, False])
def test_a_file_may_have_auxiliary_heads_or_not(architecture: str, auxiliary_heads: bool, tmp_path: Path) -> None:
    network = random_network(architecture, init_weights=False, transform_input=True)
    state = network.state_dict()
    if not auxiliary_heads:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(("aux", "Aux"))}
    torch.save(state, tmp_path / "weights.pth")
    model = zoo.from_file(architecture, None, tmp_path / "weights.pth")
    assert torch.equal(logits(model), reference_logits(network, model.preprocessing.crop))


@pytest.mark.parametrize("architecture", ["mnasnet0_5", "squeezenet1_1"])
def test_safetensors_compute_what_the_state_dict_computes(architecture: str, tmp_path: Path) -> None:
    network = random_network(architecture)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "weights.safetensors")
    model = zoo.from_file(architecture, None, tmp_path / "weights.safetensors")
    assert torch.equal(logits(model), reference_logits(network, model.preprocessing.crop))


def test_another_architecture_s_file_is_a_clear_error(tmp_path: Path) -> None:
    torch.save(random_network("squeezenet1_1").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(ModelError, match=r"weights\.pth does not fit resnet18: conv1\.weight is missing"):
        zoo.from_file("resnet18", None, tmp_path / "weights.pth").build()


@pytest.mark.parametrize(("name", "words"), [("missing.pth", "does not exist"), (".", "is not a regular file")])
def test_a_file_that_cannot_be_read_is_a_clear_error(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words):
        zoo.from_file("resnet50", None, tmp_path / name)


@pytest.mark.parametrize("architecture", ["resnet51", "", "ResNet50", "deeplabv3_resnet50", "quantized_resnet50"])
def test_an_unknown_architecture_is_a_clear_error(architecture: str, some_file: Path) -> None:
    with pytest.raises(ModelError, match=f"no model '{architecture}'"):
        zoo.official(architecture, None)
    with pytest.raises(ModelError, match=f"no model '{architecture}'"):
        zoo.from_file(architecture, None, some_file)


def test_an_unknown_entry_is_a_clear_error_that_names_the_known(some_file: Path) -> None:
    with pytest.raises(ModelError, match="resnet50 has no weights 'V3'; choose one of IMAGENET1K_V1, IMAGENET1K_V2"):
        zoo.from_file("resnet50", "V3", some_file)


def test_weights_without_a_classifier_are_refused() -> None:
    with pytest.raises(ModelError, match="vgg16:IMAGENET1K_FEATURES cannot be served"):
        zoo.official("vgg16", "IMAGENET1K_FEATURES")


def test_the_list_of_weights_has_every_architecture_once_by_default() -> None:
    entries = zoo.entries()
    assert [entry.architecture for entry in entries if entry.default] == zoo.architectures()
    assert len({(entry.architecture, entry.name) for entry in entries}) == len(entries)
    assert all(50 < top1 < top5 < 100 for top1, top5 in (entry.accuracy for entry in entries))


@pytest.mark.shared
def test_real_weights_load_and_are_known_by_their_digest() -> None:
    model = zoo.from_file("resnet50", None, RESNET50)
    assert model.digest == hashlib.sha256(RESNET50.read_bytes()).hexdigest()
    network = torchvision.models.resnet50()
    network.load_state_dict(safetensors.torch.load_file(RESNET50))
    assert torch.equal(logits(model), reference_logits(network, 224))
