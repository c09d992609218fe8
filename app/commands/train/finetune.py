"""Fine-tuning: the whole network, starting from the linear head. Random crops, SGD, mixed precision, best epoch kept.

A fitted head and small steps keep the features from being distorted by a random head: LP-FT (Kumar et al. 2022,
arXiv:2202.10054). SGD, as in that paper: its steps are small once the head fits the images. Adam's steps have full
size for any gradient; in measurements, they undid the head.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from app import machine
from app.commands.train.crops import Crops, Item
from app.commands.train.examples import Example
from app.commands.train.progress import TrainingProgress
from app.engine.torch import device_of, native_precision
from app.errors import BadImage, TrainingError
from app.images import Preprocessing
from app.settings import Settings

_MOMENTUM = 0.9
_WORKERS = 8  # they decode while a GPU trains; on a CPU they would compete with the network for its cores


@dataclass(frozen=True, slots=True)
class Recipe:
    """At most ``epochs`` epochs. Training stops after ``patience`` epochs without improvement.

    The learning rate rises during the share ``warm_up`` of all steps, then falls along a cosine to zero.
    """

    epochs: int = 20
    batch_size: int = 32
    seed: int = 0
    patience: int = 5
    learning_rate: float = 3e-3
    weight_decay: float = 1e-4
    warm_up: float = 0.1
    label_smoothing: float = 0.1


@dataclass(frozen=True, slots=True)
class Score:
    """Accuracy and mean log loss on the held-out images. The loss decides between equal accuracies."""

    top1: float
    loss: float

    def beats(self, other: "Score") -> bool:
        return (self.top1, -self.loss) > (other.top1, -other.loss)


@dataclass(frozen=True, slots=True)
class Tuning:
    """``scores`` by epoch, the first for the linear head alone. The weights of epoch ``best`` are kept."""

    scores: tuple[Score, ...]
    best: int


def fine_tune(
    network: nn.Module,
    preprocessing: Preprocessing,
    learned: list[Example],
    held_out: list[Example],
    recipe: Recipe,
    settings: Settings,
    progress: TrainingProgress,
) -> Tuning:
    """Train ``network``, which has a fitted head, in place. Repeatable on the same machine.

    Raises TrainingError and ModelError.
    """
    device = device_of(settings.device)
    crops = partial(Crops, preprocessing=preprocessing, max_pixels=settings.max_pixels, fast=settings.fast_decode)
    loop = _Loop(network, device, recipe, crops(learned, seed=recipe.seed), crops(held_out), progress)
    try:
        with _repeatable(recipe.seed, device):
            return loop.run()
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"{device} has not enough memory for batches of {recipe.batch_size}; lower --batch-size"
        ) from error
    except (BadImage, OSError) as error:
        raise TrainingError(f"an image can no longer be read: {error}") from error
    finally:
        network.cpu()


class _Loop:
    def __init__(
        self,
        network: nn.Module,
        device: torch.device,
        recipe: Recipe,
        learned: Crops,
        held_out: Crops,
        progress: TrainingProgress,
    ) -> None:
        self._network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._device = device
        self._precision = native_precision(device)
        self._recipe = recipe
        self._learned = learned
        shuffled = torch.Generator().manual_seed(recipe.seed)
        self._batches = _loader(learned, device, batch_size=recipe.batch_size, shuffle=True, generator=shuffled)
        self._unseen = _loader(held_out, device, batch_size=recipe.batch_size)
        self._optimizer = torch.optim.SGD(
            _groups(network, recipe.weight_decay), lr=recipe.learning_rate, momentum=_MOMENTUM, nesterov=True
        )
        steps = recipe.epochs * len(self._batches)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, partial(rate, steps=steps, warm_up=max(1, round(recipe.warm_up * steps)))
        )
        self._loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
        self._progress = progress

    def run(self) -> Tuning:
        scores = [self._score()]
        best, weights = 0, self._weights()
        for epoch in range(1, self._recipe.epochs + 1):
            self._epoch(epoch, scores[best])
            scores.append(self._score())
            if scores[-1].beats(scores[best]):
                best, weights = epoch, self._weights()
            elif epoch - best >= self._recipe.patience:
                break
        self._network.load_state_dict(weights)
        return Tuning(tuple(scores), best)

    def _epoch(self, epoch: int, best: Score) -> None:
        _train(self._network)
        self._learned.epoch = epoch
        description = f"epoch {epoch} of {self._recipe.epochs}, best so far {best.top1:.1%}"
        with self._progress.bar(description, len(self._batches)) as advance:
            for images, classes in self._batches:
                self._optimizer.zero_grad(set_to_none=True)
                loss = self._loss(self._logits(images), classes.to(self._device))
                loss.backward()
                nn.utils.clip_grad_norm_(self._network.parameters(), 1.0)
                self._optimizer.step()
                self._schedule.step()
                advance()

    @torch.inference_mode()
    def _score(self) -> Score:
        self._network.eval()
        right, loss, n = 0, 0.0, 0
        for images, classes in self._unseen:
            logits, classes = self._logits(images), classes.to(self._device)
            right += int((logits.argmax(1) == classes).sum())
            loss += float(nn.functional.cross_entropy(logits, classes, reduction="sum"))
            n += len(classes)
        return Score(right / n, loss / n)

    def _logits(self, images: Tensor) -> Tensor:
        """Float32 logits, computed in bfloat16 if the device supports it natively."""
        images = images.to(self._device, non_blocking=True, memory_format=torch.channels_last)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._precision == "bfloat16"):
            logits: Tensor = self._network(images)
        return logits.float()

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().cpu().clone() for name, tensor in self._network.state_dict().items()}


def rate(step: int, steps: int, warm_up: int) -> float:
    """The learning rate factor rises linearly to 1 at ``warm_up``, then falls along a cosine to 0 at ``steps``."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def _train(network: nn.Module) -> None:
    """Training mode, except for batch norm: statistics of few images would change the features of the fitted head."""
    network.train()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.eval()


def _groups(network: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups: biases and norms have no weight decay."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


def _loader(crops: Crops, device: torch.device, **how: Any) -> DataLoader[Item]:
    workers = 0 if device.type == "cpu" else min(_WORKERS, machine.cores())
    return DataLoader(crops, num_workers=workers, pin_memory=device.type == "cuda", **how)


@contextmanager
def _repeatable(seed: int, device: torch.device) -> Iterator[None]:
    """Seed all random numbers, and restrict cuDNN to deterministic algorithms."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.backends.cudnn.flags(benchmark=False, deterministic=True):
        torch.manual_seed(seed)
        yield
