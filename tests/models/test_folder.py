"""Model folders: what is written is what is read, and how plainly a damaged one is refused."""

import importlib.metadata
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import safetensors.torch
import torch
import torchvision

from app import engine
from app.errors import ModelError
from app.models import embedded, folder, resolve, zoo
from app.models.model import Model
from app.models.openvino import ov
from app.settings import Settings
from tests.conftest import slow
from tests.models.conftest import files_of_at_most
from tests.models.seeded import images


@pytest.fixture
def copy(squeezenet_folder: Path, tmp_path: Path) -> Path:
    """A folder to be changed."""
    return Path(shutil.copytree(squeezenet_folder, tmp_path / "squeezenet1_1"))


@pytest.fixture(scope="module")
def written(squeezenet_weights: Path) -> Model:
    """The model that was written."""
    return zoo.from_file("squeezenet1_1", None, squeezenet_weights)


def change(path: Path, **values: Any) -> None:
    """Other members in ``model.json``."""
    description = path / folder.DESCRIPTION
    description.write_bytes(orjson.dumps(orjson.loads(description.read_bytes()) | values))


def test_what_is_written_is_what_is_read(squeezenet_folder: Path, written: Model) -> None:
    model = folder.load(squeezenet_folder)
    for member in ("name", "architecture", "weights", "digest", "preprocessing", "labels", "precision", "warning"):
        assert getattr(model, member) == getattr(written, member), member
    assert (model.weights, model.precision) == ("seeded", "auto")
    assert model.openvino == squeezenet_folder / "openvino.xml"


def test_the_description_has_the_versions_that_made_it(squeezenet_folder: Path) -> None:
    document = orjson.loads((squeezenet_folder / "model.json").read_bytes())
    assert document["format"] == folder.FORMAT
    assert document["versions"].keys() == {"topk", "torch", "torchvision", "timm", "openvino"}
    assert document["versions"]["torch"] == importlib.metadata.version("torch")
    assert document["files"].keys() == {"model.safetensors", "openvino.xml", "openvino.bin"}
    assert sorted(path.name for path in squeezenet_folder.iterdir()) == sorted([*document["files"], "model.json"])


def test_everyone_may_read_a_folder_s_files(squeezenet_folder: Path) -> None:
    assert {oct(path.stat().st_mode & 0o444) for path in squeezenet_folder.iterdir()} == {"0o444"}


@torch.inference_mode()
def test_its_weights_are_torchvision_s_own_network_s(squeezenet_folder: Path, written: Model) -> None:
    network = torchvision.models.squeezenet1_1()
    network.load_state_dict(safetensors.torch.load_file(squeezenet_folder / "model.safetensors"))
    expected = written.build().eval()(images())
    assert torch.equal(network.eval()(images()), expected)
    assert torch.equal(folder.load(squeezenet_folder).build().eval()(images()), expected)


@torch.inference_mode()
def test_its_network_takes_grey_levels_to_the_logits_of_torch(squeezenet_folder: Path, written: Model) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3)).astype(np.float32)
    found = ov.Core().compile_model(folder.load(squeezenet_folder).openvino, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (written.preprocessing.mean, written.preprocessing.std))
    expected = written.build().eval()((torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255 - mean) / std)
    assert np.allclose(found([pixels])["logits"], expected, atol=1e-4)


def test_the_precision_it_was_exported_for_is_kept(copy: Path) -> None:
    change(copy, precision="float32")
    assert folder.load(copy).precision == "float32"


def test_labels_may_have_no_wnid(copy: Path) -> None:
    change(copy, labels=[["good", None], ["bad", None]])
    assert [(label.label, label.wnid) for label in folder.load(copy).labels] == [("good", None), ("bad", None)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cats-2026_v1.0", "cats-2026_v1.0"),
        ("mine & yours", "mine---yours"),
        ("größe", "gr--e"),
        ("x" * 200, "x" * 128),
    ],
)
def test_its_name_is_the_folder_s_in_characters_that_a_setting_allows(copy: Path, name: str, expected: str) -> None:
    model = folder.load(copy.rename(copy.parent / name))
    assert model.name == expected
    assert Settings(model_name=model.name, _env_file=None).model_name == expected


