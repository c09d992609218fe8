"""From settings to a model: what ``auto`` falls back to, and what never falls back."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.models

from app.errors import ModelError
from app.models import resolve
from app.settings import Settings
from tests import tiny
from tests.conftest import RESNET50, slow


def settings(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


@pytest.fixture(autouse=True)
def checkpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """torch's cache folder, empty, and no network: the proxy is a port where nobody listens."""
    for name in ("TOPK_MODEL", "TOPK_WEIGHTS", "TOPK_MODEL_NAME", "NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


def test_auto_takes_the_newest_resnet50_from_the_cache(checkpoints: Path) -> None:
    weights = torchvision.models.ResNet50_Weights.IMAGENET1K_V2
    state = torchvision.models.resnet50().state_dict()
    torch.save(state, checkpoints / weights.url.rsplit("/", 1)[-1])
    model = resolve(settings())
    assert (model.name, model.weights, model.preprocessing.resize) == ("resnet50", "IMAGENET1K_V2", 232)
    assert model.warning is None
    assert torch.equal(model.build().fc.weight, state["fc.weight"])


def test_auto_falls_back_to_the_embedded_model_with_a_warning(checkpoints: Path) -> None:
    model = resolve(settings())
    assert model.name == model.architecture == "efficientnet_lite0"
    assert model.warning is not None
    assert model.warning.startswith("serving the small embedded EfficientNet-Lite0 instead of resnet50: the weights at")
    assert "no connection" in model.warning
    assert list(checkpoints.iterdir()) == []


def test_auto_is_the_first_folder_that_holds_something(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    full = Path(tiny.model()[1])
    folders = (tmp_path / "none", tmp_path / "file", tmp_path / "empty", full, tmp_path)
    assert resolve(settings(model_folders=folders)).name == "tiny"
    assert resolve(settings(model_folders=folders, model="efficientnet_lite0")).name == "efficientnet_lite0"


def test_a_folder_that_holds_something_else_never_falls_back(tmp_path: Path) -> None:
    (tmp_path / "model.tar.gz").touch()
    with pytest.raises(ModelError, match="is not a model folder"):
        resolve(settings(model_folders=str(tmp_path)))


def test_auto_with_a_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="such as --model resnet50"):
        resolve(settings(weights=tmp_path / "weights.pth"))


@pytest.mark.parametrize("model", ["resnet50", slow("resnet50:IMAGENET1K_V2"), slow("resnet18")])
def test_a_model_named_never_falls_back(model: str) -> None:
    with pytest.raises(ModelError, match=r"the weights at https://\S+\.pth cannot be downloaded: no connection"):
        resolve(settings(model=model))


@pytest.mark.parametrize("model", ["resnet51", "resnet50:V3", "auto:IMAGENET1K_V2", "efficientnet_lite0:V1"])
def test_a_name_unknown_never_falls_back(model: str) -> None:
    with pytest.raises(ModelError, match=model.partition(":")[0]):
        resolve(settings(model=model))


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("resnet51", "; did you mean resnet50 or"),
        ("RESNET18", "; did you mean resnet18"),
        ("nonesuch", ";"),
        ("efficientnet-lite0", "; did you mean efficientnet_lite0"),
    ],
)
def test_the_nearest_names_are_offered(model: str, near: str) -> None:
    with pytest.raises(ModelError, match=f"^there is no model '{model}'{near}"):
        resolve(settings(model=model))


def test_the_embedded_model_has_a_name_and_no_warning() -> None:
    model = resolve(settings(model="efficientnet_lite0"))
    assert (model.name, model.warning) == ("efficientnet_lite0", None)


def test_the_embedded_model_takes_no_other_weights(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="efficientnet_lite0 has built-in weights only"):
        resolve(settings(model="efficientnet_lite0", weights=tmp_path / "weights.pth"))


def test_a_name_of_the_user_s_choice_is_the_model_s_name() -> None:
    model = resolve(settings(model="efficientnet_lite0", model_name="cats-2026"))
    assert (model.name, model.architecture) == ("cats-2026", "efficientnet_lite0")


def test_a_fallback_has_the_name_of_the_user_s_choice_too() -> None:
    assert resolve(settings(model_name="cats-2026")).name == "cats-2026"


def test_a_file_is_for_the_architecture_and_entry_named(tmp_path: Path) -> None:
    (tmp_path / "mine.pth").touch()
    model = resolve(settings(model="resnet50:IMAGENET1K_V2", weights=tmp_path / "mine.pth"))
    assert (model.name, model.weights, model.preprocessing.resize) == ("resnet50", "mine", 232)


def test_a_file_may_lie_in_the_user_s_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.pth").touch()
    assert resolve(settings(model="resnet50", weights="~/mine.pth")).weights == "mine"


@pytest.mark.shared
def test_real_weights_resolve() -> None:
    model = resolve(settings(model="resnet50", weights=RESNET50))
    assert (model.weights, model.preprocessing.resize) == ("resnet50", 256)
