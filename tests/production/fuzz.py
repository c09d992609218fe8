"""The image path under a coverage-guided fuzzer: ``python -m tests.production.fuzz CORPUS [libFuzzer's options]``.

A process of its own: a crash in a codec ends it, which is what its starter looks for.
"""

import random
import sys
from collections.abc import Callable

import atheris

with atheris.instrument_imports(include=["app.images", "PIL"]):
    import PIL.AvifImagePlugin
    import PIL.BmpImagePlugin
    import PIL.GifImagePlugin
    import PIL.JpegImagePlugin
    import PIL.PngImagePlugin
    import PIL.TiffImagePlugin
    import PIL.WebPImagePlugin  # noqa: F401

    from app import images  # noqa: F401

from tests.production import mutants


def run(target: Callable[[bytes], object]) -> None:
    """Fuzz until libFuzzer's options end it. Does not return."""
    atheris.Setup(sys.argv, target, custom_mutator=_mutated)
    atheris.Fuzz()


def _mutated(data: bytes, max_size: int, seed: int) -> bytes:
    """The fuzzer's own mutations and ours in turn."""
    if seed % 2:
        return bytes(atheris.Mutate(data, max_size))
    return mutants.mutant(random.Random(seed), data)[:max_size]


def _judge(data: bytes) -> None:
    mutants.judge(bytes(data))


if __name__ == "__main__":
    run(_judge)
