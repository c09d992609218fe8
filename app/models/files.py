"""Weights from a user's file: safetensors, or a state dict that contains only tensors."""

import os
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from app.errors import ModelError

_ZIP = b"PK\3\4"

# Tensor names of older torchvision releases, which the official files still use: see its densenet.py and
# vision_transformer.py.
_RENAMED = (
    (re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)"), r"\1\2"),
    (re.compile(r"(\.mlp\.)linear_1\."), r"\g<1>0."),
    (re.compile(r"(\.mlp\.)linear_2\."), r"\g<1>3."),
)


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU. Only tensors are unpickled. Raises ModelError."""
    check_unpacked(path)
    try:
        if path.suffix == ".safetensors":
            loaded: Any = safetensors.torch.load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about pickle protocols that torch does not use
                loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error
    except (pickle.UnpicklingError, LookupError, EOFError) as error:  # the last two are raised for plain text
        raise ModelError(
            f"{path} is damaged, contains objects other than tensors, or was not written by torch.save; save only the"
            " state dict, or use safetensors"
        ) from error
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise ModelError(f"{path} is neither safetensors nor a torch state dict ({reason})") from error
    for key in ("state_dict", "model"):  # training scripts wrap the state dict in a mapping
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in loaded.items()
    ):
        raise ModelError(f"{path} is not a state dict, which maps names to tensors")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def check_unpacked(path: Path) -> None:
    """Raise ModelError if a ZIP archive unpacks to more bytes than the file has.

    torch writes uncompressed ZIP archives, so a compressed one may be an attempt to exhaust memory. The content is not
    read. The safetensors library checks the sizes in its own files.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != _ZIP:
                return
            size = file.seek(0, os.SEEK_END)
            with zipfile.ZipFile(file) as archive:
                unpacked = sum(entry.file_size for entry in archive.infolist())
    except OSError:
        return  # reading the file reports the error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if unpacked > size:
        raise ModelError(
            f"{path} unpacks to {unpacked:,} bytes but has {size:,}, and torch writes uncompressed files; save it again"
            " with torch.save, or as safetensors"
        )


def load_state(network: nn.Module, state: dict[str, Tensor], architecture: str, source: str) -> None:
    """Load ``state`` into ``network``. Raises ModelError with the first differences.

    Auxiliary heads, which only training uses, and the counters of batch norm may be missing.
    """
    expected = network.state_dict()
    state = {_current(name, expected): tensor for name, tensor in state.items()}
    state = {name: tensor for name, tensor in state.items() if not _optional(name) or name in expected}
    wrong = [
        f"{name} has shape {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing = [f"{name} is missing" for name in expected if name not in state and not _optional(name)]
    unknown = [f"{name} is unknown" for name in state if name not in expected]
    if wrong or missing or unknown:
        _name_class_count(expected, state, architecture, source)
        differences = wrong + missing + unknown
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ModelError(f"{source} does not fit {architecture}: {'; '.join(differences[:3])}{more}")
    expected.update(state)  # keeps the modules' versions, which MNASNet checks
    network.load_state_dict(expected)


def _name_class_count(expected: dict[str, Tensor], state: dict[str, Tensor], architecture: str, source: str) -> None:
    """Raise ModelError with both numbers of classes if nothing else differs."""
    names = [name for name in expected if not _optional(name)]
    last = names[-1]
    others = [name for name in names if name.rpartition(".")[0] != last.rpartition(".")[0]]
    fits = all(name in state and state[name].shape == expected[name].shape for name in others)
    found, classes = list(state[last].shape[:1]) if last in state else [], len(expected[last])
    if fits and found and found[0] != classes:
        raise ModelError(f"{source} has {found[0]} classes; {architecture} with ImageNet's labels has {classes}")


def _current(name: str, expected: dict[str, Tensor]) -> str:
    """The current name of a tensor."""
    for old, new in _RENAMED:
        renamed = old.sub(new, name)
        if renamed in expected:
            return renamed
    return name


def _auxiliary(name: str) -> bool:
    return name.startswith(("aux", "AuxLogits."))


def _optional(name: str) -> bool:
    return _auxiliary(name) or name.endswith(".num_batches_tracked")
