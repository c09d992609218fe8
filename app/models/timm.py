"""timm's classification models by name, with the preprocessing of timm's own data configuration.

Official weights are downloaded from the Hugging Face hub by its client, into its cache.
"""

import math
import textwrap
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import timm
import timm.data
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, RemoteEntryNotFoundError
from timm.models import get_pretrained_cfg
from torch import nn

from app.errors import ModelError
from app.imagenet.labels import Label, imagenet1k
from app.images import Preprocessing
from app.models import catalogue, download
from app.models.files import read_state
from app.models.model import Model
from app.models.names import TIMM

_timm_data: Any = timm.data  # timm.data does not export all of its types
_FILES = ("model.safetensors", "pytorch_model.bin")  # in timm's order
_MAX_REASON = 200  # characters: torch names every tensor


@dataclass(frozen=True, slots=True)
class TimmWeights:
    """One of timm's official sets of weights. Sizes in pixels; ``cached`` means that it is on this machine."""

    name: str
    classes: int
    resize: int
    crop: int
    interpolation: str
    squash: bool
    cached: bool


def entries(pattern: str) -> list[TimmWeights]:
    """The servable weights whose names match ``pattern``, in which ``*`` matches any characters."""
    return [entry for name in timm.list_pretrained(pattern) if (entry := _entry(name))]


def _entry(name: str) -> TimmWeights | None:
    config = _config(name)
    try:
        expected = _check(name)
    except ModelError:
        return None
    return TimmWeights(
        name,
        config.num_classes,
        expected.resize,
        expected.crop,
        expected.interpolation,
        expected.squash,
        cached=_cached(config) is not None,
    )


def network(name: str) -> nn.Module:
    """Build an architecture, such as ``resnet10t`` or ``resnet10t.c3_in1k``, with random weights. Raises ModelError."""
    _config(name)
    module: nn.Module = timm.create_model(name, pretrained=False)
    return module


def official(name: str) -> Model:
    """A model with timm's official weights, from the hub's cache or downloaded. Raises ModelError."""
    config = _config(name)
    _check(name)
    return _model(name, _fetch(name, config), config.tag or name)


def from_file(name: str, path: Path) -> Model:
    """A model with the user's weights and timm's preprocessing for that name. Raises ModelError."""
    return _model(name, path, path.stem)


def preprocessing(name: str) -> Preprocessing:
    """timm's preprocessing for evaluation. Raises ModelError if topk does not support it."""
    data = _timm_data.resolve_data_config(pretrained_cfg=_config(name).to_dict())
    channels, height, width = data["input_size"]
    crop, resize = height, math.floor(height / data["crop_pct"])
    for wrong, reason in {
        channels != 3: f"its input has {channels} channels",
        height != width: f"its crop is {height}x{width}, not a square",
        data["crop_mode"] not in ("center", "squash"): f"its crop mode is {data['crop_mode']}",
        resize < crop: f"its crop of {crop} is larger than its resized image of {resize}",
        data["interpolation"] not in ("bilinear", "bicubic"): f"its interpolation is {data['interpolation']}",
    }.items():
        if wrong:
            raise ModelError(f"{TIMM}{name} cannot be served: {reason}")
    return Preprocessing(
        resize=resize,
        crop=crop,
        interpolation=data["interpolation"],
        mean=tuple(data["mean"]),
        std=tuple(data["std"]),
        squash=data["crop_mode"] == "squash",
    )


def labels(name: str) -> tuple[Label, ...]:
    """The labels of ImageNet-1k, or of the larger ImageNet subset that the model was trained on. Raises ModelError."""
    subset = _subset(name)
    if subset == "imagenet-1k":
        return imagenet1k()
    info = _timm_data.ImageNetInfo(subset)
    return _unique(info.label_names(), info.label_descriptions())


def _subset(name: str) -> str:
    """The ImageNet subset that the model classifies, inferred from its number of classes."""
    classes = _config(name).num_classes
    subset: str | None = _timm_data.infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        raise ModelError(f"{TIMM}{name} cannot be served: the labels of its {classes} classes are unknown")
    return subset


def _unique(wnids: list[str], lemmas: list[str]) -> tuple[Label, ...]:
    """Unique labels: a synset's first word, else all of its words, else its words and its wnid."""
    short = [words.split(", ")[0] for words in lemmas]
    first, whole = Counter(short), Counter(lemmas)
    return tuple(
        Label(word if first[word] == 1 else words if whole[words] == 1 else f"{words} ({wnid})", wnid)
        for wnid, word, words in zip(wnids, short, lemmas, strict=True)
    )


def _model(name: str, path: Path, weights: str) -> Model:
    config, expected = _config(name), _check(name)
    pinned = (
        f"{config.architecture}.{config.tag}" if config.tag else name
    )  # the default weights may change with timm's version

    def build() -> nn.Module:
        state = read_state(path)
        try:
            module: nn.Module = timm.create_model(pinned, pretrained=True, pretrained_cfg_overlay={"state_dict": state})
        except Exception as error:  # an architecture's own conversion may raise anything
            reason = "; ".join(line.strip() for line in str(error).splitlines()[:3])
            reason = textwrap.shorten(reason, _MAX_REASON, placeholder=" ...")
            raise ModelError(f"{path} does not fit {TIMM}{name}: {reason}") from error
        return module

    return Model(
        name=name,
        architecture=f"{TIMM}{pinned}",
        weights=weights,
        digest=download.sha256(path),
        preprocessing=expected,
        labels=labels(name),
        build=build,
    )


def _check(name: str) -> Preprocessing:
    """The preprocessing. Raises ModelError if the model cannot be served; downloads nothing."""
    _subset(name)
    return preprocessing(name)


def _config(name: str) -> Any:
    """timm's configuration of the weights that ``name`` refers to."""
    if "/" in name or ":" in name or not timm.is_model(name):
        raise catalogue.unknown_timm(name, timm.list_models())
    try:
        return get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        architecture, _, tag = name.partition(".")
        raise ModelError(f"timm has no weights {tag!r} for {architecture}") from None


def _fetch(name: str, config: Any) -> Path:
    """The file with timm's official weights, from the cache or downloaded."""
    if found := _cached(config):
        return found
    if config.hf_hub_id:
        return _fetch_from_hub(config.hf_hub_id, _files(config))
    if config.url:
        return download.fetch(config.url)
    raise ModelError(f"timm has no weights for {name}; name a file: --weights FILE")


def _cached(config: Any) -> Path | None:
    if config.hf_hub_id:
        found = [try_to_load_from_cache(config.hf_hub_id, file) for file in _files(config)]
        return next((Path(path) for path in found if isinstance(path, str)), None)
    return download.cached(config.url) if config.url else None


def _files(config: Any) -> tuple[str, ...]:
    return (config.hf_hub_filename,) if config.hf_hub_filename else _FILES


def _fetch_from_hub(repository: str, names: tuple[str, ...]) -> Path:
    for file in names:
        url = hf_hub_url(repository, file)
        try:
            get_hf_file_metadata(url, timeout=download.GIVE_UP_S)  # one attempt: the client itself retries for minutes
            download.announce(url)
            return Path(hf_hub_download(repository, file))
        except RemoteEntryNotFoundError:
            continue
        except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ModelError(f"the weights at {url} cannot be downloaded: {reason}") from error
    raise ModelError(f"{repository} has none of the weights files that timm looks for: {', '.join(names)}")
