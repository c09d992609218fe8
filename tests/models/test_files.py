"""Weights from files: what loads, and how plainly the rest is refused."""

import copy
import os
import pickle
import resource
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torchvision.models
from torch import Tensor, nn

from app.errors import ModelError
from app.models.files import load_state, read_state

State = dict[str, Tensor]


def small(classes: int = 3) -> nn.Sequential:
    """A network with batch norm and a head."""
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, classes))


def saved(path: Path, content: object, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def same(one: State, other: State) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state},
        lambda state: {"model": state, "epoch": 3},
        lambda state: {f"module.{name}": tensor for name, tensor in state.items()},
        lambda state: {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}},
        lambda state: {name: nn.Parameter(tensor, tensor.is_floating_point()) for name, tensor in state.items()},
    ],
    ids=["plain", "state_dict", "checkpoint", "module", "state_dict-module", "parameters"],
)
def test_a_state_dict_loads_however_it_is_wrapped(wrap: Callable[[State], object], tmp_path: Path) -> None:
    state = small().state_dict()
    assert same(read_state(saved(tmp_path / "weights.pth", wrap(state))), state)


def test_the_old_format_of_torch_loads(tmp_path: Path) -> None:
    state = small().state_dict()
    assert same(read_state(saved(tmp_path / "old.pth", state, _use_new_zipfile_serialization=False)), state)


@pytest.mark.parametrize("prefix", ["", "module."])
def test_safetensors_load(prefix: str, tmp_path: Path) -> None:
    state = small().state_dict()
    safetensors.torch.save_file({prefix + name: t for name, t in state.items()}, tmp_path / "weights.safetensors")
    assert same(read_state(tmp_path / "weights.safetensors"), state)


class Malice:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("new_format", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(new_format: bool, tmp_path: Path) -> None:
    path = saved(tmp_path / "bad.pth", {"a": Malice(tmp_path / "proof")}, _use_new_zipfile_serialization=new_format)
    with pytest.raises(ModelError, match=r"bad\.pth is damaged, contains objects other than tensors"):
        read_state(path)
    assert not (tmp_path / "proof").exists()


def test_a_bare_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    bare = pickle.dumps(Malice(tmp_path / "proof"), protocol=2)
    (tmp_path / "bad.pth").write_bytes(bare)
    with pytest.raises(ModelError, match=r"bad\.pth"):
        read_state(tmp_path / "bad.pth")
    assert not (tmp_path / "proof").exists()
    pickle.loads(bare)
    assert (tmp_path / "proof").exists()  # it would have been


def test_a_pickled_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="save only the state dict"):
        read_state(saved(tmp_path / "network.pth", small()))


@pytest.mark.parametrize("content", [[torch.ones(1)], {"a": 1}, {1: torch.ones(1)}])
def test_what_is_no_state_dict_is_named_so(content: object, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is not a state dict"):
        read_state(saved(tmp_path / "weights.pth", content))


@pytest.mark.parametrize("name", ["weights.pth", "old.pth", "weights.safetensors"])
@pytest.mark.parametrize("kept", [0, 30, 0.5, 0.99])
def test_a_truncated_file_is_a_clear_error(name: str, kept: float, tmp_path: Path) -> None:
    state, path = small().state_dict(), tmp_path / name
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(state, path)
    else:
        saved(path, state, _use_new_zipfile_serialization=name != "old.pth")
    size = path.stat().st_size
    os.truncate(path, int(kept * size) if kept < 1 else int(kept))
    with pytest.raises(ModelError, match=rf"{path.name} is (damaged|neither)[^()]*(\(.+\))?$"):
        read_state(path)


def test_bytes_that_are_no_weights_are_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "page.pth").write_text("<!doctype html><title>404</title>")
    with pytest.raises(ModelError, match=r"page\.pth is damaged"):
        read_state(tmp_path / "page.pth")


@pytest.mark.parametrize("text", ["hello", "eventually", "1234", "weights: none"])
def test_text_is_refused_as_a_weights_file(text: str, tmp_path: Path) -> None:
    (tmp_path / "text.pth").write_text(text)
    with pytest.raises(
        ModelError, match=r"or was not written by torch\.save; save only the state dict, or use safe\w+$"
    ):
        read_state(tmp_path / "text.pth")


def test_a_pickle_by_another_protocol_loads_without_a_warning(tmp_path: Path) -> None:
    state = small().state_dict()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert same(read_state(saved(tmp_path / "weights.pth", state, pickle_protocol=3)), state)


