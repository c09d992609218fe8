"""Weights from a file the user names: safetensors, or a state dict that holds nothing but tensors."""

import pickle
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn

from app.errors import ModelError


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU. Raises ModelError; nothing but tensors is ever unpickled."""
    if not path.is_file():
        raise ModelError(f"no weights file {path}")
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(f"{path} holds more than tensors; save the state dict alone, or as safetensors") from error
    except Exception as error:
        raise ModelError(f"{path} is neither safetensors nor a torch state dict ({error})") from error
    for key in ("state_dict", "model"):  # what training scripts wrap it in
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ModelError(f"{path} is no state dict: a mapping from names to tensors")
    return {name.removeprefix("module."): tensor for name, tensor in loaded.items()}


def load_state(network: nn.Module, state: dict[str, Tensor], architecture: str, source: str) -> None:
    """Load ``state`` into ``network``; raises ModelError naming the first differences.

    Auxiliary heads, used in training only, may be missing, and so may batch norm's counters.
    """
    expected = network.state_dict()
    state = {name: tensor for name, tensor in state.items() if not _optional(name) or name in expected}
    wrong = [
        f"{name} is {list(state[name].shape)}, not {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    missing = [f"{name} is missing" for name in expected if name not in state and not _optional(name)]
    unknown = [f"{name} is unknown" for name in state if name not in expected]
    if wrong or missing or unknown:
        _name_class_count(list(expected), expected, state, architecture, source)
        differences = wrong + missing + unknown
        more = f", and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ModelError(f"{source} does not fit {architecture}: {'; '.join(differences[:3])}{more}")
    network.load_state_dict(state, strict=False)


def _name_class_count(
    names: list[str], expected: dict[str, Tensor], state: dict[str, Tensor], architecture: str, source: str
) -> None:
    """Raise the plainer error where nothing but the last layer differs."""
    head = [name for name in names if not _auxiliary(name)][-2:]
    others = [name for name in names if name not in head and not _optional(name)]
    fits = all(name in state and state[name].shape == expected[name].shape for name in others)
    if fits and all(name in state for name in head):
        raise ModelError(
            f"{source} has {len(state[head[-1]])} classes; {architecture} with ImageNet's labels has"
            f" {len(expected[head[-1]])}"
        )


def _auxiliary(name: str) -> bool:
    return name.startswith(("aux", "AuxLogits."))


def _optional(name: str) -> bool:
    return _auxiliary(name) or name.endswith(".num_batches_tracked")
