"""Converted models: once on a machine, in a process of its own, and never half."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import orjson
import psutil
import pytest
import torch
import torchvision
from structlog.testing import capture_logs
from torch import nn

from app.errors import ModelError, NotConvertible
from app.models import cache, download
from tests.conftest import REPOSITORY, slow
from tests.models.seeded import seeded


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small network's: SqueezeNet converts fast."""
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    torch.save(seeded(torchvision.models.squeezenet1_1).state_dict(), path)
    return path


RESOLVE = """
import sys
from pathlib import Path
from app.models import cache, download
model = cache.converted("squeezenet1_1", Path(sys.argv[1]), Path(sys.argv[2]))
print(model.name, sorted({"torch", "torchvision", "timm"} & sys.modules.keys()))
"""


def resolving(weights: Path, folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-c", RESOLVE, str(weights), str(folder)]
    return subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def resolved(weights: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The cache of a process that has resolved it, and what that process printed."""
    folder = tmp_path_factory.mktemp("caches") / "new" / "cache"
    with resolving(weights, folder) as process:
        printed, _ = process.communicate(timeout=280)
    return folder, printed


@pytest.fixture(scope="module")
def kept(resolved: tuple[Path, str]) -> Path:
    """A cache that holds it. Not to be changed: copy it."""
    return resolved[0]


@pytest.fixture
def copy(kept: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(kept, tmp_path / "cache"))


def events(resolution: Callable[[], object]) -> list[str]:
    """What is logged meanwhile."""
    with capture_logs() as logs:
        resolution()
    return [line["event"] for line in logs]


def key(spec: str, weights: Path | None) -> str:
    return cache._key(spec, weights, download.sha256(weights) if weights else None)


CONVERTING = "converting the model, once on this machine"


def test_a_converted_model_is_known_by_its_architecture_and_its_weights(kept: Path, weights: Path) -> None:
    model = cache.converted("squeezenet1_1", weights, kept)
    assert (model.name, model.architecture, model.weights) == ("squeezenet1_1", "squeezenet1_1", "mine")
    assert (model.precision, model.preprocessing.crop, len(model.labels)) == ("auto", 224, 1000)
    assert model.openvino
    assert model.openvino.is_relative_to(kept)


def test_a_cache_may_lie_in_the_user_s_home(kept: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(kept.parent))
    assert events(lambda: cache.converted("squeezenet1_1", weights, Path("~") / kept.name)) == []


def forge(entry: Path, **values: object) -> None:
    """Other members in the description."""
    path = entry / "model.json"
    path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | values))


@pytest.mark.slow
def test_a_forged_digest_is_not_served(copy: Path, weights: Path) -> None:
    [entry] = copy.iterdir()
    forge(entry, digest="0" * 64)
    found = events(lambda: cache.converted("squeezenet1_1", weights, copy))
    assert found == ["the cached model is damaged and is converted again", CONVERTING]
    assert cache.converted("squeezenet1_1", weights, copy).digest == download.sha256(weights)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"digest": "0" * 64}, "was converted from weights with the SHA-256 0000"),
        ({"files": {}}, "has no network for OpenVINO"),
    ],
    ids=["digest", "files"],
)
def test_nor_is_one_whose_checksum_is_forged_as_well(
    copy: Path, weights: Path, values: dict[str, object], reason: str
) -> None:
    [entry] = copy.iterdir()
    forge(entry, **values)
    (entry / cache._CHECKSUM).write_text(download.sha256(entry / "model.json"))
    with pytest.raises(ModelError, match=reason):
        cache._load(entry, download.sha256(weights))


def test_an_entry_without_a_checksum_is_not_trusted(copy: Path) -> None:
    [entry] = copy.iterdir()
    (entry / cache._CHECKSUM).unlink()
    with pytest.raises(ModelError, match="cannot be read"):
        cache._load(entry, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openvino.bin", "model.json"])
def test_a_damaged_entry_is_converted_again(copy: Path, weights: Path, name: str) -> None:
    [entry] = copy.iterdir()
    sound = (entry / name).read_bytes()
    (entry / name).write_bytes(sound[:-10])
    found = events(lambda: cache.converted("squeezenet1_1", weights, copy))
    assert found == ["the cached model is damaged and is converted again", CONVERTING]
    assert (entry / name).stat().st_size == len(sound)
    assert list(copy.iterdir()) == [entry]


def test_other_weights_and_names_are_other_entries(kept: Path, weights: Path, tmp_path: Path) -> None:
    renamed, other = tmp_path / "yours.pth", tmp_path / "mine.pth"
    shutil.copy(weights, renamed)
    other.write_bytes(b"other weights")
    keys = {key("squeezenet1_1", path) for path in (weights, renamed, other, None)}
    assert len(keys | {key("squeezenet1_1:IMAGENET1K_V1", weights)}) == 5
    assert key("squeezenet1_1", weights) in os.listdir(kept)


def test_other_versions_are_other_entries(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key("squeezenet1_1", weights)
    monkeypatch.setattr("importlib.metadata.version", lambda name: "0.0")
    assert key("squeezenet1_1", weights) != before


@pytest.mark.slow
def test_two_at_once_both_have_it_and_leave_one_entry(weights: Path, tmp_path: Path) -> None:
    with ThreadPoolExecutor(2) as pool:
        models = list(pool.map(lambda _: cache.converted("squeezenet1_1", weights, tmp_path), range(2)))
    assert models[0].openvino == models[1].openvino
    assert len(list(tmp_path.iterdir())) == 1


def test_weights_that_are_missing_are_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"nowhere\.pth does not exist"):
        cache.converted("squeezenet1_1", tmp_path / "nowhere.pth", tmp_path / "cache")


def test_what_is_no_regular_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path(os.devnull), tmp_path):
        with pytest.raises(ModelError, match=f"{path} is not a regular file"):
            cache.converted("squeezenet1_1", path, tmp_path / "cache")


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        slow("alexnet", r"mine\.pth does not fit alexnet: features\.0\.weight has shape"),
        slow("resnet51", r"no model 'resnet51'; did you mean resnet50 or .*\? `topk models` lists"),
        ("squeezenet1_1:V9", "squeezenet1_1 has no weights 'V9'; choose one of IMAGENET1K_V1"),
    ],
)
def test_what_the_child_refuses_is_refused_in_its_words(spec: str, words: str, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=words) as refused:
        cache.converted(spec, weights, tmp_path)
    assert not isinstance(refused.value, NotConvertible)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_network_that_does_not_convert_raises_not_convertible(tmp_path: Path) -> None:
    network = seeded(torchvision.models.squeezenet1_1)
    nn.init.constant_(next(network.parameters()), float("nan"))
    torch.save(network.state_dict(), tmp_path / "nan.pth")
    with pytest.raises(NotConvertible, match="squeezenet1_1 with weights nan does not compute finite scores"):
        cache.converted("squeezenet1_1", tmp_path / "nan.pth", tmp_path / "cache")


def test_a_child_that_dies_is_a_clear_error(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(ModelError, match=r"squeezenet1_1 could not be converted for OpenVINO \(exit code 1\)"):
        cache.converted("squeezenet1_1", weights, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_is_a_clear_error(weights: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match=r"the converted model cannot be written to \S*file/cache: Not a directory"):
        cache.converted("squeezenet1_1", weights, tmp_path / "file" / "cache")
    with pytest.raises(ModelError, match=r"the converted model cannot be written to \S*file: it is not a folder"):
        cache.converted("squeezenet1_1", weights, tmp_path / "file")


def test_a_model_is_converted_once_and_imports_no_torch_into_the_process_that_serves(
    weights: Path, resolved: tuple[Path, str]
) -> None:
    folder, printed = resolved
    assert CONVERTING in printed
    assert printed.splitlines()[-1] == "squeezenet1_1 []"
    [entry] = folder.iterdir()
    assert entry.name.startswith("squeezenet1-1-")
    assert sorted(path.name for path in entry.iterdir()) == [
        *("model.json", "model.json.sha256", "openvino.bin", "openvino.xml")
    ]
    assert events(lambda: cache.converted("squeezenet1_1", weights, folder)) == []


@pytest.fixture
def converting(weights: Path, tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """A process that waits for its child to convert, and that child."""
    with resolving(weights, tmp_path) as process:
        assert process.stdout
        assert CONVERTING in process.stdout.readline()
        children: list[psutil.Process] = []
        while not children:
            children = psutil.Process(process.pid).children()
        yield process, children[0]
        process.kill()


@pytest.mark.slow
def test_the_child_ends_unfinished_when_its_parent_is_gone(
    converting: tuple["subprocess.Popen[str]", psutil.Process], tmp_path: Path
) -> None:
    process, child = converting
    process.kill()
    process.wait(30)
    child.wait(30)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_was_left_by_the_killed_is_swept_and_what_is_in_use_is_not(
    converting: tuple["subprocess.Popen[str]", psutil.Process], tmp_path: Path
) -> None:
    process, child = converting
    [used] = tmp_path.iterdir()
    left = tmp_path / f"{cache._WORKSPACE}left"
    (left / "new").mkdir(parents=True)
    child.suspend()
    for parent in ("alive", "gone"):
        with cache._workspace(tmp_path) as (mine, _):
            assert set(tmp_path.iterdir()) == {used, mine}, parent
        process.kill()
        process.wait(30)
    child.kill()
    child.wait(30)
    with cache._workspace(tmp_path) as (mine, _), cache._workspace(tmp_path) as (other, _):
        assert set(tmp_path.iterdir()) == {mine, other}
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_package_of_our_name_in_the_working_directory_is_not_taken_for_us(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('no topk')")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="does not fit alexnet"):
        cache.converted("alexnet", weights, tmp_path / "cache")