@pytest.mark.parametrize("name", ["nowhere.pth", "nowhere.safetensors", "."])
def test_a_missing_file_is_a_clear_error(name: str, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be read"):
        read_state(tmp_path / name)


def test_loading_gives_the_network_the_file_s_numbers() -> None:
    network, state = small(), small().state_dict()
    load_state(network, state, "small", "weights.pth")
    assert same(network.state_dict(), state)


def test_half_precision_weights_become_float32() -> None:
    network, state = small(), {name: tensor.half() for name, tensor in small().state_dict().items()}
    load_state(network, state, "small", "weights.pth")
    assert torch.equal(network[0].weight, state["0.weight"].float())


def test_the_counters_of_batch_norm_may_be_missing() -> None:
    network, state = small(), small().state_dict()
    del state["1.num_batches_tracked"]
    load_state(network, state, "small", "weights.pth")
    assert torch.equal(network[0].weight, state["0.weight"])


def test_another_number_of_classes_is_named() -> None:
    with pytest.raises(ModelError, match=r"^ten\.pth has 10 classes; small with ImageNet's labels has 3$"):
        load_state(small(), small(10).state_dict(), "small", "ten.pth")


@pytest.mark.parametrize("architecture", ["squeezenet1_1", "googlenet", "inception_v3", "maxvit_t"])
def test_another_number_of_classes_is_named_for_unusual_heads(architecture: str) -> None:
    options = {} if architecture in ("squeezenet1_1", "maxvit_t") else {"init_weights": False}
    ours = torchvision.models.get_model(architecture, **options)
    ten = torchvision.models.get_model(architecture, num_classes=10, **options).state_dict()
    with pytest.raises(ModelError, match=f"has 10 classes; {architecture} with ImageNet's labels has 1000"):
        load_state(ours, ten, architecture, "ten.pth")


def test_another_shape_is_named() -> None:
    state = small().state_dict() | {"0.weight": torch.ones(4, 1, 1, 1)}
    with pytest.raises(
        ModelError, match=r"w\.pth does not fit small: 0\.weight has shape \[4, 1, 1, 1\], not \[4, 3, 1, 1\]$"
    ):
        load_state(small(), state, "small", "w.pth")


def test_missing_and_unknown_tensors_are_named() -> None:
    state = small().state_dict()
    state["extra"] = state.pop("0.bias")
    with pytest.raises(ModelError, match=r"w\.pth does not fit small: 0\.bias is missing; extra is unknown$"):
        load_state(small(), state, "small", "w.pth")


def test_one_unknown_tensor_is_named_and_not_the_classes() -> None:
    with pytest.raises(ModelError, match=r"does not fit small: extra is unknown$"):
        load_state(small(), small().state_dict() | {"extra": torch.ones(1)}, "small", "w.pth")


def test_another_architecture_is_named_by_the_first_differences() -> None:
    vgg = {f"features.{i}.weight": torch.ones(1) for i in range(9)}
    with pytest.raises(ModelError, match=r"does not fit small: 0\.weight is missing; .*, and \d+ more$"):
        load_state(small(), vgg, "small", "w.pth")


def test_nothing_is_loaded_where_something_does_not_fit() -> None:
    network = small()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(ModelError):
        load_state(network, small(10).state_dict(), "small", "w.pth")
    assert same(network.state_dict(), before)


def bomb(path: Path, unpacked: int) -> Path:
    """A ZIP archive of zeros as torch names its content."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/version", "3")
        with archive.open("archive/data/0", "w") as entry:
            for _ in range(unpacked // 2**20):
                entry.write(bytes(2**20))
    return path


def test_what_unpacks_to_more_than_it_is_is_refused_unread(tmp_path: Path) -> None:
    path = bomb(tmp_path / "bomb.pth", 256 * 2**20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelError, match=r"bomb\.pth unpacks to 268,435,457 bytes but has"):
        read_state(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB


def test_entries_that_share_their_bytes_are_counted_each(tmp_path: Path) -> None:
    state = saved(tmp_path / "weights.pth", {"a": torch.zeros(10_000)})
    with zipfile.ZipFile(state, "a") as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(50):
            copied = copy.copy(largest)
            copied.filename = copied.orig_filename = f"weights/data/{number + 1}"
            archive.filelist.append(copied)
            archive.NameToInfo[copied.filename] = copied
        archive.writestr("weights/last", "")  # so that the directory is written again
    with pytest.raises(ModelError, match="torch writes uncompressed files"):
        read_state(state)


def test_a_broken_archive_is_damaged(tmp_path: Path) -> None:
    path = saved(tmp_path / "weights.pth", small().state_dict())
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ModelError, match="is damaged"):
        read_state(path)


def test_safetensors_that_declare_more_than_they_hold_are_refused(tmp_path: Path) -> None:
    header = b'{"a":{"dtype":"F32","shape":[1000000000],"data_offsets":[0,4000000000]}}'
    path = tmp_path / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(ModelError, match="neither safetensors nor"):
        read_state(path)
