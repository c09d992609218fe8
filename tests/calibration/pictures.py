"""Pictures that no classifier of photographs is for: noise, drawings, text and grey cards, generated from a seed."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZE = (320, 280)
_LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyz      ,."))


def noise(random: np.random.Generator) -> Image.Image:
    """Random pixels, in blocks of 1 to 32."""
    block = 2 ** int(random.integers(0, 6))
    shape = (SIZE[1] // block + 1, SIZE[0] // block + 1, 3)
    return Image.fromarray(random.integers(0, 256, shape, np.uint8)).resize(SIZE, Image.Resampling.NEAREST)


def drawing(random: np.random.Generator) -> Image.Image:
    """Lines, ellipses and rectangles on a plain background."""
    picture = Image.new("RGB", SIZE, _colour(random, 200, 256))
    draw = ImageDraw.Draw(picture)
    for _ in range(int(random.integers(3, 12))):
        x, y = (sorted(random.integers(0, edge, 2).tolist()) for edge in SIZE)
        ink, width = _colour(random, 0, 256), int(random.integers(1, 8))
        shape = random.integers(0, 3)
        if shape == 0:
            draw.line((x[0], y[1], x[1], y[0]), ink, width)
        else:
            (draw.ellipse, draw.rectangle)[shape - 1]((x[0], y[0], x[1], y[1]), outline=ink, width=width)
    return picture


def text(random: np.random.Generator) -> Image.Image:
    """A page of random letters, dark on light."""
    picture = Image.new("RGB", SIZE, _colour(random, 230, 256))
    size = int(random.integers(10, 36))
    lines = "\n".join("".join(random.choice(_LETTERS, 60)) for _ in range(30))
    ImageDraw.Draw(picture).multiline_text((8, 8), lines, _colour(random, 0, 60), ImageFont.load_default(size))
    return picture


def grey(random: np.random.Generator) -> Image.Image:
    """A grey card: one level, a little noise, and a gradient as of uneven light."""
    level, slope = random.uniform(20, 235), random.uniform(0, 40)
    light = level + slope * (np.linspace(-0.5, 0.5, SIZE[0]) + np.zeros((SIZE[1], 1)))
    light += random.normal(0, random.uniform(0, 3), light.shape)
    return Image.fromarray(light.clip(0, 255).astype(np.uint8)).convert("RGB")


KINDS: dict[str, Callable[[np.random.Generator], Image.Image]] = {
    "noise": noise,
    "drawings": drawing,
    "text": text,
    "grey cards": grey,
}


def write(folder: Path, kind: str, count: int) -> list[Path]:
    """Write so many pictures of a kind as PNG."""
    random = np.random.default_rng([*kind.encode()])
    paths = [folder / f"{kind} {i}.png" for i in range(count)]
    for path in paths:
        KINDS[kind](random).save(path)
    return paths


def _colour(random: np.random.Generator, low: int, high: int) -> tuple[int, ...]:
    return tuple(random.integers(low, high, 3).tolist())