def test_its_name_is_the_folder_s_wherever_one_stands(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    assert folder.load(Path(".")).name == "squeezenet1_1"


def flip(path: Path) -> None:
    """Another last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["openvino.bin", "openvino.xml"])
@pytest.mark.parametrize(("damage", "words"), [(flip, "is damaged"), (Path.unlink, "does not exist")])
def test_a_damaged_network_is_refused(copy: Path, name: str, damage: Callable[[Path], None], words: str) -> None:
    damage(copy / name)
    with pytest.raises(ModelError, match=rf"{name} {words}"):
        folder.load(copy)


@pytest.mark.parametrize(("damage", "words"), [(flip, "is damaged"), (Path.unlink, "does not exist")])
def test_damaged_weights_are_refused_where_they_are_needed(
    copy: Path, damage: Callable[[Path], None], words: str
) -> None:
    damage(copy / "model.safetensors")
    model = folder.load(copy)
    with pytest.raises(ModelError, match=rf"model\.safetensors {words}"):
        model.build()


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"format": 1}', b"\xff\xfe", b"null"],
    ids=["empty", "cut", "list", "bare", "utf", "null"],
)
def test_a_description_that_is_none_is_refused(copy: Path, content: bytes) -> None:
    (copy / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match=r"model\.json is not a model description"):
        folder.load(copy)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{}", "it has no format, architecture, weights, digest, preprocessing, labels, precision, files, versions"),
        (b"[]", "it is not a JSON object"),
        (b'{"labels": [["cat"]]}', r"it has no format, .*, labels\.0\.1, .*"),
    ],
)
def test_what_a_description_lacks_is_named_in_one_line(copy: Path, content: bytes, words: str) -> None:
    (copy / "model.json").write_bytes(content)
    with pytest.raises(ModelError, match=rf"model\.json is not a model description: {words}\Z"):
        folder.load(copy)


def test_a_member_of_another_kind_is_named(copy: Path) -> None:
    change(copy, precision=8)
    with pytest.raises(ModelError, match=r"not a model description: precision: Input should be a valid string\Z"):
        folder.load(copy)


@pytest.mark.parametrize("name", ["openvino.xml", "openvino.bin"])
@pytest.mark.parametrize("read", [folder.load, folder.identity])
def test_an_int8_model_needs_its_network(copy: Path, name: str, read: Callable[[Path], object]) -> None:
    files = orjson.loads((copy / "model.json").read_bytes())["files"]
    change(copy, precision="int8", files={one: digest for one, digest in files.items() if one != name})
    with pytest.raises(
        ModelError, match=rf"model\.json is not a model description: files has no {name}, which an int8"
    ):
        read(copy)


def test_members_that_this_version_does_not_know_are_refused(copy: Path) -> None:
    change(copy, surprise=1)
    with pytest.raises(ModelError, match=r"is not a model description: surprise: Extra inputs are not permitted\Z"):
        folder.load(copy)


def test_another_format_is_refused(copy: Path) -> None:
    change(copy, format=folder.FORMAT + 1)
    with pytest.raises(
        ModelError, match=f"has format {folder.FORMAT + 1}; this version of topk reads format {folder.FORMAT}"
    ):
        folder.load(copy)


def test_a_folder_without_a_description_is_none(copy: Path) -> None:
    assert folder.is_folder(copy)
    (copy / "model.json").unlink()
    assert not folder.is_folder(copy)
    with pytest.raises(ModelError, match=r"model\.json cannot be read"):
        folder.load(copy)


def test_weights_of_another_architecture_are_refused(copy: Path) -> None:
    change(copy, architecture="resnet34")
    with pytest.raises(ModelError, match="does not fit resnet34"):
        folder.load(copy).build()


@pytest.mark.slow
def test_without_weights_it_is_served_by_openvino_alone(written: Model, tmp_path: Path) -> None:
    folder.write(written, tmp_path / "slim", weights=False)
    assert not (tmp_path / "slim" / "model.safetensors").exists()
    model = folder.load(tmp_path / "slim")
    assert model.openvino is not None
    with pytest.raises(ModelError, match=r"slim has no model\.safetensors; only the engine openvino can serve it"):
        model.build()


@pytest.mark.slow
@torch.inference_mode()
def test_the_embedded_model_goes_into_a_folder_and_comes_back(tmp_path: Path) -> None:
    expected = embedded.embedded()
    folder.write(expected, tmp_path / "lite")
    model = folder.load(tmp_path / "lite")
    assert (model.architecture, model.preprocessing) == ("efficientnet_lite0", expected.preprocessing)
    assert torch.equal(model.build().eval()(images()), expected.build().eval()(images()))


def test_a_folder_that_is_not_empty_is_left_alone(written: Model, tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(ModelError, match="is not empty"):
        folder.write(written, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_where_no_folder_can_be_is_refused(written: Model, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ModelError, match="cannot be written"):
        folder.write(written, tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("weights", [True, slow(False)], ids=["safetensors", "OpenVINO"])
def test_a_full_disk_is_one_plain_error(written: Model, tmp_path: Path, weights: bool) -> None:
    with files_of_at_most(1_000_000), pytest.raises(ModelError, match=r"mine cannot be written: .* disk may be full"):
        folder.write(written, tmp_path / "mine", weights=weights)


def test_a_folder_is_a_model_by_its_path(squeezenet_folder: Path) -> None:
    for converted in (False, True):
        model = resolve(Settings(model=str(squeezenet_folder), _env_file=None), converted=converted)
        assert (model.name, model.weights) == ("squeezenet1_1", "seeded")
    assert resolve(Settings(model=str(squeezenet_folder), model_name="mine", _env_file=None)).name == "mine"


def test_a_folder_takes_no_other_weights(squeezenet_folder: Path, squeezenet_weights: Path) -> None:
    with pytest.raises(ModelError, match="is a model folder, which contains its weights"):
        resolve(Settings(model=str(squeezenet_folder), weights=squeezenet_weights, _env_file=None))


@pytest.mark.parametrize("converted", [False, True])
def test_a_path_that_is_no_model_folder_is_a_clear_error(tmp_path: Path, converted: bool) -> None:
    with pytest.raises(ModelError, match=r"is not a model folder: it has no model\.json"):
        resolve(Settings(model=str(tmp_path), _env_file=None), converted=converted)


@pytest.mark.parametrize("converted", [False, True])
def test_a_path_that_does_not_exist_is_named(tmp_path: Path, converted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("nowhere/resnet50", "nowhere.pth", "nowhere.pt"):
        with pytest.raises(ModelError, match=rf"^{path} does not exist"):
            resolve(Settings(model=path, _env_file=None), converted=converted)


@pytest.mark.parametrize("path", ["mine.pth", "./mine.safetensors"])
def test_weights_named_as_the_model_are_refused_with_advice(
    path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(path).touch()
    with pytest.raises(ModelError, match=f"{path} is a file; .*: --model ARCHITECTURE --weights {path}"):
        resolve(Settings(model=path, _env_file=None), converted=True)


@pytest.mark.parametrize("classes", [10, 999, 1001])
@pytest.mark.parametrize("computing", ["openvino", "torch"])
def test_labels_that_are_not_the_network_s_are_refused_at_load(copy: Path, classes: int, computing: str) -> None:
    change(copy, labels=[[f"class {number}", None] for number in range(classes)])
    model = folder.load(copy)
    with pytest.raises(ModelError, match=f"squeezenet1_1 has {classes} labels for a network of 1000 classes"):
        engine.create(model, computing, "cpu", "float32").load()


@pytest.mark.parametrize(
    "wrong",
    [{"crop": 0}, {"crop": 300}, {"resize": 10**9, "crop": 10**9}, {"std": [0, 1, 1]}, {"mean": [1e999, 0, 0]}],
    ids=str,
)
def test_preprocessing_that_cannot_be_is_refused(copy: Path, wrong: dict[str, Any]) -> None:
    fed = orjson.loads((copy / folder.DESCRIPTION).read_bytes())["preprocessing"]
    change(copy, preprocessing=fed | {name: value for name, value in wrong.items() if value != [1e999, 0, 0]})
    if "mean" in wrong:
        text = (copy / folder.DESCRIPTION).read_text()
        (copy / folder.DESCRIPTION).write_text(text.replace('"mean":[', '"mean":[1e999,', 1))
    with pytest.raises(ModelError, match="is not a model description"):
        folder.load(copy)


def test_a_crop_that_the_network_does_not_take_is_refused_at_load(squeezenet_folder: Path) -> None:
    model = folder.load(squeezenet_folder)
    small = replace(model, build=torchvision.models.squeezenet1_1, preprocessing=replace(model.preprocessing, crop=8))
    with pytest.raises(ModelError, match="squeezenet1_1 does not accept crops of 8x8: "):
        engine.create(small, "torch", "cpu", "float32").load()
